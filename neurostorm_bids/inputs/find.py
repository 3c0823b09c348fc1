"""From settings to runs: locate the datasets, read each participant, tell all faults together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from neurostorm_bids.errors import (
    DatabaseUnusable,
    DatasetMissing,
    FileUnreadable,
    NeurostormError,
    NothingSelected,
    NoUsableRun,
    UsageError,
)
from neurostorm_bids.inputs import dcan, fmriprep, hcp, ukb
from neurostorm_bids.inputs.datasets import Scope, describe
from neurostorm_bids.inputs.folders import holds
from neurostorm_bids.inputs.queries import make_queries
from neurostorm_bids.inputs.reader import Found, Reader, Request
from neurostorm_bids.inputs.runs import BoldRun, Source
from neurostorm_bids.inputs.sidecars import Shared
from neurostorm_bids.inputs.validation import validate_raw
from neurostorm_bids.settings import Settings

READERS: Mapping[str, Reader] = MappingProxyType(
    {
        "fmriprep": fmriprep.READER,
        "nibabies": fmriprep.READER,
        "hcp": hcp.READER,
        "dcan": dcan.READER,
        "ukb": ukb.READER,
    }
)
TELLING = (  # what lies below a participant's folder, for "auto"; whatever has none of these is named as fMRIPrep's
    ("ukb", ukb.LAYOUT.places),
    ("dcan", dcan.LAYOUT.places[:1]),
    ("hcp", hcp.LAYOUT.places),
)
PEEKED = 20  # folders of a dataset that are looked into
SHOWN = 5  # labels or faults told one by one


@dataclass(frozen=True)
class Selection:
    """What was found for a call.

    ``runs`` can be used; ``rejected`` holds an error for each run that was asked for and cannot be; ``warnings``
    concern the dataset or the selection (those of a run are in the run).
    """

    runs: tuple[BoldRun, ...]
    rejected: tuple[NeurostormError, ...]
    warnings: tuple[str, ...]
    sources: tuple[Source, ...]
    raw: Path | None = None

    @property
    def dataset(self) -> Source:
        """The derivative dataset that was named first."""
        return self.sources[0]


def find_runs(settings: Settings, work_dir: Path | None = None) -> Selection:
    """All runs that the settings ask for, one ``BoldRun`` a scanner run, sorted by name.

    Parameters
    ----------
    settings : Settings
        ``bids_dir`` is an fMRIPrep folder, or a raw dataset with ``derivatives`` named or beneath it, or the output of
        another pipeline (``input_type``).
    work_dir : Path, optional
        Not needed: nothing is cached unless ``bids_database_dir`` is set.

    Raises
    ------
    DatasetMissing, DatasetAmbiguous, DatasetInvalid
        For the dataset as a whole.
    FilterUnusable, DatabaseUnusable, UsageError
        For options that cannot be followed.
    NothingSelected
        When labels and filters leave nothing.
    NoUsableRun
        When runs are there and none can be used; the message tells the faults of all.
    """
    reader = _reader(settings)
    scope = reader.locate(settings.bids_dir, settings.derivatives)
    _check_database(settings, scope)
    is_raw = scope.raw is not None and scope.raw.root == settings.bids_dir
    complaints = validate_raw(settings.bids_dir) if is_raw and not settings.skip_bids_validation else []
    request = make_request(settings, scope)
    participants, warnings = _participants(settings, scope, reader)
    found = [_read(reader, participant, request) for participant in participants]
    return _selection(settings, scope, found, [*complaints, *warnings])


def _read(reader: Reader, participant: str, request: Request) -> Found:
    try:
        return reader.read(participant, request)
    except OSError as problem:  # a folder that may not be listed stops its participant, not the others
        place = problem.filename or f"sub-{participant}"
        fault = FileUnreadable(f"cannot be read: {problem.strerror}", file=place, remedy="Check its permissions")
        return Found(rejected=(fault,))


def make_request(settings: Settings, scope: Scope) -> Request:
    """What readers are asked."""
    raw = scope.raw.root if scope.raw is not None else None
    desc = settings.desc.removeprefix("desc-")
    return Request(
        scope=scope,
        queries=make_queries(desc, settings.bids_filter_file),
        desc=desc,
        sessions=tuple(label.removeprefix("ses-") for label in settings.session_label),
        tasks=tuple(label.removeprefix("task-") for label in settings.task_id),
        database_dir=settings.bids_database_dir,
        sidecars=tuple(Shared(dataset.root, "bold.json") for dataset in scope.derivatives),
        raw_sidecars=Shared(raw, "bold.json") if raw is not None else None,
        raw_events=Shared(raw, "events.tsv") if raw is not None else None,
    )


def _reader(settings: Settings) -> Reader:
    input_type = settings.input_type
    if input_type == "auto":
        named = [path for _, path in settings.derivatives]
        input_type = detect(settings.bids_dir, *(named or _beneath(settings.bids_dir)))
    if input_type not in READERS:
        raise UsageError(
            f"--input-type {input_type} cannot be read",
            expected=" or ".join(("auto", *READERS)),
            remedy="Choose one of these",
        )
    return READERS[input_type]


def detect(*roots: Path) -> str:
    """Input type of the first of several folders whose layout tells it: "ukb", "dcan", "hcp", else "fmriprep"."""
    found = (
        name
        for root in roots
        if not _says_its_pipeline(root)
        for name, places in TELLING
        if holds(root, places, PEEKED)
    )
    return next(found, "fmriprep")


def _beneath(raw: Path) -> list[Path]:
    """Derivatives of a raw dataset, where none of them says that it is fMRIPrep's or another known pipeline's."""
    folder = raw / "derivatives"
    found = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    known = any(path.name.startswith("fmriprep") or _says_its_pipeline(path) for path in found)
    return [] if known else found


def _says_its_pipeline(root: Path) -> bool:
    """Whether the dataset's own description spares the look into its folders."""
    return (root / "dataset_description.json").is_file() and describe(root).role is not None


def _check_database(settings: Settings, scope: Scope) -> None:
    roots = [dataset.root for dataset in (*scope.derivatives, *([scope.raw] if scope.raw else []))]
    folder = settings.bids_database_dir
    for root in [settings.bids_dir, *roots]:
        if folder is not None and folder.resolve().is_relative_to(root.resolve()):
            raise DatabaseUnusable(
                "lies inside the input",
                file=folder,
                expected="a folder outside of it, since the input is never written to",
                remedy="Name another --bids-database-dir",
            )


def _participants(settings: Settings, scope: Scope, reader: Reader) -> tuple[list[str], list[str]]:
    roots = [dataset.root for dataset in scope.derivatives]
    labels = [label.removeprefix("sub-") for label in settings.participant_label]
    asked = [label for label in dict.fromkeys(labels) if any(reader.folder(root, label).is_dir() for root in roots)]
    if labels and asked:
        there = set(asked)  # a biobank's worth of labels may be asked for
        absent = [label for label in dict.fromkeys(labels) if label not in there]
        return sorted(asked), [_absent("participant", absent, roots)] if absent else []
    everybody = sorted({label for root in roots for label in reader.participants(root)})
    if labels:
        raise NothingSelected(
            f"has none of the participants {_some(labels)}",
            file=roots[0],
            expected=f"one of {_some(everybody)}" if everybody else "folders named sub-<label>",
            remedy="Check --participant-label",
        )
    if not everybody:
        raise DatasetMissing(
            "has no participants",
            file=roots[0],
            expected="folders named sub-<label>",
            remedy="Name the folder that holds them as BIDS_DIR, or with --derivatives",
        )
    return everybody, []


def _absent(kind: str, labels: Sequence[str], roots: Sequence[Path]) -> str:
    return f"no {kind} {_some(labels)} in {roots[0]}"


def _some(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else ""
    return ", ".join(labels[:SHOWN]) + more


# --- the answer -------------------------------------------------------------------------------------------------


def _selection(settings: Settings, scope: Scope, found: Sequence[Found], warnings: list[str]) -> Selection:
    runs = tuple(run for one in found for run in one.runs)
    rejected = tuple(fault for one in found for fault in one.rejected)
    roots = [dataset.root for dataset in scope.derivatives]
    if not runs and rejected:
        raise none_usable(rejected, roots[0])
    if not runs:
        raise _nothing_selected(settings, found, roots[0])
    warnings += [warning for one in found for warning in one.warnings]
    for kind, asked, seen in (
        ("session", settings.session_label, {run.session for run in runs}),
        ("task", settings.task_id, {run.entities.get("task") for run in runs}),
    ):
        absent = [label for label in asked if label.removeprefix("ses-").removeprefix("task-") not in seen]
        warnings += [f"no usable run of {kind} {_some(absent)} in {roots[0]}"] if absent else []
    warnings += _colliding(run.name for run in runs)
    sources = tuple(dataset.source for dataset in scope.derivatives)
    return Selection(runs, rejected, (*scope.warnings, *warnings), sources, scope.raw.root if scope.raw else None)


def _colliding(names: Iterable[str]) -> list[str]:
    """Runs whose results a file system that ignores case (macOS, Windows) would take for one another's."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(name.lower(), []).append(name)
    return [
        f"{' and '.join(same)} differ in case alone: on a file system that ignores case their results would replace "
        "each other. Rename one of them"
        for same in alike.values()
        if len(same) > 1
    ]


def none_usable(rejected: Iterable[NeurostormError], root: Path) -> NoUsableRun:
    """One error for many: each kind of fault once, with its count, an example and the remedy."""
    kinds: dict[str, list[NeurostormError]] = {}
    for fault in rejected:
        kinds.setdefault(fault.expected or fault.remedy or fault.fault, []).append(fault)
    told = [
        f"({n}) {faults[0]}" + (f" The same holds for {len(faults) - 1} more." if len(faults) > 1 else "")
        for n, faults in enumerate(kinds.values(), 1)
    ]
    more = f" and {len(told) - SHOWN} other faults" if len(told) > SHOWN else ""
    return NoUsableRun(f"no run can be used: {' '.join(told[:SHOWN])}{more}", file=root)


def _nothing_selected(settings: Settings, found: Sequence[Found], root: Path) -> NothingSelected:
    options = [
        option
        for option, value in (
            ("--session-label", settings.session_label),
            ("--task-id", settings.task_id),
            ("--bids-filter-file", settings.bids_filter_file),
        )
        if value
    ]
    left_out = [name for one in found for name in one.unselected]
    return NothingSelected(
        f"has no run that {' and '.join(options) or 'the queries'} would select",
        file=root,
        expected=f"one of {_some(left_out)}" if left_out else "functional runs",
        remedy=f"Check {' and '.join(options)}" if options else None,
    )
