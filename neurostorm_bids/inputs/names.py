"""File names to entities, by PyBIDS' grammar, and entities against a query.

PyBIDS knows which entities there are and how each looks in a file name; ``data/io_spec.json`` adds the two
that it lacks (``cohort``, ``hash``). A query is stated as a table of entity to wanted value: a text, a list of
texts, ``None`` (the entity is absent) or ``"*"`` (present, whatever its value).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

Entities = dict[str, str]

PRESENT = "*"
NUMBERED = frozenset({"run", "echo", "res", "cohort", "chunk"})  # 1 and 01 are the same one

# PyBIDS' names on the left are the ones used throughout; filter files may also use what stands in file names
ALIASES = MappingProxyType(
    {
        "sub": "subject",
        "ses": "session",
        "acq": "acquisition",
        "ce": "ceagent",
        "rec": "reconstruction",
        "dir": "direction",
        "resolution": "res",
        "density": "den",
        "mod": "modality",
        "seg": "segmentation",
    }
)


@cache
def io_spec() -> Mapping[str, Any]:
    """The queries and the pipelines, as ``data/io_spec.json`` states them."""
    return MappingProxyType(json.loads(files("neurostorm_bids").joinpath("data/io_spec.json").read_text("utf-8")))


@cache
def asked_suffixes() -> frozenset[str]:
    """Suffixes that some query asks for ("bold", "xfm", ...)."""
    asked = [query["suffix"] for alternatives in io_spec()["queries"].values() for query in alternatives]
    return frozenset(suffix for one in asked for suffix in (one if isinstance(one, list) else [one]) if suffix)


@cache
def grammar() -> tuple[tuple[str, Any], ...]:
    """Name and compiled pattern of every entity that PyBIDS or ``io_spec.json`` knows."""
    from bids.layout import Config

    extra = Config(name="neurostorm", entities=[dict(entity) for entity in io_spec()["entities"]])
    entities: dict[str, Any] = {}
    for config in (Config.load("bids"), Config.load("derivatives"), extra):
        entities.update(config.entities)
    return tuple((name, entity.regex) for name, entity in entities.items() if name not in ("fmap", "scans"))


def is_bids_name(name: str) -> bool:
    """Whether a file name is made of entities, a suffix and an extension: others would be read in part only.

    >>> is_bids_name("sub-01_task-rest_bold.nii.gz"), is_bids_name("sub-01_task-at rest_bold.nii.gz")
    (True, False)
    """
    return _NAME.fullmatch(name) is not None


_NAME = re.compile(r"(?:[0-9a-zA-Z]+-[0-9a-zA-Z+]+_)+[0-9a-zA-Z]+(?:-[0-9a-zA-Z+]+)?(?:\.[0-9a-zA-Z]+)+")


def parse_name(name: str, datatype: str | None = None) -> Entities:
    """Entities of a file name, values as written (``run`` keeps its zeros).

    Parameters
    ----------
    name : str
        File name without folder.
    datatype : str, optional
        Name of the folder ("func", "anat").

    Examples
    --------
    >>> parse_name("sub-01_task-rest_run-01_bold.nii.gz", "func")["run"]
    '01'
    """
    head, _, rest = name.partition("_")
    if not head.startswith("sub-") or not rest:
        return dict(_parse(name, datatype))
    return {"subject": head.removeprefix("sub-"), **_parse(f"_{rest}", datatype)}


@lru_cache(maxsize=8192)
def _parse(name: str, datatype: str | None) -> Mapping[str, str]:
    # participants of one study share all but the label of their names, so most names are read only once
    path = f"/{datatype}/{name}" if datatype else f"/{name}"
    found = ((entity, pattern.search(path)) for entity, pattern in grammar())
    return MappingProxyType({entity: match.group(1) for entity, match in found if match is not None})


def canonical(entity: str, value: object) -> str:
    """A value such that equal things compare equal: ``run-1`` and ``run-01``, ``res-2`` and ``res-02``.

    >>> canonical("run", "01"), canonical("task", "01")
    ('1', '01')
    """
    text = str(value)
    if entity in NUMBERED and text.isascii() and text.isdigit():
        return text.lstrip("0") or "0"  # not by way of a number: Python reads no longer ones than 4300 digits
    return text


@dataclass(frozen=True)
class Condition:
    """What one entity may be."""

    entity: str
    may_be_absent: bool
    may_be_anything: bool
    values: frozenset[str]  # canonical

    @classmethod
    def of(cls, entity: str, wanted: Any) -> Condition:
        """From a text, a number, ``None``, ``"*"``, or a list of these."""
        options = wanted if isinstance(wanted, (list, tuple)) else [wanted]
        values = frozenset(canonical(entity, option) for option in options if option is not None)
        return cls(entity, None in options, PRESENT in values, values)

    def holds(self, value: str | None) -> bool:
        """Whether a file with this value (None: without the entity) is wanted."""
        if value is None:
            return self.may_be_absent
        return self.may_be_anything or value in self.values or canonical(self.entity, value) in self.values


@dataclass(frozen=True)
class Query:
    """Conditions that a file has to meet, all of them."""

    conditions: tuple[Condition, ...]

    @classmethod
    def of(cls, wanted: Mapping[str, Any]) -> Query:
        """From a table of entity to wanted value."""
        return cls(tuple(Condition.of(entity, value) for entity, value in wanted.items()))

    def matches(self, entities: Mapping[str, str]) -> bool:
        """Whether a file's entities meet every condition.

        >>> Query.of({"run": [1, 2], "echo": None}).matches({"task": "rest", "run": "01"})
        True
        """
        return all(condition.holds(entities.get(condition.entity)) for condition in self.conditions)


def is_part_of(entities: Mapping[str, str], whole: Mapping[str, str], *, but: Iterable[str] = ()) -> bool:
    """Whether all entities of one file occur, with the same value, in another's (BIDS inheritance)."""
    return all(
        entity in but or (entity in whole and canonical(entity, value) == canonical(entity, whole[entity]))
        for entity, value in entities.items()
    )
