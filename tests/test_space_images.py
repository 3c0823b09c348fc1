"""Headers are believed only where they do not contradict themselves; files are streamed whole or refused."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from space_phantoms import centred, with_header, write_image

from neurostorm_bids.errors import (
    AffineContradictory,
    AffineMissing,
    DataTypeUnsupported,
    ImageUnreadable,
    NeurostormError,
    NotABoldSeries,
    RepetitionTimeUnusable,
    SurfaceData,
)
from neurostorm_bids.space.header import judged_affine, judged_t_r_s
from neurostorm_bids.space.nifti import open_nifti, open_series

SHAPE = (7, 6, 5, 4)
AFFINE = centred(SHAPE[:3], (3, 3, 4), codes="LAS", degrees=(4, 0, 2))
RNG = np.random.default_rng(0)


def voxels_of(path: Path) -> np.ndarray:
    return np.stack(list(open_series(path).volumes()), axis=-1)


def edited(path: Path, *, series: bool = True, **fields) -> Path:
    """A 4D image with header fields overwritten behind nibabel's back."""
    shape = SHAPE if series else SHAPE[:3]
    write_image(path, RNG.normal(size=shape).astype(np.float32), AFFINE)
    return with_header(path, **fields)


# --- voxels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", "u2", "i4", "u4", "i8", "<f4", ">f4", "f8"])
def test_every_real_data_type_streams_as_nibabel_reads_it(tmp_path: Path, dtype: str, suffix: str):
    data = RNG.integers(0, 100, SHAPE).astype(dtype)
    header = nibabel.Nifti1Header(endianness=">" if dtype.startswith(">") else "<")
    header.set_data_dtype(dtype)
    nibabel.Nifti1Image(data, AFFINE, header, dtype=dtype).to_filename(tmp_path / f"x{suffix}")
    got = voxels_of(tmp_path / f"x{suffix}")
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, data.astype(np.float32))


@pytest.mark.parametrize(
    ("dtype", "slope", "intercept", "always"),
    [
        *(("<i2", 1, 0, True), ("u1", 0, 0, True), ("i8", 1, 0, True)),
        *(("<i2", 2, 0, False), ("<i2", 1, 1e30, False), ("<f4", 1, 0, False), ("f8", 0, 0, False)),
    ],
)
def test_only_integers_as_they_are_are_finite_whatever_is_stored(tmp_path, dtype, slope, intercept, always):
    header = nibabel.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(SHAPE)
    header.set_sform(AFFINE, "mni")
    header["vox_offset"], header["scl_slope"], header["scl_inter"] = 352, slope, intercept
    size = int(np.prod(SHAPE)) * np.dtype(dtype).itemsize
    (tmp_path / "x.nii").write_bytes(header.binaryblock + bytes(4) + b"\xff" * size)  # NaN where it can be
    image = open_series(tmp_path / "x.nii")
    assert image.always_finite == always
    assert always <= bool(np.isfinite(voxels_of(tmp_path / "x.nii")).all())


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_both_nifti_versions_and_scaled_integers(tmp_path: Path, kind):
    image = kind(RNG.normal(1000, 300, SHAPE), AFFINE)
    image.set_data_dtype("i2")
    nibabel.save(image, tmp_path / "x.nii.gz")
    assert open_series(tmp_path / "x.nii.gz").slope != 1
    expected = nibabel.load(tmp_path / "x.nii.gz").get_fdata().astype(np.float32)
    np.testing.assert_array_equal(voxels_of(tmp_path / "x.nii.gz"), expected)


def test_a_slope_of_zero_means_none(tmp_path: Path):
    path = edited(tmp_path / "x.nii", scl_slope=0, scl_inter=5)
    np.testing.assert_array_equal(voxels_of(path), np.asarray(nibabel.load(path).dataobj))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@given(start=st.integers(0, SHAPE[3] + 1))
def test_a_late_start_gives_the_same_volumes(tmp_path_factory, suffix: str, start: int):
    path = tmp_path_factory.getbasetemp() / f"late{suffix}"
    if not path.exists():
        write_image(path, RNG.normal(size=SHAPE).astype(np.float32), AFFINE)
    everything = list(open_series(path).volumes())
    late = list(open_series(path).volumes(start))
    assert len(late) == max(0, SHAPE[3] - start)
    for a, b in zip(late, everything[start:], strict=True):
        np.testing.assert_array_equal(a, b)


def test_memory_does_not_grow_with_length(tmp_path: Path):
    path = write_image(tmp_path / "x.nii.gz", np.zeros((40, 40, 40, 60), np.int16), AFFINE)
    tracemalloc.start()
    for _ in open_series(path).volumes():
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 40**3 * 4  # a few float32 volumes, not sixty


def test_a_trailing_singleton_is_no_dimension(tmp_path: Path):
    assert open_series(write_image(tmp_path / "x.nii", np.zeros((*SHAPE, 1)), AFFINE)).shape == SHAPE


def test_a_gzipped_file_without_the_suffix_is_read(tmp_path: Path):
    path = write_image(tmp_path / "x.nii.gz", RNG.normal(size=SHAPE), AFFINE)
    np.testing.assert_array_equal(voxels_of(path.rename(tmp_path / "x.nii")).shape, SHAPE)


# --- files that must be refused ---------------------------------------------------------------------------------


def refusal(path: Path) -> NeurostormError:
    with pytest.raises(NeurostormError) as caught:
        voxels_of(path)
    assert str(path) in str(caught.value)
    return caught.value


def test_missing_empty_and_foreign_files(tmp_path: Path):
    assert "cannot be read" in str(refusal(tmp_path / "none.nii"))
    (tmp_path / "empty.nii.gz").touch()
    assert "0 bytes" in str(refusal(tmp_path / "empty.nii.gz"))
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / ".git/annex/x")
    assert "datalad get" in str(refusal(tmp_path / "link.nii.gz"))
    for name, content in {"text.nii": b"a" * 600, "short.nii": b"abc", "zip.nii.gz": gzip.compress(b"b" * 600)}.items():
        (tmp_path / name).write_bytes(content)
        assert "no single-file NIfTI" in str(refusal(tmp_path / name))


@pytest.mark.parametrize("keep", [0.3, 0.8, 0.999])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_truncated_files(tmp_path: Path, suffix: str, keep: float):
    path = write_image(tmp_path / f"x{suffix}", RNG.normal(size=(16, 16, 16, 6)), AFFINE)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    error = refusal(path)
    assert isinstance(error, ImageUnreadable)
    assert any(word in str(error) for word in ("truncated", "ends early", "ends inside"))


def test_a_gzip_that_is_complete_but_too_short(tmp_path: Path):
    path = write_image(tmp_path / "x.nii.gz", RNG.normal(size=SHAPE), AFFINE)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-100]))
    assert "ends inside volume 3" in str(refusal(path))


def test_corrupt_compression_and_checksum(tmp_path: Path):
    path = write_image(tmp_path / "x.nii.gz", RNG.normal(size=(16, 16, 16, 6)), AFFINE)
    whole = bytearray(path.read_bytes())
    path.write_bytes(whole[:-8] + b"\0\0\0\0" + whole[-4:])
    assert isinstance(refusal(path), ImageUnreadable)
    whole[len(whole) // 2 : len(whole) // 2 + 40] = b"\xff" * 40
    path.write_bytes(whole)
    assert isinstance(refusal(path), ImageUnreadable)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"datatype": 32, "bitpix": 64}, DataTypeUnsupported, "complex"),
        ({"datatype": 128, "bitpix": 24}, DataTypeUnsupported, "RGB"),
        ({"datatype": 1536, "bitpix": 128}, DataTypeUnsupported, "float128"),
        ({"datatype": 77}, DataTypeUnsupported, "unknown data type"),
        ({"scl_slope": np.inf}, ImageUnreadable, "scales voxels"),
        ({"dim": [4, 7, 6, -5, 4, 1, 1, 1]}, ImageUnreadable, "dimensions"),
        ({"dim": [4, 30000, 30000, 30000, 4, 1, 1, 1]}, ImageUnreadable, "dimensions"),
        ({"dim": [9, 7, 6, 5, 4, 1, 1, 1]}, ImageUnreadable, "no single-file NIfTI"),
        ({"dim": [0, 7, 6, 5, 4, 1, 1, 1]}, ImageUnreadable, "dimensions"),
        ({"dim": [5, 7, 6, 5, 2, 2, 1, 1]}, NotABoldSeries, "5D"),
        ({"dim": [3, 7, 6, 5, 4, 1, 1, 1]}, NotABoldSeries, "3D"),
    ],
)
def test_impossible_headers(tmp_path: Path, fields: dict, error: type, message: str):
    with pytest.raises(error, match=message):
        open_series(edited(tmp_path / "x.nii", **fields))


def test_surface_data_are_refused(shared: Path):
    with pytest.raises(SurfaceData, match="CIFTI"):
        open_nifti(next((shared / "real/bold/niworkflows").glob("*dtseries.nii")))


# --- place ------------------------------------------------------------------------------------------------------


def affine_of(path: Path, *, in_template: bool = True) -> np.ndarray:
    return judged_affine(open_nifti(path), in_template=in_template)


def test_sform_or_qform_alone_will_do(tmp_path: Path):
    for forms in ({"sform_code": 0}, {"qform_code": 0}, {}):
        np.testing.assert_allclose(affine_of(edited(tmp_path / "x.nii", **forms)), AFFINE, atol=1e-4)


def test_no_form_is_refused(tmp_path: Path, shared: Path):
    with pytest.raises(AffineMissing, match="sform_code and qform_code are 0"):
        affine_of(edited(tmp_path / "x.nii", sform_code=0, qform_code=0))
    with pytest.raises(AffineMissing):
        affine_of(shared / "real/bold/oro.nifti/filtered_func_data.nii.gz")


def test_forms_that_differ_are_refused_unless_they_name_two_spaces(tmp_path: Path):
    moved = {"qoffset_x": AFFINE[0, 3] + 5}
    with pytest.raises(AffineContradictory, match=r"sform and qform differ by up to 5\.0 mm"):
        affine_of(edited(tmp_path / "x.nii", **moved))
    scanner = edited(tmp_path / "x.nii", **moved, qform_code=1, sform_code=4)
    np.testing.assert_allclose(affine_of(scanner, in_template=True), AFFINE, atol=1e-4)
    with pytest.raises(AffineContradictory):
        affine_of(scanner, in_template=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"qform_code": 0, "pixdim": [1, 4, 4, 4, 2, 0, 0, 0]}, "pixdim 4 x 4 x 4 mm"),
        ({"qform_code": 0, "srow_x": [0, 0, 0, 0]}, "voxels of"),
        ({"qform_code": 0, "srow_x": [np.nan, 0, 0, 0]}, "voxels of"),
        ({"qform_code": 0, "srow_x": [3000, 0, 0, 0]}, "0.2 to 30 mm"),
        ({"qform_code": 0, "srow_x": [3, 0, 0, 0], "srow_y": [3, 0.01, 0, 0]}, "singular"),
        ({"sform_code": 0, "quatern_b": 5}, "qform is invalid"),
    ],
)
def test_impossible_geometries_are_refused(tmp_path: Path, fields: dict, message: str):
    with pytest.raises(AffineContradictory, match=message):
        affine_of(edited(tmp_path / "x.nii", **fields))


def test_real_trap_is_refused(shared: Path):
    with pytest.raises(AffineContradictory):
        affine_of(shared / "real/mni/neuroim2/mni_downsampled.nii.gz")


def test_real_images_with_sound_headers_are_believed(shared: Path):
    for name in ["niworkflows/sub-ds205s03_task-functionallocalizer_run-01_bold_volreg.nii.gz", "nitime/fmri1.nii.gz"]:
        path = shared / "real/bold" / name
        np.testing.assert_array_equal(affine_of(path, in_template=False), nibabel.load(path).affine)


# --- time -------------------------------------------------------------------------------------------------------


def t_r_of(tmp_path: Path, value: float, unit: int, stated: float | None = None):
    path = edited(tmp_path / "x.nii", pixdim=[1, 3, 3, 4, value, 0, 0, 0], xyzt_units=2 | unit)
    return judged_t_r_s(open_series(path).header, stated, path)


@pytest.mark.parametrize(("value", "unit"), [(0.8, 8), (800, 16), (800_000, 24)])
def test_units_of_the_header(tmp_path: Path, value: float, unit: int):
    assert t_r_of(tmp_path, value, unit) == (0.8, ())


def test_a_header_without_unit_is_taken_for_seconds_and_says_so(tmp_path: Path):
    t_r_s, warnings = t_r_of(tmp_path, 2.2, 0)
    assert t_r_s == 2.2
    assert "seconds are assumed" in warnings[0]


@pytest.mark.parametrize(("value", "unit"), [(0, 8), (2000, 8), (2000, 0), (np.nan, 8), (-2, 8), (2, 16)])
def test_impossible_times_are_refused_unless_the_sidecar_states_one(tmp_path: Path, value: float, unit: int):
    with pytest.raises(RepetitionTimeUnusable, match="State RepetitionTime"):
        t_r_of(tmp_path, value, unit)
    t_r_s, warnings = t_r_of(tmp_path, value, unit, 2.0)
    assert t_r_s == 2.0
    assert "sidecar 2 s" in warnings[0]


def test_header_and_sidecar_within_a_percent_agree(tmp_path: Path):
    assert t_r_of(tmp_path, 0.7999, 8, 0.8) == (0.8, ())
    t_r_s, warnings = t_r_of(tmp_path, 0.82, 8, 0.8)
    assert t_r_s == 0.8
    assert "0.82 s" in warnings[0]


@pytest.mark.parametrize("stated", [0.0, -1.0, 2000.0, float("nan")])
def test_an_impossible_sidecar_is_refused(tmp_path: Path, stated: float):
    with pytest.raises(RepetitionTimeUnusable, match="sidecar states"):
        t_r_of(tmp_path, 2, 8, stated)


def test_real_header_of_2000_seconds(shared: Path):
    path = shared / "real/bold/nibabel/example4d.nii.gz"
    with pytest.raises(RepetitionTimeUnusable, match="2000 s"):
        judged_t_r_s(open_series(path).header, None, path)
