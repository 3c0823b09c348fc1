"""Defects of images: files, headers, voxels, masks."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from campaigns.bad_tree import AFFINE, N_VOLUMES, SHAPE, VICTIM, Case, brain, series, write_run
from campaigns.defect import Defect, End

BOLD = r"{}/fmriprep/sub-02/func/sub-02_task-rest_space-MNI152NLin6Asym_desc-preproc_bold\.nii\.gz"
MASK = r"{}/fmriprep/sub-02/func/sub-02_task-rest_space-MNI152NLin6Asym_desc-brain_mask\.nii\.gz"
AGAIN = r"(?i)(fetch|copy|write)[^.]* again"
EXPORT = r"(?i)convert it|write the (right )?affine|find out which|take the file|again"


# --- files ----------------------------------------------------------------------------------------------------------


def many(change: Callable[[bytes, int], bytes]) -> Callable[[Case], None]:
    """One spoilt run for each twentieth of the file."""

    def plant(case: Case) -> None:
        whole = case.bold.read_bytes()
        for part in range(1, 20):
            path = write_run(case.dataset, f"{VICTIM}_run-{part}", 9)
            path.write_bytes(change(whole, len(whole) * part // 20))
            assert not is_whole(path), "the change changes nothing"
        for path in case.func.glob(f"{VICTIM}_space*"):
            path.unlink()
        case.confounds.unlink()

    return plant


def is_whole(path: Path) -> bool:
    """Whether a gzip file still gives the bytes of its checksum: some bits of a stream mean nothing."""
    try:
        return bool(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, zlib.error):
        return False


def inverted(raw: bytes, at: int) -> bytes:
    """Three bytes with all bits the other way round."""
    return raw[:at] + bytes(255 - byte for byte in raw[at : at + 3]) + raw[at + 3 :]


def content(what: bytes) -> Callable[[Case], object]:
    """Another content under the image's name."""
    return lambda case: case.bold.write_bytes(what)


def put(form: str, offset: int, *values: Any) -> Callable[[Case], None]:
    """Header fields by their place (little endian)."""
    return lambda case: case.bytes(lambda raw: struct.pack_into(f"<{form}", raw, offset, *values))


def header(change: Callable[[Any], Any]) -> Callable[[Case], None]:
    """The image with another header."""

    def changed(image: Any) -> None:
        change(image.header)

    return lambda case: case.image(changed)


def voxels(change: Callable[[np.ndarray], np.ndarray | None]) -> Callable[[Case], None]:
    """The image with other voxels."""

    def changed(image: Any) -> Any:
        data = np.array(image.dataobj)
        other = change(data)
        return nibabel.Nifti1Image(data if other is None else other, image.affine, image.header)

    return lambda case: case.image(changed)


def stored(data: np.ndarray) -> Callable[[Case], None]:
    """Another array, with a header of its own."""
    return lambda case: nibabel.Nifti1Image(data, AFFINE).to_filename(case.bold)


def fill(value: float, where: tuple[slice | int, ...]) -> Callable[[np.ndarray], None]:
    """Set some voxels."""

    def change(data: np.ndarray) -> None:
        data[where] = value

    return change


def as_nii(case: Case) -> None:
    """A big-endian file, as old scanners' software writes."""
    image: Any = nibabel.load(case.bold)
    swapped = nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header.as_byteswapped(">"))
    swapped.to_filename(case.bold)


def pair(case: Case) -> None:
    """The header alone of a .hdr/.img pair."""
    case.bytes(lambda raw: struct.pack_into("4s", raw, 344, b"ni1\0"))


def damaged_crc(raw: bytes) -> bytes:
    """A gzip stream whose bytes are not those of its checksum."""
    return raw[:-8] + bytes(255 - byte for byte in raw[-8:-4]) + raw[-4:]


def cifti(case: Case) -> None:
    case.image(lambda image: image.header.set_intent(3002, (), name="ConnDenseSeries", allow_unknown=True))


def without_sidecar(plant: Callable[[Case], object]) -> Callable[[Case], None]:
    """The defect, and no JSON file that could set it right."""

    def both(case: Case) -> None:
        case.sidecar.unlink()
        plant(case)

    return both


def without_confounds(plant: Callable[[Case], object]) -> Callable[[Case], None]:
    """The defect, and no table whose rows would show it."""

    def both(case: Case) -> None:
        case.confounds.unlink()
        plant(case)

    return both


def rgb(_: Case) -> None:
    data = np.zeros((*SHAPE, N_VOLUMES), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.Nifti1Image(data, AFFINE).to_filename(_.bold)


def overflowing(case: Case) -> None:
    """Integers whose slope takes them beyond what a float holds."""
    data = (np.where(brain()[..., None], series(3), 0)).astype("i2")
    nibabel.Nifti1Image(data, AFFINE).to_filename(case.bold)
    put("f", 112, 3e38)(case)


def replaced(how: Callable[[Path], object]) -> Callable[[Case], None]:
    """Something else than a file under the image's name."""

    def plant(case: Case) -> None:
        case.bold.unlink()
        how(case.bold)

    return plant


def fifo(path: Path) -> None:
    import os

    os.mkfifo(path)


FILES = (
    Defect(
        "gzip stream cut at every twentieth",
        many(lambda raw, at: raw[:at]),
        r"run-1_space.*run-19_space",
        r"gzip stream ends early|ends inside volume|no single-file",
        AGAIN,
    ),
    Defect(
        "the gzip stream damaged at every twentieth",
        many(inverted),
        r"run-1_space.*run-19_space",
        "gzip stream is corrupt|ends inside|ends early",
        AGAIN,
    ),
    Defect("an image of 0 bytes", content(b""), BOLD, r"empty \(0 bytes\)", AGAIN),
    Defect("an image of zeros", content(bytes(4000)), BOLD, "no single-file NIfTI", "Convert it"),
    Defect(
        "a web page under the image's name",
        content(b"<!DOCTYPE html><html>Please log in</html>" * 20),
        BOLD,
        "no single-file NIfTI",
        "Convert it|again",
    ),
    Defect(
        "a compressed text under the image's name",
        content(gzip.compress(b"no image, " * 900)),
        BOLD,
        "no single-file NIfTI",
        "Convert it|again",
    ),
    Defect(
        "an image that was not compressed, though its name says so",
        lambda case: case.bold.write_bytes(gzip.decompress(case.bold.read_bytes())),
        end=End.SAME,
        code=0,
    ),
    Defect(
        "an uncompressed image cut short",
        lambda case: case.bold.write_bytes(gzip.decompress(case.bold.read_bytes())[:-4000]),
        BOLD,
        "truncated",
        AGAIN,
    ),
    Defect(
        "an image in two gzip members",
        lambda case: case.bold.write_bytes(
            gzip.compress((raw := gzip.decompress(case.bold.read_bytes()))[:9000]) + gzip.compress(raw[9000:])
        ),
        end=End.SAME,
        code=0,
    ),
    Defect(
        "bytes that are no gzip after the stream",
        lambda case: case.bold.write_bytes(case.bold.read_bytes() + b"trailing"),
        BOLD,
        "ends early|corrupt",
        AGAIN,
    ),
    Defect(
        "an image that was compressed twice",
        lambda case: case.bold.write_bytes(gzip.compress(case.bold.read_bytes())),
        BOLD,
        "no single-file NIfTI",
        "Convert it|again",
    ),
    Defect("a folder under the image's name", replaced(lambda path: path.mkdir()), BOLD, "not a regular file", AGAIN),
    Defect("a named pipe under the image's name", replaced(fifo), BOLD, "not a regular file", AGAIN),
    Defect(
        "a link to nowhere",
        replaced(lambda path: path.symlink_to("../nowhere.nii.gz")),
        BOLD,
        "not fetched",
        "datalad get",
    ),
    Defect("a link to itself", replaced(lambda path: path.symlink_to(path.name)), BOLD, "leads back to itself", AGAIN),
    Defect(
        "an annex pointer that was not fetched",
        content(b"/annex/objects/MD5E-s123--d41d8cd98f00b204e9800998ecf8427e.nii.gz\n"),
        BOLD,
        "not fetched",
        "datalad get",
    ),
    Defect(
        "a Git LFS pointer that was not fetched",
        content(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"),
        BOLD,
        "not fetched|Git LFS",
        "(?i)git lfs pull",
    ),
)


# --- headers --------------------------------------------------------------------------------------------------------

HEADERS = (
    Defect("wrong magic", put("4s", 344, b"abc\0"), BOLD, "no single-file NIfTI", "Convert it"),
    Defect("the header of a .hdr/.img pair", pair, BOLD, "no single-file NIfTI", "Convert it"),
    Defect("a header of another length", put("i", 0, 400), BOLD, "no single-file NIfTI", "Convert it"),
    Defect("big-endian", as_nii, end=End.SAME, code=0),
    Defect("a 3D image", stored(series(3)[..., 0]), BOLD, "image is 3D", "Give the preprocessed series"),
    Defect("a 5D image", stored(np.stack([series(3)] * 2, axis=4)), BOLD, "image is 5D", "Split it"),
    Defect("a fifth dimension of one", stored(series(2)[..., None]), end=End.WARNED, code=0),
    Defect("no dimension", put("h", 40, 0), BOLD, "declares dimensions", AGAIN),
    Defect("nine dimensions", put("h", 40, 9), BOLD, "declares dimensions|no single-file", AGAIN),
    Defect("a dimension of zero", put("h", 42, 0), BOLD, "declares dimensions", AGAIN),
    Defect("a negative dimension", put("h", 44, -14), BOLD, "declares dimensions", AGAIN),
    Defect("dimensions beyond any memory", put("3h", 42, 32767, 32767, 32767), BOLD, "declares dimensions", AGAIN),
    Defect(
        "a volume of a gigabyte declared by a small file",
        put("3h", 42, 1000, 1000, 1000),
        BOLD,
        "compressed bytes cannot hold",
        AGAIN,
    ),
    Defect(
        "more volumes declared than there are",
        without_confounds(put("h", 48, N_VOLUMES + 1)),
        BOLD,
        "ends inside volume 20",
        AGAIN,
    ),
    Defect(
        "fewer volumes declared than there are",
        without_confounds(put("h", 48, N_VOLUMES - 1)),
        BOLD,
        "goes on after its last volume",
        AGAIN,
    ),
    Defect("complex voxels", stored(series(3).astype("c8")), BOLD, "voxels are complex64", EXPORT),
    Defect("RGB voxels", rgb, BOLD, "voxels are RGB", EXPORT),
    Defect("voxels of 128 bits", put("2h", 70, 1536, 128), BOLD, "voxels are (float128|longdouble|.*128)", EXPORT),
    Defect("an unknown data type", put("h", 70, 4242), BOLD, "unknown data type", EXPORT),
    Defect("voxels that begin inside the header", put("f", 108, 8.0), BOLD, "voxels begin", AGAIN),
    Defect("voxels that begin before the file", put("f", 108, -4000.0), BOLD, "voxels begin", AGAIN),
    Defect("voxels that begin nowhere (NaN)", put("f", 108, float("nan")), BOLD, "voxels begin", AGAIN),
    Defect("voxels that begin at infinity", put("f", 108, float("inf")), BOLD, "voxels begin", AGAIN),
    Defect(
        "voxels that begin after the end",
        put("f", 108, 1e7),
        BOLD,
        "ends inside volume|voxels begin|cannot hold",
        AGAIN,
    ),
    Defect("integers that overflow by their slope", overflowing, BOLD, "NaN or infinite", "Find out which step"),
    Defect("an infinite slope", put("f", 112, float("inf")), BOLD, "scales voxels by inf", AGAIN),
    Defect("an intercept of NaN", put("2f", 112, 2.0, float("nan")), BOLD, "intercept nan", AGAIN),
    Defect("neither sform nor qform", put("2h", 252, 0, 0), BOLD, "states no position", "Write the affine"),
    Defect(
        "sform and qform that contradict each other",
        header(lambda h: h.set_qform(np.diag([-12.0, 12, 12, 1]), code=4)),
        BOLD,
        "sform and qform differ",
        "copy it over",
    ),
    Defect("an sform of zeros", put("12f", 280, *[0.0] * 12), BOLD, "affine gives voxels of 0", EXPORT),
    Defect("an sform of NaN", put("12f", 280, *[float("nan")] * 12), BOLD, "affine gives voxels", EXPORT),
    Defect(
        "axes in one plane",
        put("12f", 280, 12, 12, 0, -78, 0, 0, 12, -108, 0, 0, 0, -70),
        BOLD,
        "singular|affine gives",
        EXPORT,
    ),
    Defect(
        "a quaternion that is none",
        lambda case: (put("h", 252, 1)(case), put("3f", 256, 5, 5, 5)(case)),
        BOLD,
        "qform is invalid|sform and qform differ",
        EXPORT,
    ),
    Defect("voxel sizes of zero", put("3f", 80, 0, 0, 0), BOLD, "pixdim 0 x 0 x 0", "Find out which"),
    Defect("voxel sizes below zero", put("3f", 80, -12, -12, -12), end=End.WARNED, code=0),
    Defect("voxel sizes that are not the affine's", put("3f", 80, 3, 3, 3), BOLD, "pixdim 3 x 3 x 3", "Find out which"),
    Defect(
        "an affine in metres",
        lambda case: (
            put("12f", 280, 0.012, 0, 0, -0.078, 0, 0.012, 0, -0.108, 0, 0, 0.012, -0.07)(case),
            put("3f", 80, 0.012, 0.012, 0.012)(case),
        ),
        BOLD,
        "affine gives voxels of 0.012",
        EXPORT,
    ),
    Defect(
        "a brain far outside the template",
        lambda case: [
            case.bytes(lambda raw: struct.pack_into("<f", raw, 292, 900.0), path) for path in (case.bold, case.mask)
        ],
        BOLD,
        "cover",
        r"(?i)check|rerun|--min-coverage|run again|affine",
    ),
    Defect("CIFTI under the image's name", cifti, BOLD, "CIFTI", "volume space"),
)


# --- time -----------------------------------------------------------------------------------------------------------

STATE = "State RepetitionTime, in seconds"
TIMES = (
    Defect("no repetition time anywhere", without_sidecar(put("f", 92, 0.0)), BOLD, "repetition time of 0 s", STATE),
    Defect(
        "a repetition time in milliseconds, said to be seconds",
        without_sidecar(put("f", 92, 2000.0)),
        BOLD,
        "repetition time of 2000 s",
        STATE,
    ),
    Defect("a repetition time below zero", without_sidecar(put("f", 92, -2.0)), BOLD, "repetition time of -2 s", STATE),
    Defect(
        "a repetition time of NaN", without_sidecar(put("f", 92, float("nan"))), BOLD, "repetition time of nan", STATE
    ),
    Defect(
        "a repetition time without a unit",
        without_sidecar(put("B", 123, 2)),
        r"preproc_bold\.nii\.gz",
        "has no unit; seconds are assumed",
        "",
        End.WARNED,
        0,
    ),
    Defect(
        "header and sidecar that contradict each other in time",
        put("f", 92, 3.0),
        r"preproc_bold\.nii\.gz",
        "header gives a repetition time of 3 s, the JSON sidecar 2 s",
        "which is used",
        End.WARNED,
        0,
    ),
    Defect(
        "a run shorter than a clip",
        lambda case: write_run(case.dataset, VICTIM, 3, n_volumes=5),
        "sub-02_task-rest|preproc_bold",
        "5 volumes at TR 2 s",
        r"(?i)leave|expected|at least",
    ),
)


# --- voxels ---------------------------------------------------------------------------------------------------------

MEAN = r"Find out which step|Use the images before|Check how the file was made|(?i:give|choose|take)"
VOXELS = (
    Defect("a block of NaN in the brain", voxels(fill(np.nan, (7, slice(6, 9), 7, 11))), BOLD, "NaN or infinite", MEAN),
    Defect("an infinite voxel in the brain", voxels(fill(np.inf, (7, 8, 7, 3))), BOLD, "NaN or infinite", MEAN),
    Defect("minus infinity in the last volume", voxels(fill(-np.inf, (7, 8, 7, -1))), BOLD, "NaN or infinite", MEAN),
    Defect("NaN outside the brain", voxels(fill(np.nan, (0, 0, 0))), end=End.WARNED, code=0),
    Defect("constant data", stored(np.full((*SHAPE, N_VOLUMES), 500, "f4")), BOLD, "all the same", MEAN),
    Defect("zeros throughout", stored(np.zeros((*SHAPE, N_VOLUMES), "f4")), BOLD, "all the same", MEAN),
    Defect(
        "one volume again and again",
        stored(np.repeat(series(3)[..., :1], N_VOLUMES, axis=3)),
        BOLD,
        "all the same",
        MEAN,
    ),
    Defect(
        "a series whose mean was removed", stored(series(3) - series(3).mean(axis=3, keepdims=True)), BOLD, "mean", MEAN
    ),
    Defect("values beyond single precision", stored(series(3).astype("f8") * 1e300), BOLD, "NaN or infinite", MEAN),
)


# --- masks ----------------------------------------------------------------------------------------------------------


def mask(data: np.ndarray, affine: np.ndarray = AFFINE) -> Callable[[Case], None]:
    """Another brain mask."""
    return lambda case: nibabel.Nifti1Image(data, affine).to_filename(case.mask)


def moved(by_mm: float) -> np.ndarray:
    matrix = AFFINE.copy()
    matrix[0, 3] += by_mm
    return matrix


RESAMPLE = "(?i)resample the mask|remove it|one is computed|write|fetch"
MASKS = (
    Defect("an empty mask", mask(np.zeros(SHAPE, "u1")), MASK, "mask is empty", RESAMPLE),
    Defect("a mask on another grid", mask(np.ones((7, 8, 7), "u1")), MASK, "another grid", RESAMPLE),
    Defect("a mask that is shifted by a voxel", mask(brain().astype("u1"), moved(12)), MASK, "another grid", RESAMPLE),
    Defect(
        "a mask stored from the other side",
        mask(brain().astype("u1"), np.diag([-1.0, 1, 1, 1]) @ AFFINE),
        MASK,
        "another grid",
        RESAMPLE,
    ),
    Defect("a mask of several volumes", mask(np.ones((*SHAPE, 3), "u1")), MASK, "mask has 3 volumes", RESAMPLE),
    Defect("a mask with NaN", mask(np.where(brain(), np.nan, 0).astype("f4")), MASK, "mask holds NaN", RESAMPLE),
    Defect(
        "a mask that is no image",
        lambda case: case.mask.write_bytes(b"nothing" * 99),
        MASK,
        "no single-file",
        "Convert",
    ),
    Defect(
        "a mask cut short",
        lambda case: case.mask.write_bytes(case.mask.read_bytes()[:-20]),
        MASK,
        "gzip stream ends early|ends inside",
        AGAIN,
    ),
    Defect(
        "a damaged mask",
        lambda case: case.mask.write_bytes(damaged_crc(case.mask.read_bytes())),
        MASK,
        "is corrupt",
        AGAIN,
    ),
    Defect(
        "no mask",
        lambda case: case.mask.unlink(),
        "sub-02_task-rest|preproc_bold",
        "no brain mask|mask.* computed",
        "",
        End.WARNED,
        0,
    ),
)

DEFECTS = (*FILES, *HEADERS, *TIMES, *VOXELS, *MASKS)
