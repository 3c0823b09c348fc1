"""What arrives on the grid is what SimpleITK would put there, and left stays left."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import binary_dilation, binary_erosion
from space_phantoms import (
    SMALL,
    affine_transform,
    balls,
    centred,
    composite,
    euler_transform,
    map_points,
    resampled,
    run_of,
    smooth_field,
    smooth_volume,
    wobbling,
    write_bold,
    write_image,
    write_transform,
)

from neurostorm_bids.errors import AffineContradictory, ConstantSeries, DemeanedSeries, MaskUnusable, NonFiniteVoxels
from neurostorm_bids.inputs.runs import BoldImage, TransformFile
from neurostorm_bids.space import NEUROSTORM_2MM, Grid, choose_route, to_grid
from neurostorm_bids.space.grid import apply_affine
from neurostorm_bids.space.templateflow import transform_name

SIX, NINE = "MNI152NLin6Asym", "MNI152NLin2009cAsym"
FIELD_GEOMETRY = centred((24, 28, 24), (8, 8, 8), codes="LPS", degrees=(2, -3, 1))
GEOMETRIES = {
    "straight": centred((40, 44, 30), (4, 4, 4.5), codes="LAS"),
    "oblique": centred((40, 44, 30), (4, 4, 4.5), codes="RAS", degrees=(8, -5, 10)),
    "turned": centred((44, 30, 40), (4, 4.5, 4), codes="PSL", degrees=(4, 5, -6)),
}
SHAPES = {"straight": (40, 44, 30), "oblique": (40, 44, 30), "turned": (44, 30, 40)}
IDENTITY = sitk.Transform(3, sitk.sitkIdentity)


class Warps:
    """One participant's transforms as ITK objects (points of the name's end to points of its start) and as files."""

    def __init__(self, folder: Path) -> None:
        self.boldref_to_t1w = euler_transform(1)
        self.t1w_to_six = composite(affine_transform(2), smooth_field(3, 10, FIELD_GEOMETRY))
        self.t1w_to_nine = composite(affine_transform(4), smooth_field(5, 8, FIELD_GEOMETRY))
        self.nine_to_t1w = composite(smooth_field(6, 8, FIELD_GEOMETRY), affine_transform(7))
        self.nine_to_six = composite(affine_transform(8), smooth_field(9, 3, FIELD_GEOMETRY))
        self.folder = folder
        self.boldref = self._file(self.boldref_to_t1w, "boldref", "T1w", ".txt")
        self.six = self._file(self.t1w_to_six, "T1w", SIX)
        self.nine = self._file(self.t1w_to_nine, "T1w", NINE)
        self.back = self._file(self.nine_to_t1w, NINE, "T1w")
        write_transform(self.nine_to_six, folder / "templateflow" / f"tpl-{SIX}" / transform_name(NINE, SIX))

    def _file(self, transform: sitk.Transform, source: str, target: str, suffix: str = ".h5") -> TransformFile:
        path = self.folder / f"from-{source}_to-{target}_mode-image_xfm{suffix}"
        return TransformFile(write_transform(transform, path), source, target)

    def ways(self) -> dict[str, tuple[str, tuple[TransformFile, ...], sitk.Transform, str]]:
        """Route name -> space of the image, files of the participant, the oracle's transform, expected kind."""
        chain = composite
        return {
            "affine": (SIX, (), IDENTITY, "affine"),
            "native": ("boldref", (self.boldref, self.six), chain(self.boldref_to_t1w, self.t1w_to_six), "transform"),
            "t1w": ("T1w", (self.six,), self.t1w_to_six, "transform"),
            "2009c by own": (NINE, (self.back, self.six), chain(self.nine_to_t1w, self.t1w_to_six), "transform"),
            "2009c": (NINE, (), self.nine_to_six, "transform"),
            "native by 2009c": (
                "boldref",
                (self.boldref, self.nine),
                chain(self.boldref_to_t1w, self.t1w_to_nine, self.nine_to_six),
                "transform",
            ),
        }


WAYS = ("affine", "native", "t1w", "2009c by own", "2009c", "native by 2009c")


@pytest.fixture(scope="module")
def warps(tmp_path_factory) -> Warps:
    return Warps(tmp_path_factory.mktemp("warps"))


@pytest.fixture(autouse=True)
def _templateflow(warps: Warps, monkeypatch) -> None:
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(warps.folder / "templateflow"))


def series_of(image: BoldImage, files: tuple[TransformFile, ...] = (), grid: Grid = SMALL, **kwargs):
    return to_grid(choose_route(run_of(image, transforms=files), grid, offline=True, **kwargs), grid)


def first(series) -> np.ndarray:
    return next(series.volumes())


def away_from_the_border(expected: np.ndarray) -> np.ndarray:
    """Voxels that are not next to the end of the image, where rounding decides who is inside.  # (X, Y, Z) bool"""
    inside = expected > 0
    return binary_erosion(inside) | ~binary_dilation(inside)


# --- truth ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("way", WAYS)
def test_every_route_is_what_simpleitk_computes(tmp_path: Path, warps: Warps, way: str, geometry: str):
    space, files, transform, kind = warps.ways()[way]
    image = write_bold(tmp_path, space, smooth_volume(SHAPES[geometry]), GEOMETRIES[geometry])
    series = series_of(image, files)
    assert series.route.kind == kind
    expected = resampled(image, transform, SMALL)
    sound = away_from_the_border(expected)
    assert (expected[sound] > 0).mean() > 0.15
    volumes = list(series.volumes())
    np.testing.assert_allclose(volumes[0][sound], expected[sound], atol=1e-3 * 1000)
    np.testing.assert_allclose(volumes[2], volumes[0] * 1.2, rtol=1e-4)  # one map for every volume


def test_the_full_grid_through_a_native_chain(tmp_path: Path, warps: Warps):
    space, files, transform, _ = warps.ways()["native"]
    image = write_bold(tmp_path, space, smooth_volume(SHAPES["oblique"]), GEOMETRIES["oblique"])
    series = series_of(image, files, NEUROSTORM_2MM)
    error = np.abs(first(series) - resampled(image, transform, NEUROSTORM_2MM))
    assert np.count_nonzero(error > 1) <= 2  # voxels on the very border of the image
    assert np.median(error[series.inside]) < 0.01


@pytest.mark.parametrize("way", ["native", "2009c by own", "native by 2009c"])
def test_reversing_the_chain_is_seen(tmp_path: Path, warps: Warps, way: str):
    space, files, transform, _ = warps.ways()[way]
    image = write_bold(tmp_path, space, smooth_volume(SHAPES["straight"]), GEOMETRIES["straight"])
    parts = [transform.GetNthTransform(n) for n in range(transform.GetNumberOfTransforms())]
    reversed_chain = composite(*parts[::-1])
    error = np.abs(first(series_of(image, files)) - resampled(image, reversed_chain, SMALL))
    assert error.max() > 100


@pytest.mark.parametrize(
    ("interpolation", "oracle", "tolerance"),
    [("nearest", sitk.sitkNearestNeighbor, 1e-3), ("lanczos", sitk.sitkLanczosWindowedSinc, 1.0)],
)
def test_other_kernels_are_itks(tmp_path: Path, warps: Warps, interpolation: str, oracle: int, tolerance: float):
    space, files, transform, _ = warps.ways()["t1w"]
    image = write_bold(tmp_path, space, smooth_volume(SHAPES["oblique"]), GEOMETRIES["oblique"])
    got = first(series_of(image, files, interpolation=interpolation))
    error = np.abs(got - resampled(image, transform, SMALL, oracle))
    assert np.mean(error > tolerance) < 1e-4  # ties of nearest, and the very border
    assert np.median(error) < 1e-3


@pytest.mark.parametrize("way", WAYS)
def test_a_bright_voxel_lands_where_the_chain_says(tmp_path: Path, warps: Warps, way: str):
    space, files, transform, _ = warps.ways()[way]
    target = np.array([18, 25, 20])
    point = apply_affine(SMALL.matrix, target[None])
    source = map_points(transform, point)[0]
    affine, shape = GEOMETRIES["oblique"], SHAPES["oblique"]
    image = write_bold(tmp_path, space, 100 + balls(affine, shape, {tuple(source): 1000.0}, 5), affine)
    got = first(series_of(image, files))
    np.testing.assert_array_equal(np.unravel_index(got.argmax(), got.shape), target)


# --- left stays left --------------------------------------------------------------------------------------------

MARKERS = {(-48.0, 12.0, 28.0): 600.0, (32.0, 42.0, -12.0): 800.0, (12.0, -73.0, 38.0): 1000.0}  # mm, on SMALL voxels
ORIENTATIONS = ["".join(letters) for axes in permutations(("RL", "AP", "SI")) for letters in product(*axes)]


def peaks(volume: np.ndarray, n: int = 3) -> dict[tuple[float, float, float], float]:
    """The highest voxels, each at least 6 voxels from the ones before, by world position."""
    volume, found = volume.copy(), {}
    for _ in range(n):
        index = np.unravel_index(volume.argmax(), volume.shape)
        found[tuple(apply_affine(SMALL.matrix, np.array([index], float))[0])] = float(volume[index])
        volume[tuple(slice(max(0, i - 6), i + 7) for i in index)] = 0
    return found


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_three_markers_stay_put_from_every_orientation(tmp_path: Path, warps: Warps, codes: str):
    lengths = {"R": 44, "A": 52, "S": 42}
    shape = tuple(lengths[{"L": "R", "P": "A", "I": "S"}.get(code, code)] for code in codes)
    affine = centred(shape, (4, 4, 4), codes=codes, degrees=(3, -4, 2))
    for way in ("affine", "native", "2009c by own", "2009c"):
        space, files, transform, _ = warps.ways()[way]
        sources = map_points(transform, np.array(list(MARKERS)))
        placed = {tuple(source): height for source, height in zip(sources, MARKERS.values(), strict=True)}
        image = write_bold(tmp_path / way, space, 10 + balls(affine, shape, placed, 7), affine)
        found = peaks(first(series_of(image, files)))
        for position, height in MARKERS.items():
            assert min(np.abs(np.subtract(position, other)).max() for other in found) < 0.01
            assert found[position] == pytest.approx(height, rel=0.15)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_the_lattice_is_placed_bit_exactly_from_every_orientation(tmp_path: Path, codes: str):
    data = np.random.default_rng(0).normal(500, 100, (*SMALL.shape, 2)).astype(np.float32)
    stored = nibabel.Nifti1Image(data, SMALL.matrix)
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(SMALL.matrix), nibabel.orientations.axcodes2ornt(tuple(codes))
    )
    nibabel.save(stored.as_reoriented(turn), tmp_path / "x_bold.nii")
    assert "".join(nibabel.aff2axcodes(nibabel.load(tmp_path / "x_bold.nii").affine)) == codes
    series = series_of(BoldImage(tmp_path / "x_bold.nii", SIX), interpolation="lanczos")
    assert series.route.kind == "lattice"
    for volume, expected in zip(series._bold.volumes(), np.moveaxis(data, -1, 0), strict=True):
        np.testing.assert_array_equal(series._resample(volume), expected)


def test_real_lr_and_rl_volumes_are_one(tmp_path: Path, shared: Path):
    volumes = []
    for name in ("mniLR", "mniRL"):
        stored = nibabel.load(shared / f"real/bold/oro.nifti/{name}.nii.gz")
        data = np.asarray(stored.dataobj)
        series = series_of(
            BoldImage(write_image(tmp_path / f"{name}.nii", wobbling(data, 2), stored.affine), SIX, None),
            grid=NEUROSTORM_2MM,
        )
        assert series.route.kind == "lattice"
        volumes.append(first(series))
    np.testing.assert_array_equal(*volumes)
    assert volumes[0].max() > 100


def test_real_series_on_the_fsl_grid_is_placed_bit_exactly(shared: Path):
    path = next((shared / "real/bold/derived").glob("*MNI152NLin6Asym_res-2*.nii.gz"))
    data = np.asarray(nibabel.load(path).dataobj)
    series = series_of(BoldImage(path, SIX), grid=NEUROSTORM_2MM)
    for volume, stored in zip(series.volumes(), np.moveaxis(data, -1, 0), strict=True):
        np.testing.assert_array_equal(volume[3:94, :, 3:94], stored[:, 6:102])
        assert not volume[:3].any() and not volume[94:].any() and not volume[..., :3].any()
    np.testing.assert_array_equal(series.mask[3:94, :, 3:94] & (data[..., 0] == 0)[:, 6:102], False)


def test_the_decoy_goes_by_its_affine_and_keeps_its_values(tmp_path: Path):
    affine = np.array([[2, 0, 0, -92], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]], float)
    data = np.random.default_rng(0).normal(500, 100, (91, 109, 91)).astype(np.float32)
    series = series_of(write_bold(tmp_path, SIX, data, affine), grid=NEUROSTORM_2MM)
    assert series.route.kind == "affine"
    # grid voxel i lies at x = 96 - 2i, voxel j of the image at x = -92 + 2j: j = 94 - i
    np.testing.assert_array_equal(first(series)[4:95, :, 3:94], data[::-1, 6:102])


# --- masks ------------------------------------------------------------------------------------------------------


@pytest.fixture
def disc(tmp_path: Path):
    """A run whose mask is a box, with the mask to be given."""
    shape, affine = SHAPES["oblique"], GEOMETRIES["oblique"]

    def build(mask=None, **kwargs) -> BoldImage:
        return write_bold(tmp_path, SIX, smooth_volume(shape), affine, mask=mask, **kwargs)

    return build


def box(shape) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[10:-10, 10:-10, 8:-8] = 1
    return mask


def test_masks_take_the_same_route(disc):
    mask = box(SHAPES["oblique"])
    image = disc(mask)
    series = series_of(image)
    as_bold = BoldImage(write_image(image.bold.parent / "m.nii", wobbling(mask), GEOMETRIES["oblique"]), SIX)
    oracle = resampled(as_bold, IDENTITY, SMALL)
    assert series.mask[oracle > 1e-4].all()
    assert not series.mask[oracle == 0].any()
    np.testing.assert_array_equal(series.brain, resampled(as_bold, IDENTITY, SMALL, sitk.sitkNearestNeighbor) > 0)
    assert series.mask.sum() > series.brain.sum() > 0
    assert series.mask_origin.endswith("desc-brain_mask.nii.gz")


def test_without_a_mask_one_is_computed_and_told(tmp_path: Path):
    affine, shape = GEOMETRIES["oblique"], SHAPES["oblique"]
    head = balls(affine, shape, {(0.0, -18.0, 12.0): 1.0}, 40) > 0.4
    noise = np.random.default_rng(0).normal(size=shape)
    image = write_bold(tmp_path, SIX, np.where(head, 900 + 50 * noise, 20 + 5 * noise), affine, mask=None)
    series = series_of(image)
    assert series.mask_origin == "computed"
    assert "no brain mask was found" in series.warnings[-1]
    route = choose_route(run_of(image, t_r_s=2.5), SMALL)
    assert [word in text for text, word in zip(to_grid(route, SMALL).warnings, ("2.5 s", "no brain mask"), strict=True)]
    truth = write_bold(tmp_path / "truth", SIX, head, affine, mask=head.astype(np.uint8))
    brain = series_of(truth).brain
    assert 2 * (series.brain & brain).sum() / (series.brain.sum() + brain.sum()) > 0.95


def test_no_mask_and_no_brain_is_refused(tmp_path: Path):
    image = write_bold(tmp_path, SIX, np.zeros(SHAPES["oblique"]), GEOMETRIES["oblique"], mask=None)
    with pytest.raises(MaskUnusable, match="none can be computed"):
        _ = series_of(image).mask


def test_unusable_masks_are_refused(disc):
    shape = SHAPES["oblique"]
    image = disc(box(shape))
    moved = GEOMETRIES["oblique"] + np.array([[0, 0, 0, 4], [0] * 4, [0] * 4, [0] * 4])
    for mask, affine, message in [
        (np.zeros(shape, np.uint8), None, "empty"),
        (np.where(box(shape), np.nan, 0).astype(np.float32), None, "NaN"),
        (box((40, 44, 31)), None, "another grid"),
        (box(shape), moved, "another grid"),
        (np.repeat(box(shape)[..., None], 2, axis=-1), None, "2 volumes"),
    ]:
        write_image(image.mask, mask, GEOMETRIES["oblique"] if affine is None else affine)
        with pytest.raises(MaskUnusable, match=message):
            _ = series_of(image).mask


@pytest.mark.parametrize(("space", "right"), [("MNI152NLin6Asym", True), ("T1w", False)])
def test_a_mask_with_two_forms_is_taken_in_a_template_alone(tmp_path: Path, warps: Warps, space: str, right: bool):
    affine, shape = GEOMETRIES["oblique"], SHAPES["oblique"]
    image = write_bold(tmp_path, space, smooth_volume(shape), affine)
    both = nibabel.Nifti1Image(np.ones(shape, np.uint8), affine)
    both.set_sform(affine, 4)
    both.set_qform(np.diag([4.0, 4.0, 4.5, 1.0]), 1)
    nibabel.save(both, image.mask)
    route = choose_route(run_of(image, transforms=(warps.six,)), SMALL)
    if right:
        assert to_grid(route, SMALL).mask.any()
        return
    with pytest.raises(AffineContradictory):
        to_grid(route, SMALL)


# --- faults that show only in the voxels ------------------------------------------------------------------------


def spoilt(image: BoldImage, change) -> BoldImage:
    stored = nibabel.load(image.bold)
    data = stored.get_fdata(dtype=np.float32)
    change(data)
    write_image(image.bold, data, stored.affine)
    return image


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_holes_inside_the_brain_are_counted_and_refused(disc, value: float):
    def change(data):
        data[15, 15, 15, 1:] = value
        data[16, 15, 15, 2] = value

    series = series_of(spoilt(disc(box(SHAPES["oblique"])), change))
    with pytest.raises(NonFiniteVoxels, match=r"3 voxels .* 2 of 3 volumes; the first is volume 1"):
        list(series.volumes())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_holes_outside_the_brain_are_background(disc, value: float):
    series = [
        series_of(spoilt(disc(box(SHAPES["oblique"])), lambda data, value=value: data[:6].fill(value)))
        for value in (value, 0)
    ]
    spoilt_volumes, empty = ([volume.copy() for volume in one.volumes()] for one in series)
    np.testing.assert_array_equal(spoilt_volumes, empty)


def test_a_series_that_never_changes_is_refused(disc):
    def change(data):
        data[..., 1:] = data[..., :1]

    series = series_of(spoilt(disc(box(SHAPES["oblique"])), change))
    with pytest.raises(ConstantSeries, match="3 volumes are all the same"):
        list(series.volumes())


def test_a_series_that_changes_outside_the_brain_alone_is_refused(disc):
    mask = np.zeros(SHAPES["oblique"], np.uint8)
    mask[:6] = 1  # axes of unlike length and a mask to one side: it is found in no other order of voxels

    def change(data):
        data[:6, ..., 1:] = data[:6, ..., :1]

    with pytest.raises(ConstantSeries, match="inside the brain mask"):
        list(series_of(spoilt(disc(mask), change)).volumes())


@pytest.mark.parametrize("interpolation", ["linear", "lanczos"])
def test_threads_do_not_change_a_byte(disc, interpolation: str):
    route = choose_route(run_of(disc(box(SHAPES["oblique"]))), SMALL, interpolation=interpolation)
    one, three = (first(to_grid(route, SMALL, threads=threads)) for threads in (1, 3))
    np.testing.assert_array_equal(one, three)


def test_images_are_those_of_the_file_from_the_first_on(disc):
    image = disc(box(SHAPES["oblique"]))
    stored = nibabel.load(image.bold).get_fdata(dtype=np.float32)
    np.testing.assert_array_equal(np.stack(list(series_of(image).images()), axis=-1), stored)


def test_observers_see_what_the_reader_sees(disc):
    seen: list[np.ndarray] = []
    read = list(series_of(disc(box(SHAPES["oblique"]))).observed_by(seen.append).volumes(1))
    assert len(read) == 2
    np.testing.assert_array_equal(seen, read)


# --- a removed mean ---------------------------------------------------------------------------------------------


def demeaned(folder: Path, *, boldref: str | None) -> BoldImage:
    affine = centred((20, 24, 20), (8, 8, 8))
    mean = smooth_volume((20, 24, 20))
    series = wobbling(mean, 6)
    image = write_bold(folder, "MNI152NLin6Asym", mean, affine)
    write_image(image.bold, series - series.mean(axis=-1, keepdims=True), affine)
    if boldref is None:
        return image
    shape = (10, 12, 10) if boldref == "other" else (20, 24, 20)
    path = write_image(folder / "boldref.nii.gz", smooth_volume(shape)[..., None][..., 0], centred(shape, (8, 8, 8)))
    if boldref == "same":
        write_image(path, series.mean(axis=-1), affine)
    return replace(image, boldref=path)


def test_a_removed_mean_is_added_back_from_the_boldref_and_said_so(tmp_path: Path):
    series = wobbling(smooth_volume((20, 24, 20)), 6)
    grid = Grid.of((20, 24, 20), centred((20, 24, 20), (8, 8, 8)), "MNI152NLin6Asym")
    run = run_of(demeaned(tmp_path, boldref="same"), mean_removed=True)
    on_grid = to_grid(choose_route(run, grid), grid)
    for number, volume in enumerate(on_grid.volumes()):
        np.testing.assert_allclose(volume, series[..., number], atol=1e-3 * series.max())
    assert any("is added back" in warning for warning in on_grid.warnings)


@pytest.mark.parametrize(("scanner", "right"), [(1, True), (4, False)])
def test_a_boldref_lies_where_its_template_s_form_says(tmp_path: Path, scanner: int, right: bool):
    """As the series itself: a scanner's form beside a template's is no contradiction."""
    image = demeaned(tmp_path, boldref="same")
    boldref = nibabel.load(image.boldref)
    values, affine = boldref.get_fdata(dtype=np.float32), boldref.affine
    both = nibabel.Nifti1Image(values, affine)
    both.set_sform(affine, 4)
    both.set_qform(np.diag([8.0, 8.0, 8.0, 1.0]), scanner)
    nibabel.save(both, image.boldref)
    grid = Grid.of((20, 24, 20), affine, "MNI152NLin6Asym")
    run = run_of(image, mean_removed=True)
    if not right:
        with pytest.raises(AffineContradictory):
            to_grid(choose_route(run, grid), grid)
        return
    np.testing.assert_allclose(first(to_grid(choose_route(run, grid), grid)).mean(), values.mean(), rtol=0.5)


@pytest.mark.parametrize(("boldref", "fault"), [(None, "no boldref in the same space"), ("other", "another grid")])
def test_a_removed_mean_that_nothing_gives_back_is_refused(tmp_path: Path, boldref, fault):
    grid = Grid.of((20, 24, 20), centred((20, 24, 20), (8, 8, 8)), "MNI152NLin6Asym")
    run = run_of(demeaned(tmp_path, boldref=boldref), mean_removed=True)
    with pytest.raises(DemeanedSeries, match=fault):
        to_grid(choose_route(run, grid), grid)
