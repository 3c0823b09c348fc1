"""A PyBIDS index on disk, one a participant, for file systems on which listing folders is slow."""

from __future__ import annotations

import hashlib
import re
import shutil
import uuid
import warnings
from functools import cache
from pathlib import Path

from neurostorm_bids.errors import DatabaseUnusable
from neurostorm_bids.inputs.names import asked_suffixes


def indexed_paths(root: Path, participant: str, database_dir: Path) -> list[str]:
    """Paths of a participant's files, from the index where there is one; else it is made.

    An index that exists is used as it is and never renewed: whoever names a folder says that the data do not change.

    Raises
    ------
    DatabaseUnusable
        When the index cannot be read or written.
    """
    from sqlalchemy.exc import SQLAlchemyError

    folder = database_dir / _name(root) / f"sub-{participant}"
    try:
        if not folder.is_dir():
            _make(root / f"sub-{participant}", folder)
        return sorted(_layout(root / f"sub-{participant}", folder).get_files())
    except (OSError, SQLAlchemyError) as problem:
        raise DatabaseUnusable(
            f"the index of sub-{participant} cannot be used: {str(problem).splitlines()[0]}",
            file=folder,
            remedy="Remove this folder, or name another --bids-database-dir",
        ) from None


def _name(root: Path) -> str:
    """One folder a dataset: its name, and its place so that two datasets of one name do not meet."""
    return f"{root.name}-{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:8]}"


def _make(participant: Path, folder: Path) -> None:
    # made aside and renamed, so that a killed call leaves no half index to be reused
    aside = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    _layout(participant, None).save(aside)  # written at once: a commit for each step would take a second a participant
    try:
        aside.rename(folder)
    except OSError:  # another call was faster
        shutil.rmtree(aside)
        if not folder.is_dir():
            raise


@cache
def _left_out() -> tuple[re.Pattern, ...]:
    """What no query asks for: reports, sidecars (read by name), and images of other kinds."""
    asked = "|".join(sorted(asked_suffixes()))
    other = rf"/(?!(?:[^/]*_)?(?:{asked})\.|[^/]*\.func\.gii$)[^/]*\.[^/]+$"
    return re.compile(r"/(figures|log)(/|$)"), re.compile(r"\.json$"), re.compile(other)


def _layout(participant: Path, folder: Path | None):
    from bids.layout import BIDSLayout, BIDSLayoutIndexer

    indexer = BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=list(_left_out()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a participant's folder holds no dataset_description.json
        return BIDSLayout(participant, validate=False, is_derivative=True, database_path=folder, indexer=indexer)
