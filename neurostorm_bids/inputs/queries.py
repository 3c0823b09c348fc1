"""Which files are asked for: the queries of ``io_spec.json``, the description label and the filter file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from neurostorm_bids.errors import FilterUnusable
from neurostorm_bids.inputs.names import ALIASES, Query, grammar, io_spec

ROLES = ("bold", "mask", "boldref", "confounds", "bold_transform", "anat_transform", "events", "surface")


@dataclass(frozen=True)
class Queries:
    """Alternatives of each role, the preferred one first, and what a filter file says of it.

    ``filters`` stay apart from ``alternatives``, so that "there is none" and "you filtered it away" can be told apart.
    """

    alternatives: Mapping[str, tuple[Query, ...]]
    filters: Mapping[str, Query]

    def wanted(self, role: str) -> tuple[Query, ...]:
        """Queries of a role with the user's filters on top."""
        extra = self.filters.get(role, {})
        return tuple({**query, **extra} for query in self.alternatives[role])


def make_queries(desc: str, filter_file: Path | None) -> Queries:
    """Queries for BOLD images labelled ``desc-<desc>``, narrowed by a ``--bids-filter-file``.

    Raises
    ------
    FilterUnusable
        When the file is no JSON of ``{query: {entity: value}}`` or names an entity that does not exist.
    """
    alternatives = {
        role: tuple(MappingProxyType(_filled(query, desc)) for query in io_spec()["queries"][role]) for role in ROLES
    }
    return Queries(MappingProxyType(alternatives), read_filters(filter_file) if filter_file else MappingProxyType({}))


def _filled(query: dict[str, Any], desc: str) -> dict[str, Any]:
    return {entity: desc if value == "{desc}" else value for entity, value in query.items()}


def read_filters(path: Path) -> Mapping[str, Query]:
    """Filters of a ``--bids-filter-file``; queries that are not ours (t1w, fmap, ...) are left out.

    ``null`` asks for an absent entity, ``"*"`` for any value, a list for one of several.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _unusable(path, f"cannot be read as JSON: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(query, dict) for query in content.values()):
        raise _unusable(path, "is not a table of queries")
    return MappingProxyType({role: _named(path, role, content[role]) for role in ROLES if role in content})


def _named(path: Path, role: str, query: dict[str, Any]) -> Query:
    known = {name for name, _ in grammar()}
    named = {ALIASES.get(entity, entity): value for entity, value in query.items()}
    for entity, value in named.items():
        if entity not in known:
            raise _unusable(path, f"query {role!r} names {entity!r}, which is no BIDS entity")
        if not _is_value(value):
            raise _unusable(path, f"query {role!r} asks for {entity} {value!r}")
    return MappingProxyType({entity: _without_prefix(entity, value) for entity, value in named.items()})


def _is_value(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_value(one) for one in value if not isinstance(one, list)) and len(value) > 0
    return value is None or (isinstance(value, (str, int)) and not isinstance(value, bool))


def _without_prefix(entity: str, value: Any) -> Any:
    prefix = {"subject": "sub-", "session": "ses-", "task": "task-"}.get(entity)
    if isinstance(value, list):
        return [_without_prefix(entity, one) for one in value]
    return value.removeprefix(prefix) if prefix and isinstance(value, str) else value


def _unusable(path: Path, fault: str) -> FilterUnusable:
    return FilterUnusable(
        fault,
        file=path,
        expected='{"bold": {"task": "rest", "run": [1, 2], "acquisition": null}}, with null for absent and "*" for any',
        remedy="Mend the file of --bids-filter-file",
    )
