"""Runs in the clip store: normalised by the participant level's own code, each once for all trainings."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from neurostorm_bids.clips import plan_windows
from neurostorm_bids.errors import (
    EveryClipMoved,
    NeurostormError,
    NoUsableRun,
    OutputNotWritable,
    OutputWriteFailed,
    UsageError,
)
from neurostorm_bids.inputs.runs import BoldRun
from neurostorm_bids.model.config import InputSpec
from neurostorm_bids.model.description import input_to_json
from neurostorm_bids.prepare import PreparedRun, prepare_run
from neurostorm_bids.process import numeric_figures, quality_figures
from neurostorm_bids.resume import fingerprint, input_files
from neurostorm_bids.settings import Settings
from neurostorm_bids.training.clip_store import ClipStore, NormalisedRun, store_key
from neurostorm_bids.training.data import RunRecord
from neurostorm_bids.training.processes import process_rank, started_by_torchrun

DECISIVE = ("normalization", "interpolation", "intensity", "denoise", "min_coverage", "anti_alias", "dummy_scans")
EVERY_S = 10.0  # between lines of progress


@dataclass(frozen=True)
class Stored:
    """Runs that are in the store, by their place in the list that was asked for, and what became of the others."""

    records: Mapping[int, RunRecord]
    keys: Mapping[int, str]
    rejected: tuple[NeurostormError, ...]


def check_storable(settings: Settings) -> None:
    """Refuse settings that cannot be followed in training.

    Raises
    ------
    UsageError
    """
    if settings.preprocessing == "reference":
        raise UsageError("--preprocessing reference gives clips only, no run to train on", remedy="Leave it out")


def store_runs(runs: Sequence[BoldRun], dataset: str, spec: InputSpec, settings: Settings) -> Stored:
    """Have every run in the store; what cannot be prepared is left out and told.

    Parameters
    ----------
    runs : sequence of BoldRun
    dataset : str
        Name of their dataset.
    spec : InputSpec
        Of the model that is trained.
    settings : Settings

    Raises
    ------
    NoUsableRun
        When no run can be prepared.
    """
    store = ClipStore(settings.work_dir / "store", settings.store_precision)
    threshold = settings.fd_threshold_mm  # runs are stored whole: it decides which of their clips are used
    settings = replace(settings, clip_stride=spec.clip_frames, fd_threshold_mm=None)
    records: dict[int, RunRecord] = {}
    keys: dict[int, str] = {}
    rejected: list[NeurostormError] = []
    for number in _shared_out(len(runs), settings):
        run = runs[number]
        try:
            key = key_of(run, spec, settings)
            stored = store.run(key, lambda run=run: normalised(run, spec, settings))  # type: ignore[misc]
            record = RunRecord(stored, run.name, run.participant, dataset, content_of(run), threshold)
            _require_still(record, spec.clip_frames)
        except (OutputNotWritable, OutputWriteFailed):
            raise  # a fault of the disk, not of the run: nothing may be trained without it in silence
        except NeurostormError as error:
            rejected.append(error)
            continue
        keys[number], records[number] = key, record
    if not records:
        faults = "; ".join(str(error) for error in rejected[:3])
        raise NoUsableRun(f"none of the {len(runs)} runs can be used: {faults}", remedy="Mend the first of them")
    return Stored(dict(sorted(records.items())), keys, tuple(rejected))


def _require_still(run: RunRecord, clip_frames: int) -> None:
    if not len(run.starts(clip_frames)):
        raise EveryClipMoved(
            f"{run.name}: every clip has a mean framewise displacement above {run.fd_threshold_mm} mm",
            expected="a clip at or below --fd-threshold",
            remedy="Raise --fd-threshold or leave the run out",
        )


def _shared_out(n: int, settings: Settings) -> Iterator[int]:
    """Numbers of runs; processes that begin together begin in different places, so that they share the work."""
    devices, nodes = started_by_torchrun() or (settings.devices or 1, settings.num_nodes)
    world = devices * nodes
    start = process_rank() * n // world if world > 1 else 0
    told = time.monotonic()
    for done in range(n):
        if time.monotonic() - told > EVERY_S and not settings.quiet:
            print(f"{done} of {n} runs are in the clip store", file=sys.stderr, flush=True)
            told = time.monotonic()
        yield (start + done) % n


def key_of(run: BoldRun, spec: InputSpec, settings: Settings) -> str:
    """What a stored run is called: by its files' content, the input it is made for, and the settings that count."""
    values = asdict(settings)
    return store_key(
        {
            "files": {path.name: fingerprint(path) for path in input_files(run)},
            "input": {name: field["value"] for name, field in input_to_json(spec).items()},
            "settings": {name: values[name] for name in DECISIVE},
            "entities": run.entities,
        }
    )


def content_of(run: BoldRun) -> str:
    """Hash of a run's images, whatever they are called."""
    return store_key({"images": sorted(fingerprint(image.bold) for image in run.images)})


def normalised(run: BoldRun, spec: InputSpec, settings: Settings) -> NormalisedRun:
    """A run as the participant level would embed it, frame by frame."""
    prepared = prepare_run(run, spec, settings)
    statistics = prepared.statistics
    assert prepared.frames is not None, "check_storable refused the other way in"
    # voxels that are 0 in every frame are equal to the background, if it takes the minimum; else they differ from it
    foreground = (statistics.mean_image > 0) | (next(iter(prepared.frames())) != statistics.background)
    return NormalisedRun(
        frames=prepared.frames,
        mask=foreground,
        n_frames=statistics.timing.n_frames,
        background=float(statistics.background),
        onset_s=statistics.timing.onset_s(0),
        step_s=statistics.timing.step_s,
        fd_mm=_displacement(prepared),
        notes={
            **{"run": run.name, "route": prepared.route.kind, "mean": statistics.mean, "std": statistics.std},
            "quality": numeric_figures(quality_figures(prepared)),
        },
    )


def _displacement(prepared: PreparedRun) -> np.ndarray | None:
    """Framewise displacement of each frame, NaN where none is known.  # (t,)"""
    if prepared.motion.fd_mm is None:
        return None
    frames = plan_windows(prepared.statistics.timing, clip_frames=1, stride=1, fd_mm=prepared.motion.fd_mm).kept
    return np.array([np.nan if frame.mean_fd_mm is None else frame.mean_fd_mm for frame in frames])
