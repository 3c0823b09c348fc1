"""Which files are asked for: the queries of ``io_spec.json``, the description label and the filter file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurostorm_bids.errors import FilterUnusable
from neurostorm_bids.inputs.names import ALIASES, Query, grammar, io_spec
from neurostorm_bids.inputs.sidecars import parse_json

ROLES = ("bold", "mask", "boldref", "confounds", "bold_transform", "anat_transform", "events", "surface")
WITHIN_RUN = ("echo", "part")  # chosen image by image, not run by run

Filter = Mapping[str, Any]


@dataclass(frozen=True)
class Queries:
    """What is asked for each role, as alternatives of which the preferred one comes first.

    ``unfiltered`` leaves out the user's filter file, so that "there is none" and "you filtered it away" can be told
    apart; ``runs`` is that part of the filter on BOLD images that tells runs apart.
    """

    wanted: Mapping[str, tuple[Query, ...]]
    unfiltered: Mapping[str, tuple[Query, ...]]
    runs: Query
    is_filtered: bool


def make_queries(desc: str, filter_file: Path | None) -> Queries:
    """Queries for BOLD images labelled ``desc-<desc>``, narrowed by a ``--bids-filter-file``.

    Raises
    ------
    FilterUnusable
        When the file is no JSON of ``{query: {entity: value}}`` or names an entity that does not exist.
    """
    filters = read_filters(filter_file) if filter_file is not None else {}
    stated = {role: [_filled(query, desc) for query in io_spec()["queries"][role]] for role in ROLES}
    of_runs = {name: value for name, value in filters.get("bold", {}).items() if name in io_spec()["run_entities"]}
    return Queries(
        wanted={role: _compiled(queries, filters.get(role, {})) for role, queries in stated.items()},
        unfiltered={role: _compiled(queries, {}) for role, queries in stated.items()},
        runs=Query.of({name: value for name, value in of_runs.items() if name not in WITHIN_RUN}),
        is_filtered=bool(filters),
    )


def _compiled(queries: Sequence[Filter], filters: Filter) -> tuple[Query, ...]:
    return tuple(Query.of({**query, **filters}) for query in queries)


def _filled(query: Filter, desc: str) -> Filter:
    return {entity: desc if value == "{desc}" else value for entity, value in query.items()}


def read_filters(path: Path) -> dict[str, Filter]:
    """Filters of a ``--bids-filter-file``; queries that are not ours (t1w, fmap, ...) are left out.

    ``null`` asks for an absent entity, ``"*"`` for any value, a list for one of several.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise _unusable(path, f"cannot be read as JSON: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(query, dict) for query in content.values()):
        raise _unusable(path, "is not a table of queries")
    return {role: _named(path, role, content[role]) for role in ROLES if role in content}


def _named(path: Path, role: str, query: Filter) -> Filter:
    known = {name for name, _ in grammar()}
    named = {ALIASES.get(entity, entity): value for entity, value in query.items()}
    for entity, value in named.items():
        if entity not in known:
            raise _unusable(path, f"query {role!r} names {entity!r}, which is no BIDS entity")
        if not _is_value(value):
            raise _unusable(path, f"query {role!r} asks for {entity} {value!r}")
    return {entity: _without_prefix(entity, value) for entity, value in named.items()}


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
