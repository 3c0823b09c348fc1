"""Speed and memory of the space stage: a native run through an .h5 chain, against SimpleITK volume by volume.

    python -m benchmarks space [--volumes 400] [--threads 2]

Each side runs in a process of its own and does the whole work: reading the transforms, mapping, reading the run, and
resampling every volume onto the 96x96x96 grid. SimpleITK is given the whole run in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SHAPE = (64, 64, 36)
FIELD_SHAPE = (193, 229, 193)
TIMES_FASTER = 4.0
MOST_MEMORY_MB = 1500


# --- the run ----------------------------------------------------------------------------------------------------


def make_run(folder: Path, n_volumes: int) -> None:
    """A native run (oblique, 3.4 x 3.4 x 4 mm, int16), its mask, and the two transforms that fMRIPrep would write."""
    import nibabel

    rng = np.random.default_rng(0)
    affine = _affine((-3.4, 3.4, 4.0), SHAPE, tilt=0.15)
    brain = _ellipsoid(SHAPE)
    base = np.where(brain, 900.0, 30.0)[..., None]
    data = (base + rng.normal(0, 15, (*SHAPE, n_volumes))).clip(0).astype(np.int16)
    image = nibabel.Nifti1Image(data, affine)
    image.header.set_zooms((*image.header.get_zooms()[:3], 0.8))
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, folder / "bold.nii.gz")
    nibabel.save(nibabel.Nifti1Image(brain.astype(np.uint8), affine), folder / "mask.nii.gz")
    (folder / "boldref_to_T1w.txt").write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: Euler3DTransform_double_3_3\n"
        "Parameters: 0.03 -0.02 0.05 1.5 -3 4\nFixedParameters: 0 -18 12 0\n"
    )
    _write_composite(folder / "T1w_to_template.h5", rng)


def _affine(zooms, shape, *, tilt: float = 0.0) -> np.ndarray:
    turn = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    matrix = np.eye(4)
    matrix[:3, :3] = turn * np.asarray(zooms)
    matrix[:3, 3] = [0, -18, 12] - matrix[:3, :3] @ ((np.array(shape) - 1) / 2)
    return matrix


def _ellipsoid(shape) -> np.ndarray:
    place = [(np.arange(n) - (n - 1) / 2) / (0.42 * n) for n in shape]
    return sum(axis**2 for axis in np.meshgrid(*place, indexing="ij")) < 1


def _write_composite(path: Path, rng: np.random.Generator) -> None:
    """An affine and a smooth 1 mm displacement field, as ANTs writes them (float)."""
    import h5py
    from scipy.ndimage import zoom

    coarse = rng.normal(0, 2.5, (3, 8, 9, 8))
    field = np.stack([zoom(part, np.divide(FIELD_SHAPE, part.shape), order=3) for part in coarse], axis=-1)
    fixed = [*FIELD_SHAPE, 96, 132, -78, 1, 1, 1, -1, 0, 0, 0, -1, 0, 0, 0, 1]
    affine = [1.05, 0.02, 0, -0.01, 0.97, 0.05, 0.01, -0.04, 1.02, 1, -2, 3]
    with h5py.File(path, "w") as file:
        components = [
            ("CompositeTransform_float_3_3", None, None),
            ("AffineTransform_float_3_3", affine, [0.0, 0.0, 0.0]),
            ("DisplacementFieldTransform_float_3_3", field.transpose(2, 1, 0, 3).ravel(), fixed),
        ]
        for number, (kind, parameters, fixed_parameters) in enumerate(components):
            group = file.create_group(f"TransformGroup/{number}")
            group["TransformType"] = np.array([kind.encode()], dtype=h5py.string_dtype("ascii"))
            if parameters is not None:
                values = np.asarray(parameters, dtype=np.float32)
                group.create_dataset("TransformParameters", data=values, compression="gzip", compression_opts=2)
                group["TransformFixedParameters"] = np.array(fixed_parameters, dtype=float)
        file["ITKVersion"] = np.array([b"5.3.0"], dtype=h5py.string_dtype("ascii"))
        file["HDFVersion"] = np.array([b"1.12.1"], dtype=h5py.string_dtype("ascii"))


# --- the two sides ----------------------------------------------------------------------------------------------


def ours(folder: Path, threads: int) -> np.ndarray:
    """Every volume through the space stage; returns the sum of the volumes."""
    from neurostorm_bids.inputs.runs import BoldImage, BoldRun, Source, TransformFile
    from neurostorm_bids.space import NEUROSTORM_2MM, choose_route, to_grid

    image = BoldImage(folder / "bold.nii.gz", "boldref", folder / "mask.nii.gz")
    transforms = (
        TransformFile(folder / "boldref_to_T1w.txt", "boldref", "T1w"),
        TransformFile(folder / "T1w_to_template.h5", "T1w", "MNI152NLin6Asym"),
    )
    run = BoldRun(Source(folder, "fMRIPrep"), {"sub": "01"}, (image,), transforms=transforms, t_r_s=0.8)
    series = to_grid(choose_route(run, NEUROSTORM_2MM), NEUROSTORM_2MM, threads=threads)
    return sum_of(series.volumes())


def simpleitk(folder: Path, threads: int) -> np.ndarray:
    """Every volume through SimpleITK's resampler; returns the sum of the volumes."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    chain = sitk.CompositeTransform(
        [sitk.ReadTransform(str(folder / name)) for name in ("boldref_to_T1w.txt", "T1w_to_template.h5")]
    )
    series = sitk.ReadImage(str(folder / "bold.nii.gz"))
    reference = sitk.Image(96, 96, 96, sitk.sitkFloat32)
    reference.SetSpacing((2, 2, 2))
    reference.SetOrigin((-96, 114, -78))  # LPS
    reference.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, 1))
    return sum_of(_resampled(sitk, series, reference, chain))


def _resampled(sitk, series, reference, chain):
    size = series.GetSize()
    for index in range(size[3]):
        volume = sitk.Extract(series, (*size[:3], 0), (0, 0, 0, index))
        on_grid = sitk.Resample(volume, reference, chain, sitk.sitkLinear, 0.0, sitk.sitkFloat32)
        yield sitk.GetArrayViewFromImage(on_grid).transpose(2, 1, 0)


def sum_of(volumes) -> np.ndarray:
    """What a reader does at least: touch each volume once."""
    total = np.zeros((96, 96, 96), np.float32)
    for volume in volumes:
        total += volume
    return total


# --- measuring --------------------------------------------------------------------------------------------------


def worker(side: str, folder: Path, n_volumes: int, threads: int) -> None:
    """One side in this process: seconds, peak memory and the sum of the volumes; or "make", the run itself."""
    if side == "make":
        return make_run(folder, n_volumes)
    started = time.perf_counter()
    total = ours(folder, threads) if side == "ours" else simpleitk(folder, threads)
    seconds = time.perf_counter() - started
    np.save(folder / f"{side}.npy", total)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"side": side, "seconds": round(seconds, 2), "peak_mb": round(peak_mb)}))


def apart(side: str, folder: Path, n_volumes: int, threads: int) -> dict:
    """The same in a process of its own, started by a small one: a child's peak memory begins at its parent's."""
    environment = os.environ | {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    command = [sys.executable, "-m", "benchmarks.space", "--worker", side, str(folder)]
    command += ["--threads", str(threads), "--volumes", str(n_volumes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}


def compare(n_volumes: int, threads: int) -> bool:
    """Both sides in turn, twice ours around SimpleITK; whether the targets hold."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sides = ("make", "ours", "simpleitk", "ours")
        results = [apart(side, folder, n_volumes, threads) for side in sides][1:]
        a, b = (np.load(folder / f"{side}.npy") / n_volumes for side in ("ours", "simpleitk"))
    # voxels on the very border of the image are inside for one and outside for the other
    error = float(np.quantile(np.abs(a - b), 0.9999) / np.ptp(b))
    seconds, peak = max(r["seconds"] for r in results[::2]), max(r["peak_mb"] for r in results[::2])
    ratio = results[1]["seconds"] / seconds
    for result in results:
        print(f"{result['side']:<10} {result['seconds']:8.2f} s   peak {result['peak_mb']} MB")
    print(
        f"{n_volumes} volumes of 64x64x36 onto 96x96x96, {threads} threads: {ratio:.1f} times SimpleITK "
        f"(target {TIMES_FASTER:g}), peak {peak} MB (target {MOST_MEMORY_MB}), difference {error:.1e} of the range"
    )
    return ratio >= TIMES_FASTER and peak < MOST_MEMORY_MB and error < 1e-3


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m benchmarks space``; 0 when the targets hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks space", description=__doc__)
    parser.add_argument("--volumes", type=int, nargs="+", default=[400], help="lengths of run to measure")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", nargs=2, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker:
        worker(options.worker[0], Path(options.worker[1]), options.volumes[0], options.threads)
        return 0
    verdicts = [compare(n_volumes, options.threads) for n_volumes in options.volumes]  # every length, whatever fails
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
