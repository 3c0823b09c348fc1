"""The one resume key: a hash of the inputs, the model and the settings that decide what a run's results are.

Keys hold no time stamps, so that a dataset that was cloned again is recognised.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from neurostorm_bids.inputs.runs import BoldRun
from neurostorm_bids.settings import Settings

BLOCK = 64 * 1024
SAMPLES = 16
DECISIVE = (
    "normalization",
    "interpolation",
    "intensity",
    "denoise",
    "min_coverage",
    "preprocessing",
    "clip_stride",
    "anti_alias",
    "dummy_scans",
    "fd_threshold_mm",
    "target_scaler",
    "output_bold",
    "precision",
)


def fingerprint(path: Path) -> str:
    """Content hash of a file that reads little of a large one.

    The end of a gzip file holds the CRC of everything in it, so its two ends tell it apart; an uncompressed
    image is read whole, and other large files (transforms) are sampled along their length.
    """
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        for start in _block_starts(path, size):
            file.seek(start)
            digest.update(file.read(BLOCK))
    return digest.hexdigest()


def _block_starts(path: Path, size: int) -> Iterable[int]:
    if size <= SAMPLES * BLOCK or path.suffix == ".nii":
        return range(0, size, BLOCK)
    if path.suffix == ".gz":
        return (0, size - BLOCK)
    return (round(i * (size - BLOCK) / (SAMPLES - 1)) for i in range(SAMPLES))


def input_files(run: BoldRun) -> tuple[Path, ...]:
    """Every file that can decide a run's results, in a fixed order."""
    images = [path for image in run.images for path in (image.bold, image.mask, image.boldref)]
    sidecars = [path.with_name(path.name.split(".")[0] + ".json") for path in images if path is not None]
    motion = run.motion.path if run.motion is not None else None
    files = [*images, *sidecars, run.confounds, run.confounds_json, motion, *(file.path for file in run.transforms)]
    # what cannot be read decides nothing: the run goes on without it
    return tuple(sorted({path for path in files if path is not None and path.is_file() and os.access(path, os.R_OK)}))


def settings_hash(settings: Settings) -> str:
    """Hash of the settings that decide what a run's results are: tables of one study should share it."""
    values = asdict(settings)
    content = json.dumps({name: values[name] for name in DECISIVE}, sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def run_key(run: BoldRun, model_hash: str, settings: Settings, version: str) -> str:
    """Resume key of one run under one model.  # 32 hexadecimal digits"""
    values = asdict(settings)
    content = {
        "version": version,
        "model": model_hash,
        "settings": {name: values[name] for name in DECISIVE},
        "files": {_label(path, run.source.root): fingerprint(path) for path in input_files(run)},
    }
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _label(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
