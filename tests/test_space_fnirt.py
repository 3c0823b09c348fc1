"""FNIRT warps against truth worked out by hand in FSL's millimetres, for arrays stored either way round."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
from space_phantoms import balls, centred, run_of, wobbling, write_image

from neurostorm_bids.errors import TransformUnreadable
from neurostorm_bids.inputs.runs import BoldImage, TransformFile
from neurostorm_bids.space import choose_route, to_grid
from neurostorm_bids.space.fnirt import is_nifti, read_warp, scaled_voxels
from neurostorm_bids.space.grid import Grid
from neurostorm_bids.space.transforms import points_through

SHAPE = (23, 27, 23)  # of the standard array: 8 mm over FSL's field of view
LAS = Grid.of(SHAPE, [[-8, 0, 0, 90], [0, 8, 0, -126], [0, 0, 8, -72], [0, 0, 0, 1]], "MNI152NLin6Asym")
RAS = Grid.of(SHAPE, [[8, 0, 0, -86], [0, 8, 0, -126], [0, 0, 8, -72], [0, 0, 0, 1]], "MNI152NLin6Asym")
NATIVE = (26, 28, 20)


def native_grid(codes: str) -> Grid:
    return Grid.of(NATIVE, centred(NATIVE, (7.2, 7.2, 7.2), codes=codes, degrees=(8, -4, 5)), "boldref")


def fsl_millimetres(grid: Grid, world: np.ndarray) -> np.ndarray:
    """World points in FSL's millimetres, from the definition and by components."""
    voxels = np.stack([np.linalg.solve(grid.matrix, [*point, 1])[:3] for point in world])
    if np.linalg.det(grid.matrix) > 0:
        voxels[:, 0] = grid.shape[0] - 1 - voxels[:, 0]
    return voxels * grid.zooms


def true_map(world: np.ndarray) -> np.ndarray:
    """Standard to native, in world millimetres: an affine and a field that varies over the head (trilinear)."""
    matrix = np.array([[1.04, 0.06, -0.03], [-0.05, 0.97, 0.08], [0.02, -0.07, 1.02]])
    x, y, z = (world - [0, -18, 12]).T / 90
    return world @ matrix.T + [3, -4, 6] + 4 * np.stack([y * z, x * z - y, x * y * z], axis=1)


def write_warp(path: Path, standard: Grid, native: Grid, *, absolute: bool = False, intent: int = 2006) -> Path:
    """The warp of ``true_map``, as FSL would write it."""
    world = nibabel.affines.apply_affine(standard.matrix, np.indices(standard.shape).reshape(3, -1).T)
    values = fsl_millimetres(native, true_map(world))
    if not absolute:
        values = values - fsl_millimetres(standard, world)
    write_image(path, values.reshape(*standard.shape, 3).astype(np.float32), standard.matrix)
    image = nibabel.load(path)
    image = nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
    image.header["intent_code"] = intent
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize(
    ("standard", "codes", "absolute"),
    # FSL's own test of absolute fields fails for images stored front to back, and none are known
    [case for case in itertools.product((LAS, RAS), ("LAS", "RAS", "LPS"), (False, True)) if case[1:] != ("LPS", True)],
)
def test_dense_fields_lead_where_the_truth_does(tmp_path: Path, standard: Grid, codes: str, absolute: bool):
    native = native_grid(codes)
    warp = read_warp(write_warp(tmp_path / "warp.nii.gz", standard, native, absolute=absolute), native)
    points = np.random.default_rng(0).uniform([-60, -90, -50], [60, 60, 80], (200, 3))
    # between voxels the truth is trilinear in the world and so is what the field holds, up to the terms that the
    # interpolation of x*y*z leaves: none, since axes are aligned
    assert np.abs(warp.map(points) - true_map(points)).max() < 1e-3


def test_the_system_runs_right_to_left_however_the_image_is_stored(tmp_path: Path):
    """The same image stored the other way round has the same FSL millimetres: its warp serves both, unmirrored."""
    path = write_warp(tmp_path / "warp.nii.gz", LAS, native_grid("LAS"))
    points = np.array([[50.0, 0, 0], [-50, 0, 0]])
    one, other = read_warp(path, native_grid("LAS")).map(points), read_warp(path, native_grid("RAS")).map(points)
    assert one[0, 0] > 40 and one[1, 0] < -40  # the right stays on the right
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_no_intent_is_taken_for_a_field_and_points_beyond_it_are_nowhere(tmp_path: Path):
    native = native_grid("LAS")
    warp = read_warp(write_warp(tmp_path / "warp.nii.gz", LAS, native, intent=0), native)
    assert np.isnan(warp.map(np.array([[200.0, 0, 0]]))).all()
    assert np.isfinite(warp.map(np.array([[0.0, 0, 0]]))).all()


def test_a_native_run_reaches_the_grid_through_its_warp(tmp_path: Path):
    """Markers that lie at known places of the standard brain are found there, left on the left."""
    native = native_grid("LAS")
    markers = {(-40.0, -20.0, 20.0): 900.0, (40.0, 20.0, 0.0): 400.0}
    moved = {tuple(true_map(np.array([place]))[0]): height for place, height in markers.items()}
    volume = 100 + balls(native.matrix, native.shape, moved, radius_mm=14)
    bold = write_image(tmp_path / "filtered_func_data_clean.nii.gz", wobbling(volume), native.matrix, code=1)
    mask = write_image(tmp_path / "mask.nii.gz", np.ones(NATIVE, np.uint8), native.matrix, code=1)
    warp = write_warp(tmp_path / "warp.nii.gz", LAS, native)
    run = run_of(BoldImage(bold, "boldref", mask), transforms=(TransformFile(warp, "boldref", "MNI152NLin6Asym"),))
    grid = Grid.of((24, 27, 23), [[-8, 0, 0, 98], [0, 8, 0, -126], [0, 0, 8, -72], [0, 0, 0, 1]], "MNI152NLin6Asym")
    route = choose_route(run, grid)
    assert route.kind == "transform" and "warp.nii.gz" in " ".join(route.steps)
    found = next(iter(to_grid(route, grid).volumes()))
    wanted = 100 + balls(grid.matrix, grid.shape, markers, radius_mm=14)
    world = nibabel.affines.apply_affine(grid.matrix, np.moveaxis(np.indices(grid.shape), 0, -1))
    near = np.min([np.linalg.norm(world - place, axis=-1) for place in markers], axis=0) < 25
    assert np.corrcoef(found[near], wanted[near])[0, 1] > 0.99
    assert (found[0] == 0).all()  # the voxels outside the field


# --- spline coefficients ----------------------------------------------------------------------------------------

TWO_MM = (91, 109, 91)


def write_coefficients(path: Path, coefficients: np.ndarray, to_standard: np.ndarray, *, knots=10, **entries) -> Path:
    image = nibabel.Nifti1Image(coefficients.astype(np.float32), None)
    header = image.header
    header["intent_code"] = entries.get("intent", 2007)
    header["pixdim"][1:4] = knots
    header.set_sform(to_standard, 1)
    header["qform_code"] = 1
    header["qoffset_x"], header["qoffset_y"], header["qoffset_z"] = entries.get("shape", TWO_MM)
    header["intent_p1"], header["intent_p2"], header["intent_p3"] = entries.get("zooms", (2, 2, 2))
    path.write_bytes(image.to_bytes())
    return path


def knots_of(knots: int = 10) -> tuple[int, ...]:
    return tuple(-(-(n + 1) // knots) + 2 for n in TWO_MM)


def test_cubic_coefficients_reproduce_linear_fields_and_apply_the_affine(tmp_path: Path):
    """Coefficients that rise linearly give a field that does; the first knot lies one spacing before voxel 0."""
    native = native_grid("LAS")
    shape = knots_of()
    ramp = np.stack([(np.indices(shape)[axis] - 1) * 10 * 0.02 * (axis + 1) for axis in range(3)], axis=-1)
    affine = np.array([[1.1, 0.02, 0, -3], [0, 0.9, 0.01, 4], [0.03, 0, 1.05, 2], [0, 0, 0, 1]])
    warp = read_warp(write_coefficients(tmp_path / "coef.nii", ramp + np.array([1, 2, 3]), affine), native)
    voxels = np.random.default_rng(1).uniform(5, 85, (100, 3))
    standard = Grid.of(TWO_MM, [[-2, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]], "MNI152NLin6Asym")
    wanted = nibabel.affines.apply_affine(np.linalg.inv(affine), voxels * 2) + voxels * [0.02, 0.04, 0.06] + [1, 2, 3]
    found = warp.map(nibabel.affines.apply_affine(standard.matrix, voxels))
    assert np.abs(fsl_millimetres(native, found) - wanted).max() < 1e-3


def test_one_coefficient_is_one_b_spline(tmp_path: Path):
    native, coefficients = native_grid("LAS"), np.zeros((*knots_of(), 3))
    coefficients[4, 5, 3, 1] = 6.0
    warp = read_warp(write_coefficients(tmp_path / "coef.nii", coefficients, np.eye(4)), native)
    at = np.array([[30.0, 40, 20], [40, 40, 20], [35, 40, 20], [50, 40, 20]])  # voxels; the knot lies on the first
    world = nibabel.affines.apply_affine(np.array(warp.standard.affine), at)
    displaced = fsl_millimetres(native, warp.map(world)) - at * 2
    middle, beside, half = 2 / 3, 1 / 6, 23 / 48
    expected = [6 * middle**3, 6 * middle**2 * beside, 6 * middle**2 * half, 0]
    assert displaced[:, 1] == pytest.approx(expected, abs=1e-4)


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("intent", "told"), [(2008, "cosine"), (2009, "quadratic"), (2016, "topup"), (2018, "topup"), (1001, "intent 1001")]
)
def test_other_warps_are_refused_naming_convertwarp(tmp_path: Path, intent: int, told: str):
    path = write_warp(tmp_path / "warp.nii.gz", LAS, native_grid("LAS"), intent=intent)
    with pytest.raises(TransformUnreadable, match=f"{told}.*convertwarp"):
        read_warp(path, native_grid("LAS"))


def test_coefficients_over_another_array_are_refused(tmp_path: Path):
    path = write_coefficients(tmp_path / "coef.nii", np.zeros((4, 4, 4, 3)), np.eye(4), shape=(20, 20, 20))
    with pytest.raises(TransformUnreadable, match=r"20x20x20.*convertwarp"):
        read_warp(path, native_grid("LAS"))


@pytest.mark.parametrize("zooms", [(1, 2, 2), (2, 1, 2), (2, 2, 1)])
def test_coefficients_over_other_voxels_are_refused(tmp_path: Path, zooms: tuple[int, ...]):
    path = write_coefficients(tmp_path / "coef.nii", np.zeros((*knots_of(), 3)), np.eye(4), zooms=zooms)
    with pytest.raises(TransformUnreadable) as caught:
        read_warp(path, native_grid("LAS"))
    size = [float(zoom) for zoom in zooms]
    assert caught.value.fault == f"the warp holds spline coefficients over an array of 91x109x91 voxels of {size} mm"
    assert caught.value.expected == "a dense FNIRT field, or cubic spline coefficients"


@pytest.mark.parametrize("knots", [(0.3, 10, 10), (10, 10, 0.2)])
def test_knots_that_are_less_than_a_voxel_apart_are_refused(tmp_path: Path, knots: tuple[float, ...]):
    path = write_coefficients(tmp_path / "coef.nii", np.zeros((*knots_of(), 3)), np.eye(4), knots=knots)
    with pytest.raises(TransformUnreadable, match="the warp's knots lie 0 voxels apart"):
        read_warp(path, native_grid("LAS"))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda path: write_image(path, np.zeros((5, 5, 5, 4)), np.eye(4)), "5x5x5x4"),
        (lambda path: write_image(path, np.full((5, 5, 5, 3), np.nan, np.float32), np.eye(4)), "NaN"),
        (lambda path: path.write_bytes(path.read_bytes()[:2000]), "gzip stream"),
        (lambda path: write_coefficients(path.with_suffix(""), np.zeros((*knots_of(), 3)), np.zeros((4, 4))), "sform"),
    ],
)
def test_broken_warps_are_refused(tmp_path: Path, spoil, told: str):
    path = write_warp(tmp_path / "warp.nii.gz", LAS, native_grid("LAS"))
    spoil(path)
    if path.with_suffix("").exists():
        path = path.with_suffix("")
    with pytest.raises(TransformUnreadable, match=told):
        read_warp(path, native_grid("LAS"))


def test_a_warp_that_does_not_start_at_the_image_is_refused(tmp_path: Path):
    path = write_warp(tmp_path / "warp.nii.gz", LAS, native_grid("LAS"))
    with pytest.raises(TransformUnreadable, match="starts at the BOLD series"):
        points_through(LAS, (path, path), moving=native_grid("LAS"))


@pytest.mark.parametrize("codes", ["LAS", "RAS"])
def test_scaled_voxels_have_the_size_of_their_own_axis(codes: str):
    grid = Grid.of((5, 6, 7), centred((5, 6, 7), (2, 3, 4), codes=codes), "boldref")
    voxels = np.array([[0, 0, 0], [4, 5, 6], [1, 2, 3]])
    world = nibabel.affines.apply_affine(grid.matrix, voxels)
    found = nibabel.affines.apply_affine(scaled_voxels(grid), voxels)
    np.testing.assert_allclose(found, fsl_millimetres(grid, world), atol=1e-9)


def test_scaled_voxels_run_from_the_other_end_in_neurological_storage():
    assert scaled_voxels(LAS)[0].tolist() == [8, 0, 0, 0]
    assert scaled_voxels(RAS)[0].tolist() == [-8, 0, 0, 176]


def test_images_are_told_from_itk_files(tmp_path: Path):
    text = tmp_path / "a.txt"
    text.write_text("#Insight Transform File V1.0\n")
    assert not is_nifti(text)
    assert is_nifti(write_warp(tmp_path / "warp.nii.gz", LAS, native_grid("LAS")))
