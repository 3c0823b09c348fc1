"""JSON sidecars: what a file holds, what it was made from, and how."""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from neurostorm_bids import __version__
from neurostorm_bids.outputs.records import ModelRecord, RunRecord
from neurostorm_bids.space.grid import Grid

TEMPLATEFLOW = "https://github.com/templateflow/templateflow"
_LIBRARIES = ("torch", "numpy", "scipy", "nibabel", "pybids")

UNTRAINED = (
    "The weights of this model were NOT trained: the numbers exercise the software and say nothing about people."
)
CLIP_SD = (
    "Standard deviation over the clips of this run of the value (regression) or of the probability of the reported "
    "class (classification). It tells how much the clips of one run disagree; it is not an interval for the person."
)


def run_sidecar(run: RunRecord, description: str) -> dict[str, Any]:
    """Entries that every sidecar of a run shares, empty ones left out."""
    return _without_empty(
        {
            "Description": description,
            "Sources": [bids_uri(path, run.datasets) for path in run.sources],
            "Resolution": resolution(run.grid),
            "SpatialReference": spatial_reference(run.grid.template),
            "InputPipeline": {
                "Name": run.input_pipeline,
                "Version": run.input_version,
                "Denoising": run.input_denoising,
            },
            "Route": {
                "Kind": run.route,
                "InputSpace": run.input_space,
                "Steps": list(run.steps),
                "Interpolation": run.interpolation,
                "Approximate": run.approximate,
            },
            "Grid": {"Template": run.grid.template, "Shape": list(run.grid.shape), "Affine": run.grid.matrix},
            "Timing": _timing(run),
            "Clips": _clips(run),
            "Normalisation": dict(run.normalisation),
            "TemporalVarianceShare": run.temporal_variance_share,
            "Warnings": list(run.warnings),
            "SettingsHash": run.settings_hash,
            **run.extra,
            "Software": dict(software_versions()),
        }
    )


def _timing(run: RunRecord) -> dict[str, Any]:
    return {
        "InputRepetitionTime": run.t_r_s,
        "EffectiveStep": run.step_s,
        "FirstFrame": run.first_frame_s,
        "InputVolumes": run.n_volumes,
        "DummyScans": run.dummy_scans,
        "Frames": run.n_frames,
        "Preprocessing": run.preprocessing,
    }


def _clips(run: RunRecord) -> dict[str, Any]:
    return {
        "Used": run.n_clips,
        "Dropped": {reason: count for reason, count in sorted(run.dropped_clips.items()) if count},
        "DroppedFrames": run.dropped_frames,
        "FramesPerClip": run.clip_frames,
        "StrideInFrames": run.clip_stride,
    }


def model_sidecar(model: ModelRecord) -> dict[str, Any]:
    """The model's entry, empty values left out."""
    return {
        "Model": _without_empty(
            {
                "Name": model.name,
                "Hash": model.hash,
                "Trained": model.trained,
                "Backend": model.backend,
                "Device": model.device,
                "Precision": model.precision,
                "BatchSize": model.batch_size,
                "Threads": model.threads,
                "InputProvenance": dict(model.provenance),
                "License": model.license,
                **model.extra,
            }
        )
    }


def _without_empty(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that say something; nested mappings are pruned too. False and 0 say something."""
    pruned = {key: _without_empty(value) if isinstance(value, Mapping) else value for key, value in entries.items()}
    return {key: value for key, value in pruned.items() if not _is_empty(value)}


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, Mapping | list | tuple | str) and len(value) == 0)


def bids_uri(path: Path, datasets: Mapping[str, Path]) -> str:
    """A file as a BIDS URI of the innermost dataset that holds it (``bids:fmriprep:sub-01/func/...``).

    TemplateFlow's files are known by name wherever they are cached. A file of no dataset is given by name alone.
    """
    holders = [(name, root) for name, root in datasets.items() if path.is_relative_to(root)]
    if holders:
        name, root = max(holders, key=lambda holder: len(holder[1].parts))
        return f"bids:{name}:{quote(path.relative_to(root).as_posix())}"
    if path.name.startswith("tpl-"):
        return f"bids:templateflow:{path.name.split('_')[0]}/{path.name}"
    return path.name


def spatial_reference(template: str) -> str:
    """The template that defines the world coordinates, as a BIDS URI into TemplateFlow."""
    return f"bids:templateflow:tpl-{template}"


def resolution(grid: Grid) -> str:
    """What ``res-model`` means, in words."""
    size = np.linalg.norm(grid.matrix[:3, :3], axis=0)
    spacing = f"{size[0]:g} mm isotropic" if np.allclose(size, size[0]) else " x ".join(f"{s:g}" for s in size) + " mm"
    shape = "x".join(str(n) for n in grid.shape)
    return f"Grid of the model: {spacing}, {shape} voxels, origin ({', '.join(f'{x:g}' for x in grid.matrix[:3, 3])})"


@functools.cache
def software_versions() -> dict[str, str]:
    """Versions of this app, Python and the libraries that computed the result."""
    versions = {"neurostorm-bids": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
