"""What is known of public datasets, as data: one YAML each, and every statement marked as verified or not."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from neurostorm_bids.errors import PresetUnusable

FACTS = ("title", "citation", "access", "accession", "preprocessed", "participants", "t_r_s", "site", "family")
KINDS = ("regression", "classification", "retrieval")
MARKS = (
    "  A page in brackets: the statement was read in an excerpt of it that a search returned. No page was opened in\n"
    "  full, no data were looked at: compare with your own participants.tsv. (unverified): nobody has read it anywhere."
)


@dataclass(frozen=True)
class Fact:
    """A statement and where it was read; ``source`` is None for one that nobody verified."""

    value: Any
    verified: bool
    source: str | None = None

    def __str__(self) -> str:
        return f"{self.value}" if self.verified else f"{self.value} (unverified)"


@dataclass(frozen=True)
class PresetTarget:
    """A column that can be learnt, as ``--target`` takes it."""

    column: str
    kind: str
    classes: tuple[str, ...]
    fact: Fact


@dataclass(frozen=True)
class DatasetPreset:
    """A dataset: how it is read, what can be learnt from it and what goes wrong with it."""

    name: str
    aliases: tuple[str, ...]
    input_type: str
    facts: Mapping[str, Fact]
    targets: tuple[PresetTarget, ...]
    pitfalls: tuple[Fact, ...]

    def stated(self, name: str) -> Any:
        """A verified fact's value, else None."""
        fact = self.facts.get(name)
        return fact.value if fact is not None and fact.verified else None


@cache
def names() -> tuple[str, ...]:
    """Names of all presets, sorted."""
    folder = files("neurostorm_bids").joinpath("data", "datasets")
    return tuple(sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml")))


def load(name: str) -> DatasetPreset:
    """A preset by its name or an alias of it.

    Raises
    ------
    PresetUnusable
        When there is none of that name.
    """
    wanted = name.lower()
    for known in names():
        preset = _read(known)
        if wanted in (preset.name, *preset.aliases):
            return preset
    raise PresetUnusable(
        f"--dataset-preset {name}: no such dataset",
        expected=", ".join(names()),
        remedy="See neurostorm-models datasets",
    )


@cache
def _read(name: str) -> DatasetPreset:
    import yaml

    text = files("neurostorm_bids").joinpath("data", "datasets", f"{name}.yaml").read_text("utf-8")
    return parse(yaml.safe_load(text), name)


def parse(content: Mapping[str, Any], name: str) -> DatasetPreset:
    """A preset from its YAML, checked.

    Raises
    ------
    PresetUnusable
        When a statement is not marked, is called verified without a source, or a target has no kind.
    """
    unknown = set(content) - {*FACTS, "name", "aliases", "input_type", "targets", "pitfalls"}
    if unknown or content.get("name") != name:
        raise PresetUnusable(f"unknown entries {sorted(unknown)}, or another name", file=f"{name}.yaml")
    return DatasetPreset(
        name=name,
        aliases=tuple(content.get("aliases", ())),
        input_type=content.get("input_type", "auto"),
        facts={key: _fact(content[key], f"{name}.yaml: {key}") for key in FACTS if key in content},
        targets=tuple(_target(entry, f"{name}.yaml: targets") for entry in content.get("targets", ())),
        pitfalls=tuple(_fact(entry, f"{name}.yaml: pitfalls") for entry in content.get("pitfalls", ())),
    )


def _fact(entry: Any, place: str) -> Fact:
    if not isinstance(entry, dict) or not isinstance(entry.get("verified"), bool):
        raise PresetUnusable("a statement that is not marked", file=place, expected="verified: true or false")
    if entry["verified"] != bool(entry.get("source")):
        raise PresetUnusable(
            "a source without verification, or the reverse", file=place, expected="a source for what is verified"
        )
    return Fact(entry.get("value"), entry["verified"], entry.get("source"))


def _target(entry: Any, place: str) -> PresetTarget:
    fact = _fact(entry, place)
    if entry.get("kind") not in KINDS or not entry.get("column"):
        raise PresetUnusable("a target without column or kind", file=place, expected=" or ".join(KINDS))
    return PresetTarget(entry["column"], entry["kind"], tuple(entry.get("classes", ())), fact)


# --- on the command line ----------------------------------------------------------------------------------------


def apply(namespace: Namespace, preset: DatasetPreset) -> None:
    """Fill targets, their kind and grouping of parsed arguments with verified facts, where the user states none.

    ``--preset`` (a benchmark task) names its own target and is left alone. The site column is never filled in:
    leaving sites out is another question than the default one.
    """
    if namespace.input_type == "auto":
        namespace.input_type = preset.input_type
    if not namespace.target and namespace.preset is None:
        usable = [target for target in preset.targets if target.fact.verified]
        namespace.target = [target.column for target in usable]
        kinds = {target.kind for target in usable}
        if namespace.target_kind is None and len(kinds) == 1:
            (namespace.target_kind,) = kinds
    if namespace.group_by is None:
        namespace.group_by = preset.stated("family")


def listing() -> Iterable[tuple[str, str, str]]:
    """Name, input type and what it is, for each preset."""
    return [(preset.name, preset.input_type, str(preset.facts["title"])) for preset in map(_read, names())]


def described(preset: DatasetPreset) -> str:
    """Everything that a preset says, a line a statement, and what its marks mean."""
    lines = [preset.name + (f" (also {', '.join(preset.aliases)})" if preset.aliases else "")]
    lines.append(f"  input type: {preset.input_type}")
    lines += [f"  {key}: {fact}{_where(fact)}" for key, fact in preset.facts.items() if fact.value is not None]
    for target in preset.targets:
        classes = f", {'/'.join(target.classes)}" if target.classes else ""
        mark = "" if target.fact.verified else " (unverified)"
        lines.append(f"  target: {target.column} ({target.kind}{classes}){mark}{_where(target.fact)}")
    lines += [f"  pitfall: {fact}{_where(fact)}" for fact in preset.pitfalls]
    return "\n".join([*lines, MARKS])


def _where(fact: Fact) -> str:
    return f" [{fact.source}]" if fact.source else ""
