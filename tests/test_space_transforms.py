"""ITK transform files give the points that ITK gives."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import SimpleITK as sitk
from space_phantoms import (
    SMALL,
    affine_transform,
    centred,
    composite,
    euler_transform,
    map_points,
    respelled,
    smooth_field,
    write_transform,
)

from neurostorm_bids.errors import TransformUnreadable
from neurostorm_bids.space import itk
from neurostorm_bids.space.itk import read_transform
from neurostorm_bids.space.transforms import points_through

POINTS = np.random.default_rng(0).uniform(-110, 110, (600, 3))
FIELD_GEOMETRY = centred((24, 28, 24), (8, 8, 8), codes="LPS", degrees=(5, 3, -4))
VERSOR = (0.1, -0.2, 0.05, np.sqrt(1 - 0.0525))
LINEAR = {
    "affine": affine_transform(1),
    "euler": euler_transform(2),
    "euler_zyx": euler_transform(3),
    "versor": sitk.VersorTransform(VERSOR, (1, 2, 3)),
    "versor_rigid": sitk.VersorRigid3DTransform(VERSOR, (1, 2, 3), (4, 5, 6)),
    "similarity": sitk.Similarity3DTransform(1.1, VERSOR, (1, 2, 3), (4, 5, 6)),
    "scale": sitk.ScaleTransform(3, (1.0, 1.1, 0.9)),
    "translation": sitk.TranslationTransform(3, (1, -2, 3)),
    "identity": sitk.Transform(3, sitk.sitkIdentity),
}
LINEAR["euler_zyx"].SetComputeZYX(True)


@pytest.fixture(scope="module")
def forward() -> sitk.CompositeTransform:
    """As fMRIPrep's from-T1w_to-template: affine first in the file, field last, so points meet the field first."""
    return composite(affine_transform(4), smooth_field(5, 10, FIELD_GEOMETRY))


@pytest.mark.parametrize("suffix", [".txt", ".tfm", ".h5"])
@pytest.mark.parametrize("name", LINEAR)
def test_linear_transforms_are_itks(tmp_path: Path, name: str, suffix: str):
    path = write_transform(LINEAR[name], tmp_path / f"x{suffix}")
    np.testing.assert_allclose(read_transform(path).map(POINTS), map_points(LINEAR[name], POINTS), atol=1e-9)


def test_matrix_offset_is_an_affine_with_a_centre(tmp_path: Path):
    path = tmp_path / "x.txt"
    path.write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: MatrixOffsetTransformBase_double_3_3\n"
        "Parameters: 1 0.1 0 0 1 0 0 0 1 5 6 7\nFixedParameters: 0 20 0\n"
    )
    # in LPS: x' = x + 0.1 (y - 20) + 5
    np.testing.assert_allclose(read_transform(path).map(np.array([[0.0, 0.0, 0.0]])), [[-3.0, -6.0, 7.0]])


@pytest.mark.parametrize("order", ["forward", "inverse"])
def test_composites_are_itks_in_both_directions(tmp_path: Path, order: str, forward: sitk.CompositeTransform):
    field, affine = smooth_field(6, 7, FIELD_GEOMETRY), affine_transform(7)
    chain = forward if order == "forward" else composite(field, affine)
    got = read_transform(write_transform(chain, tmp_path / "x.h5")).map(POINTS)
    np.testing.assert_allclose(got, map_points(chain, POINTS), atol=1e-3)


def test_a_reversed_composite_is_seen(tmp_path: Path):
    field, affine = smooth_field(6, 7, FIELD_GEOMETRY), affine_transform(7)
    got = read_transform(write_transform(composite(field, affine), tmp_path / "x.h5")).map(POINTS)
    assert np.abs(got - map_points(composite(affine, field), POINTS)).max() > 1


@pytest.mark.parametrize("precision", ["float", "double"])
@pytest.mark.parametrize("misspelled", [False, True])
def test_precisions_and_spellings(tmp_path: Path, precision: str, misspelled: bool, forward: sitk.CompositeTransform):
    path = write_transform(forward, tmp_path / "x.h5")
    other = respelled(path, tmp_path / "y.h5", precision=precision, misspelled=misspelled)
    np.testing.assert_allclose(read_transform(other).map(POINTS), map_points(forward, POINTS), atol=1e-3)


def test_displacement_ends_half_a_voxel_beyond_the_field(tmp_path: Path):
    field = smooth_field(8, 5, centred((10, 10, 10), (4, 4, 4), centre=(0, 0, 0)), (10, 10, 10))
    got = read_transform(write_transform(field, tmp_path / "x.h5"))
    along_x = np.c_[np.linspace(-26, 26, 105), np.zeros(105), np.zeros(105)] + [0.01, 1, 2]
    np.testing.assert_allclose(got.map(along_x), map_points(field, along_x), atol=1e-4)
    for end in (along_x[:12], along_x[-12:]):
        np.testing.assert_array_equal(got.map(end), end)


def test_real_fmriprep_and_nitransforms_files(shared: Path):
    for path in [
        "fmriprep/mri_coreg-lta_convert.txt",
        "niworkflows/itkIdentityTransform.txt",
        "nitransforms/affine-LAS.itk.tfm",
        "nitransforms/affine-antsComposite.h5",
        "nitransforms/regressions/from-scanner_to-bold_mode-image.tfm",
    ]:
        file = shared / "real/xfm" / path
        oracle = sitk.ReadTransform(str(file))
        np.testing.assert_allclose(read_transform(file).map(POINTS), map_points(oracle, POINTS), atol=1e-3)


# --- files that must be refused ---------------------------------------------------------------------------------


def test_two_dimensional_composite_is_refused(shared: Path):
    with pytest.raises(TransformUnreadable, match="2D"):
        read_transform(shared / "real/xfm/itkelastix/itk_composite_transform.h5")


@pytest.mark.parametrize("name", ["nitransforms/affine-LAS.fs.lta", "nitransforms/affine-LAS.fsl"])
def test_foreign_formats_are_refused(shared: Path, name: str):
    with pytest.raises(TransformUnreadable, match="no ITK transform"):
        read_transform(shared / "real/xfm" / name)


def test_a_list_of_head_motion_is_no_transform(shared: Path):
    with pytest.raises(TransformUnreadable, match="head motion"):
        read_transform(shared / "real/xfm/nitransforms/hmc-itk.tfm")


def test_two_dimensional_and_bspline_are_refused(tmp_path: Path):
    with pytest.raises(TransformUnreadable, match="2D"):
        read_transform(write_transform(sitk.Euler2DTransform(), tmp_path / "x.txt"))
    with pytest.raises(TransformUnreadable, match="BSpline"):
        read_transform(write_transform(sitk.BSplineTransform(3), tmp_path / "x.h5"))


TEXT = "#Insight Transform File V1.0\nTransform: AffineTransform_double_3_3\nParameters: {}\nFixedParameters: 0 0 0\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no ITK transform"),
        ("#Insight Transform File V1.0\n", "holds no transform"),
        (TEXT.format("1 0 0 0 1 0 0 0 1 0 0"), "11 parameters"),
        (TEXT.format("1 0 0 0 1 0 0 0 zero 0 0 0"), "no number"),
        (TEXT.format("1 0 0 0 1 0 0 0 0 0 0 0"), "singular"),
        (TEXT.format("1 0 0 0 1 0 0 0 1 0 0 nan"), "not finite"),
        (TEXT.format("1").replace("AffineTransform_double_3_3", "Affine"), "names no ITK transform"),
        ("\x89HDF\r\n\x1a\nbroken", "cannot be read"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, content: str, message: str):
    path = tmp_path / "x.txt"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(TransformUnreadable, match=message):
        read_transform(path)


def spoil(path: Path, key: str, change) -> Path:
    with h5py.File(path, "r+") as file:
        group = file["TransformGroup/2"]
        values = group[key][()]
        del group[key]
        group[key] = change(values)
    return path


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("TransformParameters", lambda values: values[:-3], "3 for each"),
        ("TransformParameters", lambda values: np.where(values == values.max(), np.nan, values), "NaN"),
        ("TransformFixedParameters", lambda values: values[:9], "9 fixed"),
        ("TransformFixedParameters", lambda values: np.r_[1e6, 1e6, 1e6, values[3:]], "declares"),
        ("TransformFixedParameters", lambda values: np.zeros(10**6), "1000000 fixed"),
    ],
)
def test_broken_fields_are_refused(tmp_path: Path, forward: sitk.CompositeTransform, key: str, change, message: str):
    path = spoil(write_transform(forward, tmp_path / "x.h5"), key, change)
    with pytest.raises(TransformUnreadable, match=message):
        read_transform(path)


def test_parts_of_a_composite_are_taken_by_their_numbers(tmp_path: Path):
    """Twelve of them, whose order matters: 10 comes after 9, not after 1."""
    parts = [affine_transform(seed) if seed % 2 else euler_transform(seed) for seed in range(12)]
    path = write_transform(composite(*parts), tmp_path / "x.h5")
    np.testing.assert_allclose(read_transform(path).map(POINTS), map_points(composite(*parts), POINTS), rtol=1e-6)


@pytest.mark.parametrize("kind", ["Affine_double_2_3", "Affine_double_3_2"])
def test_points_of_the_plane_are_refused_on_either_side(tmp_path: Path, kind: str):
    path = tmp_path / "x.txt"
    path.write_text(TEXT.format("1 0 0 0 1 0 0 0 1 0 0 0").replace("AffineTransform_double_3_3", kind))
    with pytest.raises(TransformUnreadable) as caught:
        read_transform(path)
    assert (caught.value.fault, caught.value.expected) == (f"Affine maps {kind[14]}D points", "3D")


def test_a_field_may_be_one_voxel_thick_and_as_large_as_is_allowed(tmp_path: Path, monkeypatch):
    field = smooth_field(5, 10, centred((24, 28, 1), (8, 8, 8), codes="LPS"), (24, 28, 1))
    path = write_transform(composite(field), tmp_path / "x.h5")
    inside = np.c_[np.random.default_rng(0).uniform(-60, 60, (50, 2)), np.zeros(50)]
    monkeypatch.setattr(itk, "LARGEST_FIELD", 24 * 28)
    np.testing.assert_allclose(read_transform(path).map(inside), map_points(composite(field), inside), atol=1e-3)
    monkeypatch.setattr(itk, "LARGEST_FIELD", 24 * 28 - 1)
    with pytest.raises(TransformUnreadable, match="declares"):
        read_transform(path)


@pytest.mark.parametrize(
    ("key", "values", "expected"),
    [
        ("TransformParameters", np.zeros(11), "12 and 3"),
        ("TransformFixedParameters", np.zeros(2), "12 and 3"),
        ("TransformFixedParameters", np.zeros(65), "at most 18"),
    ],
)
def test_what_a_linear_transform_should_hold_is_told(tmp_path: Path, key: str, values: np.ndarray, expected: str):
    path = write_transform(composite(affine_transform(1), affine_transform(2)), tmp_path / "x.h5")
    with pytest.raises(TransformUnreadable) as caught:
        read_transform(spoil(path, key, lambda _: values))
    assert (caught.value.file, caught.value.expected) == (path, expected)


def test_a_name_that_is_none_is_told_with_one(tmp_path: Path):
    path = tmp_path / "x.txt"
    path.write_text(TEXT.format("1").replace("AffineTransform_double_3_3", "Affine"))
    with pytest.raises(TransformUnreadable) as caught:
        read_transform(path)
    assert (caught.value.fault, caught.value.expected) == (
        "'Affine' names no ITK transform", "a name as Affine..._double_3_3",
    )  # fmt: skip


def test_an_hdf5_file_of_something_else_is_refused(tmp_path: Path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["data"] = np.zeros(3)
    with pytest.raises(TransformUnreadable, match="no ITK transform"):
        read_transform(tmp_path / "x.h5")


# --- the grid through files -------------------------------------------------------------------------------------


def test_mapped_points_follow_a_file_that_changes(tmp_path: Path, forward: sitk.CompositeTransform):
    path = write_transform(forward, tmp_path / "x.h5")
    first = points_through(SMALL, (path,))
    np.testing.assert_allclose(first[::997], map_points(forward, SMALL.points()[::997]), atol=1e-3)
    write_transform(composite(affine_transform(4)), path)
    changed = points_through(SMALL, (path,))
    np.testing.assert_allclose(changed[::997], map_points(affine_transform(4), SMALL.points()[::997]), atol=1e-3)


def test_the_cache_is_used_and_remade_when_broken(tmp_path: Path, monkeypatch):
    from neurostorm_bids.space import transforms

    monkeypatch.setattr(transforms, "LARGE_FILE", 1)
    chain = affine_transform(9)
    path, cache = write_transform(chain, tmp_path / "x.txt"), tmp_path / "cache"
    first = points_through(SMALL, (path,), cache)
    transforms._mapped.cache_clear()
    (kept,) = cache.glob("points-*.npy")
    np.save(kept, first + 1)
    np.testing.assert_array_equal(points_through(SMALL, (path,), cache), first + 1)  # it is the file that was read
    transforms._mapped.cache_clear()
    kept.write_bytes(b"broken")
    np.testing.assert_array_equal(points_through(SMALL, (path,), cache), first)


@pytest.mark.parametrize("change", [lambda points: points[:-1], lambda points: points.astype(float), np.ravel])
def test_a_cache_of_other_points_is_remade(tmp_path: Path, monkeypatch, change):
    from neurostorm_bids.space import transforms

    monkeypatch.setattr(transforms, "LARGE_FILE", 1)
    path, cache = write_transform(affine_transform(9), tmp_path / "x.txt"), tmp_path / "deep" / "cache"
    first = points_through(SMALL, (path,), cache)
    transforms._mapped.cache_clear()
    (kept,) = cache.iterdir()
    np.save(kept, change(first + 1))
    np.testing.assert_array_equal(points_through(SMALL, (path,), cache), first)
    np.testing.assert_array_equal(np.load(kept), first)
    assert [file.name for file in cache.iterdir()] == [kept.name]


def test_the_cache_is_written_beside_its_place(tmp_path: Path, monkeypatch):
    """What is written elsewhere may lie on another disk, from which nothing can be moved in one step."""
    from neurostorm_bids.space import transforms

    monkeypatch.setattr(transforms, "LARGE_FILE", 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    path = write_transform(affine_transform(9), tmp_path / "x.txt")
    points_through(SMALL, (path,), tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_small_transforms_are_not_cached_and_nothing_is_without_a_folder(tmp_path: Path):
    path = write_transform(affine_transform(9), tmp_path / "x.txt")
    points_through(SMALL, (path,), tmp_path / "cache")
    assert [file.name for file in tmp_path.iterdir()] == ["x.txt"]


def test_missing_transforms_are_named(tmp_path: Path):
    with pytest.raises(TransformUnreadable, match="does not exist"):
        points_through(SMALL, (tmp_path / "none.h5",))
    (tmp_path / "link.h5").symlink_to(tmp_path / "annex")
    with pytest.raises(TransformUnreadable, match="datalad get"):
        points_through(SMALL, (tmp_path / "link.h5",))
