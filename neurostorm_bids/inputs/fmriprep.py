"""Runs of fMRIPrep 1.5 and later, and of pipelines that name files as it does (NiBabies, XCP-D, fMRIPost-AROMA)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from neurostorm_bids.errors import NeurostormError, RunUnusable
from neurostorm_bids.inputs.datasets import locate
from neurostorm_bids.inputs.explain import all_faulty, no_functional_files, no_volume
from neurostorm_bids.inputs.groups import Group, grouped, is_concatenation, run_entities, short_names
from neurostorm_bids.inputs.images import Images, asked, images_of, nearest
from neurostorm_bids.inputs.names import io_spec, is_bids_name
from neurostorm_bids.inputs.presence import fault_of
from neurostorm_bids.inputs.queries import WITHIN_RUN
from neurostorm_bids.inputs.reader import Found, Reader, Request
from neurostorm_bids.inputs.runs import BoldRun, Source, TransformFile
from neurostorm_bids.inputs.sidecars import Metadata, mean_removed, merged, repetition_time, start_time
from neurostorm_bids.inputs.transforms import anatomical, transforms_of
from neurostorm_bids.inputs.tree import VOLUMES, File, participant_files, participant_folder, participants_of

INVERTED_REFERENCES = "23.2.0"
WARN_INVERTED = (
    "fMRIPrep 23.2.0 wrote masks and references in template spaces through transforms in the wrong order "
    "(fmriprep#3237); run 23.2.1 or later, or use native BOLD"
)
SPACING = ("RepetitionTime", "VolumeTiming")


@dataclass(frozen=True)
class Participant:
    """Everything that one participant has, in all datasets of the scope."""

    request: Request
    func: tuple[Group, ...]
    misnamed: tuple[RunUnusable, ...]
    anat: dict[str | None, tuple[list[TransformFile], list[str]]]  # by session


def read_participant(participant: str, request: Request) -> Found:
    """Runs of one participant in all datasets of the scope, one ``BoldRun`` a scanner run."""
    person = _gather(participant, request)
    if not person.func and not person.misnamed:
        return _without_runs(participant, request)
    runs: list[BoldRun] = []
    rejected: list[NeurostormError] = [*person.misnamed]
    unselected: list[str] = []
    warnings: list[str] = []
    for group in person.func:
        if _is_concatenation(group, person):
            warnings.append(f"{group.name}: a concatenation of other runs, left out")
            continue
        try:
            run = _run(group, person)
        except NeurostormError as fault:
            rejected.append(fault)
            continue
        if run is None:
            unselected.append(group.name)
        else:
            runs.append(run)
    return Found(tuple(runs), tuple(rejected), tuple(warnings), tuple(unselected))


def _without_runs(participant: str, request: Request) -> Found:
    folders = [participant_folder(dataset.root, participant) for dataset in request.scope.derivatives]
    # a dataset named after the first one lends masks or transforms, and may know more participants
    if request.is_narrowed or not folders[0].is_dir():
        return Found()
    return Found(rejected=(no_functional_files(participant, folders),))


def _gather(participant: str, request: Request) -> Participant:
    found = [
        file
        for rank, dataset in enumerate(request.scope.derivatives)
        for file in participant_files(dataset.root, participant, rank, request.database_dir)
    ]
    files = [file for file in found if is_bids_name(os.path.basename(file.path))]  # noqa: PTH119 - a million names
    groups = tuple(grouped(file for file in files if file.entities["datatype"] == "func"))
    anat = [file for file in files if file.entities["datatype"] == "anat"]
    query = request.queries.wanted["anat_transform"]
    sessions = {group.entities.get("session") for group in groups}
    return Participant(
        request,
        groups,
        _misnamed(found),
        {session: transforms_of(anatomical(anat, session), query) for session in sessions},
    )


def _misnamed(files: Iterable[File]) -> tuple[RunUnusable, ...]:
    """An error for each volume whose name could be taken for that of another run."""
    names = [file.path for file in files if file.path.endswith(VOLUMES)]
    return tuple(
        RunUnusable(
            "its name is no BIDS name",
            file=path,
            expected="entities whose labels are letters and digits (or +), such as task-rest",
            remedy="Rename the files of this run",
        )
        for path in names
        if not is_bids_name(os.path.basename(path))  # noqa: PTH119
    )


def _is_concatenation(group: Group, person: Participant) -> bool:
    pipeline = person.request.scope.derivatives[group.files[0].rank].pipeline
    return pipeline.lower().startswith("xcp") and is_concatenation(group, person.func)


def _run(group: Group, person: Participant) -> BoldRun | None:
    """The run of a group, or None where labels and filters leave it out.

    Raises
    ------
    RunUnusable, SidecarInvalid
        When the run is wanted and cannot be used.
    """
    request = person.request
    if not _is_selected(group, request):
        return None
    volumes = asked(group.files, request.queries.wanted["bold"])
    if not volumes:
        is_lent = all(file.rank > 0 for file in group.files)
        if group.part is not None or is_lent or asked(group.files, request.queries.unfiltered["bold"]):
            return None
        raise no_volume(group, request.queries, request.desc)
    images = images_of(group, volumes, request.queries)
    if not images.images:
        raise all_faulty(group, images.faults)
    return _assembled(group, images, person)


def _is_selected(group: Group, request: Request) -> bool:
    entities = group.entities
    if request.sessions and entities.get("session") not in request.sessions:
        return False
    if request.tasks and entities.get("task") not in request.tasks:
        return False
    return request.queries.runs.matches(entities)


def _assembled(group: Group, images: Images, person: Participant) -> BoldRun:
    request, first = person.request, images.files[0]
    dataset = request.scope.derivatives[first.rank]
    metadata, notes = _metadata(images, request)
    confounds, missing = _confounds(group, first, request)
    transforms, left_out = _transforms(group, person)
    old = dataset.version == INVERTED_REFERENCES and any(image.space.startswith("MNI") for image in images.images)
    desc = images.images[0].desc
    return BoldRun(
        source=_source(dataset.source, desc),
        entities=short_names(run_entities(first.entities)),
        images=images.images,
        confounds=confounds,
        confounds_json=_sidecar(confounds),
        transforms=tuple(transforms),
        events=_events(group, first, request),
        t_r_s=repetition_time(metadata, images.images[0].bold),
        start_time_s=start_time(metadata, images.images[0].bold),
        mean_removed=mean_removed(metadata, desc),
        warnings=(
            *images.warnings,
            *(f"{fault}" for fault in images.faults),
            *notes,
            *missing,
            *left_out,
            *([WARN_INVERTED] if old else []),
        ),
    )


def _source(source: Source, desc: str | None) -> Source:
    known = io_spec()["denoising"].get(desc)
    return replace(source, denoising=known["name"] if known else f"not known (desc-{desc})")


def _metadata(images: Images, request: Request) -> tuple[Metadata, list[str]]:
    """Metadata of the first image that states a repetition time, else of the raw run."""
    notes: list[str] = []
    metadata: Metadata = {}
    for file in images.files:
        shared = request.sidecars[file.rank]
        metadata, faults = merged(shared.applying(_below(file, shared.root), file.entities))
        notes += [f"{fault} Passed over." for fault in faults]
        if any(key in metadata for key in SPACING):
            return metadata, notes
    return {**_raw_metadata(images.files[0], request), **metadata}, notes


def _raw_metadata(file: File, request: Request) -> Metadata:
    if request.raw_sidecars is None:
        return {}
    below = _below(file, request.scope.derivatives[file.rank].root)
    metadata, _ = merged(request.raw_sidecars.applying(below, file.entities, but=WITHIN_RUN))
    # the volumes that the pipeline wrote may start later than those of the scanner; only their spacing carries over
    return {key: value for key, value in metadata.items() if key in SPACING}


def _below(file: File, root: Path) -> str:
    return file.path.rpartition("/")[0].removeprefix(f"{root}/")


def _json_of(path: Path) -> Path:
    return path.with_name(path.name.partition(".")[0] + ".json")


def _sidecar(path: Path | None) -> Path | None:
    sidecar = _json_of(path) if path is not None else None
    return sidecar if sidecar is not None and sidecar.is_file() else None


def _confounds(group: Group, file: File, request: Request) -> tuple[Path | None, list[str]]:
    found = nearest(file, asked(group.files, request.queries.wanted["confounds"]))
    if found is None:
        return None, ["no confounds table: head motion and non-steady-state volumes are not known"]
    fault = fault_of(found.path)
    return (None, [f"{fault} Head motion is not known."]) if fault else (Path(found.path), [])


def _transforms(group: Group, person: Participant) -> tuple[list[TransformFile], list[str]]:
    own, warnings = transforms_of(group.files, person.request.queries.wanted["bold_transform"])
    anat, more = person.anat[group.entities.get("session")]
    return own + anat, warnings + more


def _events(group: Group, first: File, request: Request) -> Path | None:
    below = _below(first, request.scope.derivatives[first.rank].root)
    raw = request.raw_events.applying(below, first.entities, but=WITHIN_RUN)[::-1] if request.raw_events else []
    own = [Path(file.path) for file in asked(group.files, request.queries.wanted["events"])]
    return next((path for path in (*raw, *own) if fault_of(path) is None), None)


READER = Reader(locate, participants_of, participant_folder, read_participant)
