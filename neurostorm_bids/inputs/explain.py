"""Why a run holds no volume that can be used, and what the user can do about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from neurostorm_bids.errors import NeurostormError, RunUnusable
from neurostorm_bids.inputs.groups import Group
from neurostorm_bids.inputs.images import asked
from neurostorm_bids.inputs.names import Query
from neurostorm_bids.inputs.presence import not_fetched
from neurostorm_bids.inputs.queries import Queries
from neurostorm_bids.inputs.tree import File

USABLE_SPACE = "--output-spaces MNI152NLin6Asym:res-2"
SHOWN = 3  # files named for one run
VOLUME = Query.of({"datatype": "func", "suffix": "bold", "extension": [".nii.gz", ".nii"]})


def no_volume(group: Group, queries: Queries, desc: str) -> RunUnusable:
    """The error for a run without a BOLD volume labelled ``desc-<desc>``."""
    volumes = [file for file in group.files if VOLUME.matches(file.entities)]
    labels = sorted({file.entities.get("desc", "none") for file in volumes if "echo" not in file.entities} - {desc})
    if labels:
        remedy = f"Choose with --desc {labels[0]}, or name the dataset with desc-{desc} with --derivatives"
        return _error(group, f"no desc-{desc} volume", f"found desc {', '.join(labels)}", remedy)
    if volumes:
        return _error(
            group,
            "only single echoes",
            "the combined run is missing",
            "Run fMRIPrep again with all echoes, or choose one echo with --bids-filter-file",
        )
    surfaces = asked(group.files, queries.unfiltered["surface"])
    if surfaces:
        spaces = ", ".join(sorted({_surface(file) for file in surfaces}))
        return _error(
            group,
            "only surface data",
            f"found {spaces}; the model reads volumes",
            f"Run fMRIPrep again with {USABLE_SPACE}",
        )
    return _unfinished(group, queries)


def _unfinished(group: Group, queries: Queries) -> RunUnusable:
    if asked(group.files, queries.unfiltered["confounds"]):
        return _error(
            group, "no preprocessed volume", "found confounds alone", f"Run fMRIPrep again with {USABLE_SPACE}"
        )
    return _error(
        group,
        "no preprocessed volume and no confounds",
        "this is what fMRIPrep writes with --level minimal",
        f"Run fMRIPrep again with --level full {USABLE_SPACE}",
    )


def _surface(file: File) -> str:
    name = file.path.rpartition("/")[2]
    space = f"space-{file.entities['space']} " if "space" in file.entities else ""
    return f"{space}{name.partition('.')[2]}"


def _error(group: Group, fault: str, found: str, remedy: str) -> RunUnusable:
    folder = group.files[0].path.rpartition("/")[0]
    return RunUnusable(f"{group.name} has {fault} ({found})", file=folder, remedy=remedy)


def no_functional_files(participant: str, folders: Sequence[Path]) -> NeurostormError:
    """The error for a participant without any functional file."""
    bare = [folder for folder in folders if folder.is_dir() and not any(folder.iterdir())]
    if bare and (bare[0].parent / ".gitmodules").is_file():
        return not_fetched(bare[0])
    return RunUnusable(
        f"sub-{participant} has no functional files (anatomical outputs only, or none)",
        file=", ".join(str(folder) for folder in folders),
        expected="a func folder",
        remedy="Run fMRIPrep without --anat-only, or leave this participant out with --participant-label",
    )


def all_faulty(group: Group, faults: Iterable[NeurostormError]) -> RunUnusable:
    """The error for a run whose volumes are all there by name and cannot be read."""
    faults = list(faults)
    if len(faults) == 1:
        (fault,) = faults
        return RunUnusable(fault.fault, file=fault.file, expected=fault.expected, remedy=fault.remedy)
    first = faults[0]
    more = f" and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    paths = ", ".join(str(fault.file) for fault in faults[:SHOWN]) + more
    return RunUnusable(
        f"{group.name} has no usable image: {first.fault}", file=paths, expected=first.expected, remedy=first.remedy
    )
