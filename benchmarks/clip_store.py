"""The clip store against the published layout (one int8 ``data.pt`` a run, one scale, memory-mapped) and zarr.

    python -m benchmarks.clip_store [--frames 200] [--reads 40] [--repeats 5]

One run at full size (96x96x96, 2 mm brain) with an outlier voxel: bytes a frame, clips of 20 frames a second from
random places, decoded to what the model reads (1, 96, 96, 96, 20) float32, and the error of what is read against
float32 in units of the run's temporal SD. All layouts are read in turn within each repeat, from a warm page cache, on
one thread; the best repeat of each counts. Needs zarr beside the package.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from neurostorm_bids.simulate.brain import brain_on
from neurostorm_bids.space.grid import NEUROSTORM_2MM
from neurostorm_bids.training.clip_store import NormalisedRun, StoredRun, write_run

CLIP_FRAMES = 20
CROP = (slice(3, 94), slice(None), slice(2, 93))  # 91x96x91 within 96x96x96: padding is not stored by either
TEMPORAL_SD = 0.3
OUTLIER = 40.0
ROUND = "{:28s} {:>12,.0f} {:>9.1f} {:>9.1f} {:>10.4f} {:>10.4f}"

Read = Callable[[int], np.ndarray]


def make_run(n_frames: int) -> tuple[NormalisedRun, np.ndarray]:
    """A normalised run: anatomy, fluctuation, and one voxel that is far brighter than all others."""
    rng = np.random.default_rng(0)
    brain = brain_on(NEUROSTORM_2MM)
    anatomy = brain.tissue - TEMPORAL_SD * brain.edge
    values = anatomy + TEMPORAL_SD * rng.standard_normal((n_frames, len(anatomy)), dtype=np.float32)
    values[:, len(anatomy) // 2] = OUTLIER
    background = float(values.min())
    frames = np.full((n_frames, *brain.mask.shape), background, np.float32)
    frames[:, brain.mask] = values
    return NormalisedRun(lambda: iter(frames), brain.mask, n_frames, background), frames


# --- layouts ----------------------------------------------------------------------------------------------------


def ours(run: NormalisedRun, frames: np.ndarray, folder: Path, precision) -> tuple[int, Read]:
    path = folder / f"{precision}.safetensors"
    write_run(path, run, precision)
    stored = StoredRun.open(path)
    return path.stat().st_size, lambda first: stored.clip(first, CLIP_FRAMES)


def published(run: NormalisedRun, frames: np.ndarray, folder: Path) -> tuple[int, Read]:
    """Cropped volumes with their background, int8 with one scale; padded again when read, with voxel 0 of the clip."""
    path = folder / "data.pt"
    cropped = torch.from_numpy(np.ascontiguousarray(frames[:, *CROP]))
    scale = float(cropped.abs().max()) / 127
    torch.save({"frames": (cropped / scale).round().to(torch.int8), "scale": scale, "num_frames": len(frames)}, path)

    def read(first: int) -> np.ndarray:
        content = torch.load(path, mmap=True, weights_only=True)
        part = content["frames"][first : first + CLIP_FRAMES]
        clip = torch.full((1, *run.mask.shape, CLIP_FRAMES), float(part[0, 0, 0, 0]) * content["scale"])
        torch.mul(part.permute(1, 2, 3, 0), content["scale"], out=clip[0][*CROP])
        return clip.numpy()

    return path.stat().st_size, read


def zarr_array(run: NormalisedRun, frames: np.ndarray, folder: Path, *, compressed: bool) -> tuple[int, Read]:
    """Foreground rows as ours, int8 with a scale a voxel, in zarr chunks of a clip's length."""
    import zarr

    stored = StoredRun.open(folder / "int8.safetensors")
    offset, scale = stored._decoding
    options = {} if compressed else {"compressors": None}
    path = folder / f"zarr-{compressed}"
    rows = stored._rows(0, stored.n_frames)
    array = zarr.create_array(
        store=str(path), shape=rows.shape, chunks=(CLIP_FRAMES // 2, rows.shape[1]), dtype="i1", **options
    )
    array[:] = rows

    def read(first: int) -> np.ndarray:
        opened = zarr.open_array(str(path), mode="r")
        values = np.asarray(opened[first : first + CLIP_FRAMES]) * scale + offset
        clip = np.full((*run.mask.shape, CLIP_FRAMES), run.background, np.float32)
        clip.reshape(-1, CLIP_FRAMES)[stored.voxels] = values.T
        return clip[None]

    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()), read


# --- measuring --------------------------------------------------------------------------------------------------


def error_of(read: Read, run: NormalisedRun, frames: np.ndarray) -> tuple[float, float]:
    """Root mean square and largest error over ordinary foreground voxels, in temporal SDs."""
    ordinary = run.mask & (np.abs(frames[0]) < OUTLIER / 2)
    error = np.abs(read(0)[0] - frames[:CLIP_FRAMES].transpose(1, 2, 3, 0))[ordinary] / TEMPORAL_SD
    return float(np.sqrt((error**2).mean())), float(error.max())


def seconds_per_clip(reads: dict[str, Read], n_frames: int, n_reads: int, repeats: int) -> dict[str, float]:
    starts = np.random.default_rng(1).integers(0, n_frames - CLIP_FRAMES + 1, n_reads)
    best = dict.fromkeys(reads, np.inf)
    for _ in range(repeats):
        for name, read in reads.items():
            began = time.perf_counter()
            for first in starts:
                read(int(first))
            best[name] = min(best[name], (time.perf_counter() - began) / n_reads)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--reads", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    run, frames = make_run(asked.frames)
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        layouts = {
            "store, int8": ours(run, frames, folder, "int8"),
            "store, float16": ours(run, frames, folder, "float16"),
            "published, int8 data.pt": published(run, frames, folder),
            "zarr, int8": zarr_array(run, frames, folder, compressed=False),
            "zarr, int8, zstd": zarr_array(run, frames, folder, compressed=True),
        }
        timed = seconds_per_clip(
            {name: read for name, (_, read) in layouts.items()}, asked.frames, asked.reads, asked.repeats
        )
        print(f"{run.mask.sum():,} foreground voxels, {asked.frames} frames, one outlier voxel at {OUTLIER:g} SD")
        print(
            f"{'layout':28s} {'bytes/frame':>12s} {'ms/clip':>9s} {'clips/s':>9s} {'rms error':>10s} {'max error':>10s}"
        )
        for name, (size, read) in layouts.items():
            seconds = timed[name]
            print(ROUND.format(name, size / asked.frames, 1e3 * seconds, 1 / seconds, *error_of(read, run, frames)))


if __name__ == "__main__":
    main()
