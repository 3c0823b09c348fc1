"""Functional files of one participant, grouped by scanner run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from neurostorm_bids.inputs.names import Entities, canonical, io_spec
from neurostorm_bids.inputs.tree import File

RunKey = tuple[str | None, ...]
WITHIN_RUN = ("echo",)  # echoes are several images of one run


@dataclass(frozen=True)
class Group:
    """All functional files of one scanner run, whatever their space, echo or kind."""

    key: RunKey
    files: tuple[File, ...]

    @property
    def entities(self) -> Entities:
        """Entities of the run, as the first of its files writes them."""
        return run_entities(self.files[0].entities)

    @property
    def name(self) -> str:
        """File name prefix of the run: ``sub-01_task-rest_run-1``."""
        return "_".join(f"{short}-{value}" for short, value in short_names(self.entities).items() if short != "echo")

    @property
    def part(self) -> str | None:
        """``phase``, ``real`` or ``imag``; None for magnitude."""
        return self.key[-1]


def run_entities(entities: Entities) -> Entities:
    """Those entities of a file that tell scanner runs apart, in BIDS order."""
    return {name: entities[name] for name in io_spec()["run_entities"] if name in entities}


def short_names(entities: Entities) -> dict[str, str]:
    """Entities under the keys that file names use: ``{"sub": "01", "task": "rest"}``."""
    return {io_spec()["run_entities"][name]: value for name, value in entities.items()}


def run_key(entities: Entities) -> RunKey:
    """What all files of a run share: ``run-1`` and ``run-01`` are one run, ``part-mag`` is the same as no part."""
    part = entities.get("part")
    names = (name for name in io_spec()["run_entities"] if name not in (*WITHIN_RUN, "part"))
    values = tuple(canonical(name, entities[name]) if name in entities else None for name in names)
    return (*values, None if part == "mag" else part)


def grouped(files: Iterable[File]) -> list[Group]:
    """Files as groups, in order of their names."""
    groups: dict[RunKey, list[File]] = defaultdict(list)
    for file in files:
        groups[run_key(file.entities)].append(file)
    return [Group(key, tuple(members)) for key, members in groups.items()]


def is_concatenation(group: Group, others: Iterable[Group]) -> bool:
    """Whether a group without ``run-`` is XCP-D's concatenation of the others, and no scanner run of its own."""
    return "run" not in group.entities and any(
        other.key != group.key and _without_run(other.entities) == _without_run(group.entities) for other in others
    )


def _without_run(entities: Entities) -> Entities:
    return {name: value for name, value in entities.items() if name not in ("run", "direction")}
