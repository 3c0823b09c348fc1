"""Small HCP, DCAN and UK Biobank datasets: a laterality marker in each image, known motion beside it."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from space_phantoms import balls, centred, write_image

from neurostorm_bids.inputs import Selection, find_runs
from neurostorm_bids.settings import Settings
from neurostorm_bids.space.grid import Grid

# FSL's field of view in 8 mm voxels, stored right to left
STANDARD = Grid.of((23, 27, 23), [[-8, 0, 0, 88], [0, 8, 0, -126], [0, 0, 8, -72], [0, 0, 0, 1]], "MNI152NLin6Asym")
NATIVE_SHAPE = (22, 24, 20)
NATIVE = Grid.of(NATIVE_SHAPE, centred(NATIVE_SHAPE, (9, 9, 9), codes="LAS", degrees=(5, 0, 4)), "boldref")
LEFT = (-40.0, -20.0, 20.0)  # mm: where the bright spot lies
N_VOLUMES = 30
STEP_MM, STEP_DEGREES = 0.2, 0.5  # change between volumes, in x and in the first rotation
FD_MM = STEP_MM + np.radians(STEP_DEGREES) * 50


def write_series(path: Path, grid: Grid, t_r_s: float = 0.8, marker: tuple[float, ...] = LEFT) -> Path:
    """A brain-like ball with a bright spot, fluctuating."""
    head = balls(grid.matrix, grid.shape, {(0.0, -18.0, 12.0): 800.0}, radius_mm=60)
    spot = balls(grid.matrix, grid.shape, {marker: 1500.0}, radius_mm=10)
    noise = np.random.default_rng(0).normal(0, 10, (*grid.shape, N_VOLUMES))
    series = (head + spot)[..., None] + noise
    return write_image(path, series.astype(np.float32), grid.matrix, t_r_s=t_r_s)


def write_mask(path: Path, grid: Grid) -> Path:
    head = balls(grid.matrix, grid.shape, {(0.0, -18.0, 12.0): 1.0}, radius_mm=60)
    return write_image(path, (head > 0.4).astype(np.uint8), grid.matrix)


def steps() -> tuple[np.ndarray, np.ndarray]:
    """Motion that rises by the same step each volume: translations in mm, rotations in degrees."""
    ramp = np.arange(N_VOLUMES)[:, None]
    return ramp * [STEP_MM, 0, 0], ramp * [STEP_DEGREES, 0, 0]


def write_hcp_motion(path: Path) -> Path:
    translations, degrees = steps()
    rows = np.hstack([translations, degrees, np.gradient(translations, axis=0), np.gradient(degrees, axis=0)])
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, rows, fmt="%.6f", delimiter="  ")
    return path


def write_mcflirt_motion(path: Path) -> Path:
    translations, degrees = steps()
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, np.hstack([np.radians(degrees), translations]), fmt="%.8g", delimiter="  ")
    return path


def hcp_run(results: Path, name: str, *, endings: tuple[str, ...] = ("",), mask: str = "brainmask_fs.2.nii.gz") -> Path:
    """A run of ``MNINonLinear/Results``."""
    for ending in endings:
        write_series(results / name / f"{name}{ending}.nii.gz", STANDARD)
    write_mask(results / name / mask, STANDARD)
    write_hcp_motion(results / name / "Movement_Regressors.txt")
    return results / name


def hcp_tree(root: Path, label: str = "100307", names: tuple[str, ...] = ("rfMRI_REST1_LR",), **kwargs) -> Path:
    for name in names:
        hcp_run(root / label / "MNINonLinear" / "Results", name, **kwargs)
    return root


def dcan_tree(root: Path, label: str = "NDARINV1", session: str = "baselineYear1Arm1") -> Path:
    results = root / f"sub-{label}" / f"ses-{session}" / "files" / "MNINonLinear" / "Results"
    hcp_run(results, f"ses-{session}_task-rest_run-01", mask="brainmask_fs.2.0.nii.gz")
    return root


def ukb_tree(root: Path, folder: str = "1000001_1_2_0") -> Path:
    ica = root / folder / "fMRI" / "rfMRI.ica"
    shift = np.array([6.0, -4.0, 2.0])  # mm, standard to native
    write_series(ica / "filtered_func_data_clean.nii.gz", NATIVE, 0.735, tuple(np.array(LEFT) + shift))
    write_mask(ica / "mask.nii.gz", NATIVE)
    write_warp(ica / "reg" / "example_func2standard_warp.nii.gz", shift)
    write_mcflirt_motion(ica / "mc" / "prefiltered_func_data_mcf.par")
    (root / folder / "fMRI" / "rfMRI.json").write_text('{"RepetitionTime": 0.735}')
    return root


def write_warp(path: Path, shift: np.ndarray) -> Path:
    """A relative FNIRT field that moves standard points by ``shift`` in the world; all arrays are LAS."""
    world = nibabel.affines.apply_affine(STANDARD.matrix, np.indices(STANDARD.shape).reshape(3, -1).T) + shift
    native = nibabel.affines.apply_affine(np.linalg.inv(NATIVE.matrix), world) * NATIVE.zooms
    field = native - np.indices(STANDARD.shape).reshape(3, -1).T * STANDARD.zooms
    write_image(path, field.reshape(*STANDARD.shape, 3).astype(np.float32), STANDARD.matrix)
    image = nibabel.load(path)
    image = nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
    image.header["intent_code"] = 2006
    nibabel.save(image, path)
    return path


def find(root: Path, **options) -> Selection:
    base = root.parent
    return find_runs(
        Settings(bids_dir=root, output_dir=base / "out", level="participant", work_dir=base / "w", **options)
    )


def brightest(run, grid: Grid = STANDARD) -> np.ndarray:
    """World position (mm) of the brightest voxel of the run's first volume on a grid."""
    from neurostorm_bids.space import choose_route, to_grid

    volume = next(iter(to_grid(choose_route(run, grid), grid).volumes()))
    voxel = np.unravel_index(volume.argmax(), volume.shape)
    return nibabel.affines.apply_affine(grid.matrix, voxel)
