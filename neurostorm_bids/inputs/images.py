"""The images of a run: a BOLD volume in each space with the mask and the reference that belong to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from neurostorm_bids.errors import NeurostormError, RunUnusable
from neurostorm_bids.inputs.groups import Group
from neurostorm_bids.inputs.names import Query, canonical
from neurostorm_bids.inputs.presence import fault_of
from neurostorm_bids.inputs.queries import Queries
from neurostorm_bids.inputs.runs import BoldImage
from neurostorm_bids.inputs.spaces import space_of
from neurostorm_bids.inputs.tree import File

Place = tuple[str, str | None]  # space and resolution


@dataclass(frozen=True)
class Images:
    """Usable images of a run with the files they came from, and the faults of the others."""

    images: tuple[BoldImage, ...]
    files: tuple[File, ...]
    faults: tuple[NeurostormError, ...] = ()
    warnings: tuple[str, ...] = ()


def place_of(file: File) -> Place:
    """Space and resolution of an image; ``res-2`` and ``res-02`` are one."""
    resolution = file.entities.get("res")
    return space_of(file.entities), canonical("res", resolution) if resolution is not None else None


def asked(files: Iterable[File], alternatives: Sequence[Query]) -> list[File]:
    """Files that match one of the alternatives, those of an earlier alternative first."""
    files = list(files)
    return [file for query in alternatives for file in files if query.matches(file.entities)]


def nearest(file: File, candidates: Sequence[File]) -> File | None:
    """The candidate that fits best: of the same dataset, sound, compressed, and first in order."""
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    return min(candidates, key=lambda one: (one.rank != file.rank, _is_faulty(one), one.path.endswith(".nii")))


def _is_faulty(file: File) -> bool:
    return fault_of(file.path) is not None


def images_of(group: Group, volumes: Sequence[File], queries: Queries) -> Images:
    """Images of a run from its BOLD volumes.

    Raises
    ------
    RunUnusable
        When two volumes claim to be the same image, or two datasets the same run.
    """
    _check_one_dataset(group, volumes)
    places: dict[Place, list[File]] = defaultdict(list)
    for file in volumes:
        places[place_of(file)].append(file)
    images, files, faults, warnings = [], [], [], []
    for place, rivals in places.items():
        file, note = _the_one(group, rivals)
        here = [one for one in group.files if place_of(one) == place]
        mask = nearest(file, asked(here, queries.wanted["mask"]))
        reference = nearest(file, asked(here, queries.wanted["boldref"]))
        problems = [fault for one in (file, mask) if one is not None and (fault := fault_of(one.path))]
        faults += problems
        warnings += note
        if not problems:
            images.append(_image(file, place, mask, reference))
            files.append(file)
    return Images(tuple(images), tuple(files), tuple(faults), tuple(warnings))


def _check_one_dataset(group: Group, volumes: Sequence[File]) -> None:
    first_of = {file.rank: file.path for file in reversed(volumes)}
    if len(first_of) > 1:
        raise RunUnusable(
            f"{group.name} is in {len(first_of)} datasets: {', '.join(first_of[rank] for rank in sorted(first_of))}",
            expected="each run in one dataset",
            remedy="Name one of them with --derivatives",
        )


def _the_one(group: Group, rivals: Sequence[File]) -> tuple[File, list[str]]:
    if len(rivals) == 1:
        return rivals[0], []
    stems = {file.path.removesuffix(".gz").removesuffix(".nii") for file in rivals}
    if len(stems) > 1:
        raise RunUnusable(
            f"{group.name} has {len(rivals)} volumes in one space: {', '.join(file.path for file in rivals)}",
            expected="one",
            remedy="Remove what an earlier call of the pipeline left, or choose with --bids-filter-file",
        )
    chosen = min(rivals, key=lambda file: (_is_faulty(file), file.path.endswith(".nii")))
    return chosen, [f"{chosen.path}: there is a .nii and a .nii.gz of this image; this one is read"]


def _image(file: File, place: Place, mask: File | None, reference: File | None) -> BoldImage:
    return BoldImage(
        bold=Path(file.path),
        space=place[0],
        mask=Path(mask.path) if mask else None,
        boldref=Path(reference.path) if reference and not _is_faulty(reference) else None,
        resolution=file.entities.get("res"),
        desc=file.entities.get("desc"),
    )
