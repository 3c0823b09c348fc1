"""What is said of images, masks and headers that are refused: the whole of it, and where exactly refusal begins."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
from space_phantoms import with_header, write_image

from neurostorm_bids.errors import (
    AffineContradictory,
    ConstantSeries,
    ImageUnreadable,
    MaskUnusable,
    RepetitionTimeUnusable,
    TransformUnavailable,
    TransformUnreadable,
)
from neurostorm_bids.space import itk, nifti, templateflow
from neurostorm_bids.space.grid import Grid
from neurostorm_bids.space.header import judged_affine, judged_t_r_s
from neurostorm_bids.space.itk import read_transform
from neurostorm_bids.space.masks import computed_mask, open_mask, read_mask
from neurostorm_bids.space.nifti import open_nifti, open_series
from neurostorm_bids.space.resample import ON_VOXEL, LatticeSampler
from neurostorm_bids.space.series import _Watch

SHAPE, AFFINE = (4, 5, 6, 3), np.diag([2.0, 2.0, 2.0, 1.0])
FETCH = "Fetch or write it again"
GRID = Grid.of(SHAPE[:3], AFFINE, "MNI152NLin6Asym")


def image(path: Path, shape: tuple[int, ...] = SHAPE, affine: np.ndarray = AFFINE, **fields) -> Path:
    write_image(path, np.arange(np.prod(shape), dtype=np.float32).reshape(shape), affine)
    return with_header(path, **fields)


def parts(error: Exception) -> tuple:
    return error.fault, error.expected, error.remedy


# --- time -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("unit", "said"), [(8, ""), (0, " (unit not stated)")])
def test_a_repetition_time_that_cannot_be(tmp_path: Path, unit: int, said: str):
    path = image(tmp_path / "x.nii", pixdim=[1, 2, 2, 2, 50, 0, 0, 0], xyzt_units=2 | unit)
    with pytest.raises(RepetitionTimeUnusable) as caught:
        judged_t_r_s(open_series(path).header, None, path)
    assert parts(caught.value) == (
        f"the header gives a repetition time of 50 s{said} and the JSON sidecar none",
        "0.1 to 20 s",
        "State RepetitionTime, in seconds, in the JSON sidecar",
    )


@pytest.mark.parametrize(("stated", "right"), [(0.1, True), (20.0, True), (0.0999, False), (20.001, False)])
def test_the_shortest_and_the_longest_repetition_time(tmp_path: Path, stated: float, right: bool):
    header = open_series(image(tmp_path / "x.nii")).header
    if right:
        assert judged_t_r_s(header, stated, tmp_path / "x.nii")[0] == stated
    else:
        with pytest.raises(RepetitionTimeUnusable):
            judged_t_r_s(header, stated, tmp_path / "x.nii")


# --- place ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("zoom", "right"), [(0.2, True), (30.0, True), (0.199, False), (30.1, False)])
def test_the_smallest_and_the_largest_voxel(tmp_path: Path, zoom: float, right: bool):
    affine = np.diag([zoom, 2, 2, 1.0])
    made = open_nifti(image(tmp_path / "x.nii", affine=affine))
    if right:
        np.testing.assert_allclose(judged_affine(made, in_template=True), affine, rtol=1e-6)
        return
    with pytest.raises(AffineContradictory) as caught:
        judged_affine(made, in_template=True)
    assert parts(caught.value)[1] == "0.2 to 30 mm a side"


@pytest.mark.parametrize(("apart", "right"), [(0.19, True), (0.21, False)])
def test_forms_may_differ_by_a_tenth_of_a_voxel(tmp_path: Path, apart: float, right: bool):
    made = open_nifti(image(tmp_path / "x.nii", qoffset_x=apart))
    if right:
        judged_affine(made, in_template=True)
        return
    with pytest.raises(AffineContradictory) as caught:
        judged_affine(made, in_template=True)
    assert parts(caught.value)[1:] == (
        "one position of the voxels",
        "Find out which of the two is right and copy it over the other",
    )


def test_forms_are_compared_at_the_far_corner_too(tmp_path: Path):
    """Turned about the first voxel, which stays: a degree is a voxel only far away from it."""
    turned = nibabel.quaternions.mat2quat(nibabel.eulerangles.euler2mat(z=np.deg2rad(3)))
    made = open_nifti(image(tmp_path / "x.nii", quatern_b=turned[1], quatern_c=turned[2], quatern_d=turned[3]))
    far = np.array([3, 4, 5]) * 2.0
    moved = np.abs(nibabel.eulerangles.euler2mat(z=np.deg2rad(3)) @ far - far).max()
    assert moved > 0.2
    with pytest.raises(AffineContradictory, match=rf"differ by up to {moved:.1f} mm"):
        judged_affine(made, in_template=True)


@pytest.mark.parametrize(("sform", "qform"), [(4, 1), (3, 1), (2, 1)])
def test_a_template_s_form_wins_over_the_scanner_s(tmp_path: Path, sform: int, qform: int):
    made = open_nifti(image(tmp_path / "x.nii", qoffset_x=9, sform_code=sform, qform_code=qform))
    np.testing.assert_allclose(judged_affine(made, in_template=True), AFFINE, atol=1e-6)


@pytest.mark.parametrize(("sform", "qform"), [(1, 1), (4, 4), (1, 4)])
def test_no_other_pair_of_forms_may_differ(tmp_path: Path, sform: int, qform: int):
    made = open_nifti(image(tmp_path / "x.nii", qoffset_x=9, sform_code=sform, qform_code=qform))
    with pytest.raises(AffineContradictory):
        judged_affine(made, in_template=True)


@pytest.mark.parametrize(("share", "right"), [(0.9, True), (1.1, False)])
def test_a_grid_lies_on_voxels_where_its_farthest_corner_does(share: float, right: bool):
    stretched = np.diag([2 * (1 + share * ON_VOXEL / 3), 2, 2, 1])  # three voxels from the first to the last
    sampler = LatticeSampler.between(GRID, Grid.of(SHAPE[:3], stretched, GRID.template))
    assert (sampler is not None) is right


def test_one_volume_is_not_taken_for_a_series_that_never_changes(tmp_path: Path):
    made = open_series(image(tmp_path / "x.nii"))
    watch = _Watch(made, np.arange(10))
    volume = next(made.volumes())
    watch.checked(volume)
    watch.finish()
    watch.checked(volume)
    with pytest.raises(ConstantSeries) as caught:
        watch.finish()
    assert parts(caught.value) == (
        "the 2 volumes are all the same inside the brain mask", "a BOLD series", "Check how the file was made",
    )  # fmt: skip


# --- files ------------------------------------------------------------------------------------------------------


def test_what_cannot_be_opened(tmp_path: Path, monkeypatch):
    def denied(*_arguments, **_named):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(ImageUnreadable) as caught:
        open_nifti(tmp_path / "x.nii")
    assert parts(caught.value) == (
        "the file cannot be read (Permission denied)", None, "Check its permissions, or fetch it again",
    )  # fmt: skip


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_volume_more_than_the_header_says(tmp_path: Path, suffix: str):
    path = tmp_path / f"x{suffix}"
    write_image(path, np.zeros(SHAPE, np.float32), AFFINE)
    opener = nibabel.openers.Opener
    with opener(path) as stream:
        content = bytearray(stream.read())
    content[48:50] = (2).to_bytes(2, "little")  # dim[4]
    with opener(path, "wb") as stream:
        stream.write(bytes(content))
    made = open_nifti(path)
    with pytest.raises(ImageUnreadable) as caught:
        list(made.volumes())
    assert parts(caught.value) == (
        "the file goes on after its last volume, for the length of a volume or more", "2 volumes by its header", FETCH,
    )  # fmt: skip
    assert caught.value.file == path


def test_less_than_a_volume_more_is_let_be(tmp_path: Path):
    path = image(tmp_path / "x.nii")
    path.write_bytes(path.read_bytes() + b"\0" * (4 * 4 * 5 * 6 - 1))
    assert len(list(open_nifti(path).volumes())) == 3


@pytest.mark.parametrize(
    ("offset", "right"), [(0, True), (352, True), (368, True), (351, False), (64 * 1024**2, False)]
)
def test_where_voxels_may_begin(tmp_path: Path, offset: int, right: bool):
    path = image(tmp_path / "x.nii", vox_offset=offset)
    whole = path.read_bytes()
    path.write_bytes(whole[:352] + b"\0" * max(0, offset - 352) + whole[352:])
    if right:
        first = next(open_nifti(path).volumes())
        assert first.ravel(order="C")[:3].tolist() == [0.0, 3.0, 6.0]
        return
    with pytest.raises(ImageUnreadable) as caught:
        open_nifti(path)
    fault = f"the voxels begin at byte {float(offset):g} by the header"
    assert parts(caught.value) == (fault, "352 or somewhat more", FETCH)


def test_a_volume_of_the_largest_size_is_believed_and_no_larger(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(nifti, "LARGEST_VOLUME", 4 * 5 * 6)
    open_nifti(image(tmp_path / "x.nii"))
    monkeypatch.setattr(nifti, "LARGEST_VOLUME", 4 * 5 * 6 - 1)
    with pytest.raises(ImageUnreadable) as caught:
        open_nifti(tmp_path / "x.nii")
    assert parts(caught.value) == ("the header declares dimensions 4x5x6x3", None, FETCH)


def test_a_truncated_file_is_told_with_its_bytes(tmp_path: Path):
    path = image(tmp_path / "x.nii")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ImageUnreadable) as caught:
        open_nifti(path)
    needed = 352 + 4 * np.prod(SHAPE)
    assert parts(caught.value) == (
        f"the file is truncated: {needed - 1} bytes", f"{needed} bytes by its header", FETCH,
    )  # fmt: skip
    path.write_bytes(whole)
    open_nifti(path)


def test_what_compression_cannot_hold_is_refused_before_it_is_read(tmp_path: Path, monkeypatch):
    path = tmp_path / "x.nii.gz"
    write_image(path, np.zeros((20, 20, 20, 3), np.float32), AFFINE)
    found, needed = path.stat().st_size, 352 + 4 * 20**3 * 3
    open_nifti(path)
    monkeypatch.setattr(nifti, "MOST_EXPANDED", needed // found)
    with pytest.raises(ImageUnreadable) as caught:
        open_nifti(path)
    fault = f"{found} compressed bytes cannot hold the {needed} that the header declares"
    assert parts(caught.value) == (fault, None, FETCH)


@pytest.mark.parametrize(("change", "fault"), [("cut", "ends early"), ("spoil", "is corrupt")])
def test_a_stream_that_ends_early_is_told_from_one_that_is_corrupt(tmp_path: Path, change: str, fault: str):
    path = tmp_path / "x.nii.gz"
    write_image(path, np.random.default_rng(0).normal(size=(16, 16, 16, 3)), AFFINE)
    whole = path.read_bytes()
    half = len(whole) // 2
    path.write_bytes(whole[:half] if change == "cut" else whole[:half] + b"\xff" * 64 + whole[half + 64 :])
    with pytest.raises(ImageUnreadable, match=rf"the gzip stream {fault} \(") as caught:
        list(open_nifti(path).volumes())
    assert (caught.value.file, caught.value.remedy) == (path, "Fetch or write the file again")


# --- transforms -------------------------------------------------------------------------------------------------


def linear(path: Path, values: h5py.ExternalLink | h5py.SoftLink | None, **storage) -> Path:
    with h5py.File(path, "w") as file:
        group = file.create_group("TransformGroup/0")
        group["TransformType"] = np.bytes_("AffineTransform_double_3_3")
        group["TransformFixedParameters"] = np.zeros(3)
        if values is not None:
            group["TransformParameters"] = values
        else:
            group.create_dataset("TransformParameters", (12,), "f8", **storage)
    return path


def test_nothing_is_read_from_another_file(tmp_path: Path):
    linear(tmp_path / "sound.h5", None)
    numbers = tmp_path / "numbers"
    np.eye(3, 4).tofile(numbers)
    place = "TransformGroup/0/TransformParameters"
    made = [
        linear(tmp_path / "link.h5", h5py.ExternalLink(str(tmp_path / "sound.h5"), place)),
        linear(tmp_path / "soft.h5", h5py.SoftLink("/TransformGroup/0/TransformFixedParameters")),
        linear(tmp_path / "storage.h5", None, external=[(str(numbers), 0, 96)]),
    ]
    for path in made:
        with pytest.raises(TransformUnreadable) as caught:
            read_transform(path)
        assert caught.value.file == path
        assert parts(caught.value) == (
            "TransformParameters is a link, or its values lie outside the file",
            "everything in the file itself",
            "Write it again with ITK or ANTs",
        )


@pytest.mark.parametrize(
    ("place", "stated", "fault"),
    [
        ("TransformGroup/0/TransformType", np.bytes_("A" * 201), "TransformType is no name"),
        ("TransformGroup/0/TransformType", np.bytes_("A" * 200), "names no ITK transform"),
        ("TransformGroup/0/TransformType", np.array([b"AffineTransform_double_3_3"] * 2), "TransformType is no name"),
        ("TransformGroup/0/TransformType", h5py.SoftLink("/name"), "TransformType is a link"),
        ("TransformGroup", h5py.SoftLink("/group"), "TransformGroup is a link"),
    ],
)
def test_what_a_transform_s_name_may_not_be(tmp_path: Path, place: str, stated, fault: str):
    path = linear(tmp_path / "x.h5", None)
    with h5py.File(path, "r+") as file:
        file["name"], file["group"] = file["TransformGroup/0/TransformType"], file["TransformGroup"]
        del file[place]
        file[place] = stated
    with pytest.raises(TransformUnreadable, match=fault) as caught:
        read_transform(path)
    assert caught.value.file == path


def test_a_text_may_hold_letters_of_any_encoding(tmp_path: Path):
    path = tmp_path / "x.txt"
    text = "#Insight Transform File V1.0\n# Jürgen\nTransform: TranslationTransform_double_3_3\nParameters: 1 -2 3\n"
    path.write_bytes(text.encode("latin-1"))
    np.testing.assert_allclose(read_transform(path).map(np.zeros((1, 3))), [[-1, 2, 3]])


@pytest.mark.parametrize("name", ["TransformParameters", "TransformFixedParameters"])
def test_parameters_without_values_are_counted_as_none(tmp_path: Path, name: str):
    path = linear(tmp_path / "x.h5", None)
    with h5py.File(path, "r+") as file:
        group = file["TransformGroup/0"]
        del group[name]
        group[name] = h5py.Empty("f8")
    n_parameters, n_fixed = (0, 3) if name == "TransformParameters" else (12, 0)
    with pytest.raises(TransformUnreadable) as caught:
        read_transform(path)
    assert caught.value.fault == f"AffineTransform has {n_parameters} parameters and {n_fixed} fixed ones"


@pytest.mark.parametrize(
    ("entries", "n_parameters", "n_fixed"),
    [("FixedParameters: 0 0 0", 0, 3), ("Parameters: 1 0 0 0 1 0 0 0 1 0 0 0", 12, 0)],
)
def test_a_text_without_an_entry_has_none_of_its_numbers(tmp_path: Path, entries: str, n_parameters: int, n_fixed: int):
    path = tmp_path / "x.txt"
    path.write_text(f"#Insight Transform File V1.0\nTransform: AffineTransform_double_3_3\n{entries}\n")
    with pytest.raises(TransformUnreadable) as caught:
        read_transform(path)
    assert caught.value.fault == f"AffineTransform has {n_parameters} parameters and {n_fixed} fixed ones"


def test_a_text_is_read_up_to_its_largest_size(tmp_path: Path, monkeypatch):
    path = tmp_path / "x.txt"
    path.write_text(
        "#Insight Transform File V1.0\nTransform: TranslationTransform_double_3_3\n"
        "Parameters: 1 -2 3\nFixedParameters:\n"
    )
    monkeypatch.setattr(itk, "LARGEST_TEXT", path.stat().st_size)
    np.testing.assert_allclose(read_transform(path).map(np.zeros((1, 3))), [[-1, 2, 3]])  # LPS is written, RAS meant
    monkeypatch.setattr(itk, "LARGEST_TEXT", path.stat().st_size - 1)
    with pytest.raises(TransformUnreadable) as caught:
        read_transform(path)
    assert parts(caught.value) == (
        "the transform is too large for a text", f"at most {path.stat().st_size - 1} bytes", FETCH,
    )  # fmt: skip


@pytest.mark.parametrize("entry", ["Parameters", "FixedParameters"])
def test_a_word_among_numbers_is_told_with_its_file(tmp_path: Path, entry: str):
    path = tmp_path / "x.txt"
    path.write_text(f"Transform: TranslationTransform_double_3_3\nParameters: 1 2 3\n{entry}: 1 two 3\n")
    path.write_text("#Insight Transform File V1.0\n" + path.read_text())
    with pytest.raises(TransformUnreadable, match=r"a parameter is no number \(.*two") as caught:
        read_transform(path)
    assert (caught.value.file, caught.value.remedy) == (path, FETCH)


def test_a_copy_of_the_archive_is_asked_where_one_is_named(monkeypatch):
    monkeypatch.setenv("NEUROSTORM_TEMPLATEFLOW_ARCHIVE", "http://copy/of/it/")
    assert templateflow.archive() == "http://copy/of/it"
    monkeypatch.delenv("NEUROSTORM_TEMPLATEFLOW_ARCHIVE")
    assert templateflow.archive().startswith("https://") and not templateflow.archive().endswith("/")


def test_the_cache_lies_where_templateflow_has_it(tmp_path: Path, monkeypatch):
    monkeypatch.delenv("TEMPLATEFLOW_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert templateflow.cache_folder() == tmp_path / "templateflow"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert templateflow.cache_folder() == tmp_path / ".cache" / "templateflow"
    monkeypatch.setenv("TEMPLATEFLOW_HOME", "/elsewhere")
    assert templateflow.cache_folder() == Path("/elsewhere")


@pytest.mark.parametrize(("stated", "right"), [(6, True), (0, True), (7, False)])
def test_what_came_is_stored_where_it_is_whole(tmp_path: Path, stated: int, right: bool):
    """0 bytes are stated where a server states nothing; the folder is there already, as for a second file."""
    cached = tmp_path / "tpl-A" / "x.h5"
    cached.parent.mkdir()
    if right:
        templateflow._store([b"abc", b"def"], stated, cached)
        assert cached.read_bytes() == b"abcdef"
    else:
        with pytest.raises(OSError, match="6 of 7 bytes came"):
            templateflow._store([b"abc", b"def"], stated, cached)
    assert [path.name for path in cached.parent.iterdir()] == (["x.h5"] if right else [])
    with pytest.raises(OSError, match="0 of 0 bytes came"):
        templateflow._store([], 0, tmp_path / "tpl-A" / "y.h5")


def test_a_transform_that_cannot_be_had_says_where_it_goes_and_how_it_is_fetched(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path))
    with pytest.raises(TransformUnavailable) as caught:
        templateflow.template_transform("MNI152NLin2009cAsym", "MNI152NLin6Asym", offline=True)
    name = "tpl-MNI152NLin6Asym_from-MNI152NLin2009cAsym_mode-image_xfm.h5"
    assert parts(caught.value) == (
        f"the template transform {name} is not in TemplateFlow's cache, and --offline forbids fetching it",
        f"it at {tmp_path / 'tpl-MNI152NLin6Asym' / name}",
        "Put it there, or set TEMPLATEFLOW_HOME to a cache that has it; on a machine with a network, "
        "templateflow.api.get('MNI152NLin6Asym', mode='image', suffix='xfm', extension='.h5', "
        "**{'from': 'MNI152NLin2009cAsym'}) fetches it",
    )


# --- masks ------------------------------------------------------------------------------------------------------


def test_a_mask_on_another_grid_is_told_with_both(tmp_path: Path):
    moved = AFFINE.copy()
    moved[:3, 3] = (1.2345, -2, 3)
    path = image(tmp_path / "m.nii", SHAPE[:3], moved)
    with pytest.raises(MaskUnusable) as caught:
        open_mask(path, GRID, in_template=True)
    assert parts(caught.value) == (
        "the mask lies on another grid than its run: 4x5x6, 2 mm, origin (1.23, -2, 3) against 4x5x6, 2 mm, "
        "origin (0, 0, 0)",
        None,
        "Resample the mask to the run, or remove it, and one is computed from the mean image",
    )
    assert caught.value.file == path


@pytest.mark.parametrize(("apart", "right"), [(0.019, True), (0.021, False)])
def test_a_mask_may_lie_a_hundredth_of_a_voxel_off(tmp_path: Path, apart: float, right: bool):
    moved = AFFINE.copy()
    moved[0, 3] = apart
    path = image(tmp_path / "m.nii", SHAPE[:3], moved)
    if right:
        open_mask(path, GRID, in_template=True)
        return
    with pytest.raises(MaskUnusable):
        open_mask(path, GRID, in_template=True)


def test_a_mask_of_probabilities_is_cut_to_them(tmp_path: Path):
    values = np.zeros(SHAPE[:3], np.float32)
    values[0, 0, 0], values[1, 0, 0], values[2, 0, 0] = 0.25, 3, -1
    write_image(tmp_path / "m.nii", values, AFFINE)
    mask = read_mask(open_mask(tmp_path / "m.nii", GRID, in_template=True))
    assert mask[:4, 0, 0].tolist() == [0.25, 1, 0, 0]


def test_infinite_voxels_count_as_nothing_in_a_computed_mask(tmp_path: Path):
    rng = np.random.default_rng(0)
    values = rng.normal(10, 1, (16, 16, 16, 3)).astype(np.float32)
    values[4:12, 4:12, 4:12] += 900
    values[2, 2, 2], values[6, 6, 6, 0] = np.inf, -np.inf
    write_image(tmp_path / "x.nii", values, AFFINE)
    zeroed = np.where(np.isfinite(values), values, 0)
    write_image(tmp_path / "y.nii", zeroed.astype(np.float32), AFFINE)
    grid = Grid.of((16, 16, 16), AFFINE, None)
    masks = [computed_mask(open_series(tmp_path / f"{name}.nii"), grid) for name in "xy"]
    np.testing.assert_array_equal(*masks)
    assert masks[0][6, 7, 7] == 1 and masks[0][2, 2, 2] == 0


@pytest.mark.parametrize(
    ("shape", "why"),
    [((8, 8, 8), "the computed mask is empty"), ((1, 1, 1), "attempt to get argmax of an empty sequence")],
)
def test_nothing_of_which_a_mask_could_be_computed(tmp_path: Path, shape: tuple[int, ...], why: str):
    path = tmp_path / "x.nii"
    write_image(path, np.zeros((*shape, 3), np.float32), AFFINE)
    with pytest.raises(MaskUnusable) as caught:
        computed_mask(open_series(path), Grid.of(shape, AFFINE, None))
    assert caught.value.fault == f"there is no brain mask, and none can be computed from the mean image ({why})"
    assert (caught.value.file, caught.value.remedy) == (path, "Give a desc-brain_mask beside the run")
