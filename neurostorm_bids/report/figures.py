"""Pictures of a run in ``sub-X/figures/``, and the figures that the report draws itself, in one JSON beside them.

A worker writes them while it has the run; the report only reads them, so that it can be made again at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from neurostorm_bids.clips import RunStatistics, Windows
from neurostorm_bids.clips.windows import Window
from neurostorm_bids.errors import TableUnreadable
from neurostorm_bids.outputs.atomic import replacing, write_json
from neurostorm_bids.outputs.names import RunFiles
from neurostorm_bids.outputs.records import RunRecord
from neurostorm_bids.outputs.resume import KEY, read_sidecar
from neurostorm_bids.report.carpet import LIMIT_SD, Carpet
from neurostorm_bids.report.pictures import PLANES, Mosaic, greys, outline, webp
from neurostorm_bids.space.grid import Grid
from neurostorm_bids.space.template import template_brain

BRIGHTEST = 99.0  # percentile of the brain that becomes white


@dataclass(frozen=True, eq=False)
class RunFigures:
    """What the report shows of a run beside its tables.

    ``pictures`` are WebP files by name (mean, template, carpet); ``content`` holds everything else.
    """

    pictures: Mapping[str, bytes] = field(default_factory=dict)
    content: Mapping[str, Any] = field(default_factory=dict)

    def __or__(self, other: RunFigures) -> RunFigures:
        return RunFigures({**self.pictures, **other.pictures}, {**self.content, **other.content})


# --- drawn by the worker ----------------------------------------------------------------------------------------


def placement(grid: Grid, statistics: RunStatistics) -> RunFigures:
    """The normalised mean image, the template in the same slices, and the outline of the template's brain."""
    mosaic, shared = _of_template(grid)
    brain = statistics.mean_image[statistics.mean_image > 0]
    white = float(np.percentile(brain, BRIGHTEST)) if brain.size else 1.0
    mean = webp(greys(mosaic.of(statistics.mean_image), 0.0, white))
    content = {**shared.content["Placement"], "WhiteInSD": (white - statistics.mean) / statistics.std}
    return shared | RunFigures({"mean": mean}, {"Placement": content})


@lru_cache(maxsize=2)
def _of_template(grid: Grid) -> tuple[Mosaic, RunFigures]:
    """What every run on a grid shares: which slices are shown, the template in them, its outline."""
    template = template_brain(grid)
    mosaic = Mosaic.around(grid, template.brain)
    content = {
        "Width": mosaic.width,
        "Height": mosaic.height,
        "SlicesInMm": {plane: mosaic.positions_mm(plane) for plane in PLANES},
        "Outline": outline(mosaic.of(template.brain)),
    }
    picture = webp(greys(mosaic.of(template.image), 0.0, float(template.image.max())))
    return mosaic, RunFigures({"template": picture}, {"Placement": content})


def carpet_figure(carpet: Carpet, statistics: RunStatistics) -> RunFigures:
    """The carpet, and which seconds of scanner time it spans."""
    values, timing = carpet.values(), statistics.timing
    content = {
        "Rows": dict(carpet.bands),
        "LimitInSD": LIMIT_SD,
        "VolumesPerColumn": carpet.volumes_per_column,
        "Onset": timing.onset_s(0),
        "Duration": carpet.n_volumes * timing.t_r_s,
    }
    return RunFigures({"carpet": webp(greys(values, -LIMIT_SD, LIMIT_SD))}, {"Carpet": content})


def motion_and_clips(
    fd_mm: np.ndarray | None, statistics: RunStatistics, windows: Windows, threshold_mm: float | None
) -> RunFigures:
    """Framewise displacement of every volume, and where the clips lie."""
    timing = statistics.timing
    values = [] if fd_mm is None else [None if np.isnan(x) else round(float(x), 4) for x in fd_mm]
    content = {
        "Motion": {"FramewiseDisplacement": values, "Onset": timing.start_time_s, "RepetitionTime": timing.t_r_s},
        "Clips": [*_entries(windows.kept, used=True), *_entries(windows.excluded, used=False)],
        "FramewiseDisplacementLimit": threshold_mm,
    }
    return RunFigures({}, {key: value for key, value in content.items() if value is not None})


def _entries(windows: Sequence[Window], *, used: bool) -> list[dict[str, Any]]:
    return [{"Onset": w.onset_s, "Duration": w.duration_s, "Used": used} for w in windows]


# --- on disk ----------------------------------------------------------------------------------------------------


def write_figures(output_dir: Path, run: RunRecord, figures: RunFigures) -> Path:
    """Write the pictures, then the JSON that makes them complete.

    Returns
    -------
    Path
        The JSON: ``sub-X/figures/..._desc-neurostorm_report.json``.
    """
    path = RunFiles.of(
        output_dir, run.entities, template=run.grid.template, model_name="any", shared_desc=run.desc
    ).figures
    for name, picture in figures.pictures.items():
        with replacing(picture_file(path, name)) as handle:
            handle.write(picture)
    hashes = {name: sha256(picture).hexdigest() for name, picture in figures.pictures.items()}
    description = "What the participant's report draws of this run."
    write_json(path, {"Description": description, **figures.content, "Pictures": hashes, KEY: run.resume_key})
    return path


def picture_file(path: Path, name: str) -> Path:
    """A picture beside the JSON file of a run."""
    return path.with_name(path.name.removesuffix("_report.json") + f"_{name}.webp")


def read_figures(path: Path) -> RunFigures:
    """What ``write_figures`` wrote.

    Raises
    ------
    TableUnreadable
        The JSON or a picture is missing, cut or changed.
    """
    content = read_sidecar(path)
    hashes = content.get("Pictures")
    if not isinstance(hashes, dict):
        raise TableUnreadable("names no pictures", file=path, remedy=_RERUN)
    return RunFigures({name: _picture(picture_file(path, name), text) for name, text in hashes.items()}, content)


def _picture(path: Path, expected: Any) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TableUnreadable(f"cannot be read ({error.strerror})", file=path, remedy=_RERUN) from error
    if sha256(data).hexdigest() != expected:
        raise TableUnreadable("was cut or changed since it was written", file=path, remedy=_RERUN)
    return data


def figures_whole(path: Path) -> bool:
    """True when the JSON and every picture are there as they were written."""
    try:
        read_figures(path)
    except TableUnreadable:
        return False
    return True


_RERUN = "run the participant level again: it draws what is missing"
