"""NIfTI files: headers checked before anything is believed, voxels streamed one volume at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from isal import igzip, isal_zlib
from nibabel.nifti1 import Nifti1Header, data_type_codes
from nibabel.nifti2 import Nifti2Header

from neurostorm_bids.ahead import ahead
from neurostorm_bids.errors import DataTypeUnsupported, ImageUnreadable, NotABoldSeries, SurfaceData

GZIP_MAGIC = b"\x1f\x8b"
CIFTI_INTENTS = range(3000, 3100)
LARGEST_VOLUME = 1024**3  # voxels; a header that declares more is broken, and would exhaust the memory
LARGEST_OFFSET = 64 * 1024**2  # bytes; nobody writes so many header extensions
REAL_KINDS = "iuf"
GZIP_FAULTS = (EOFError, igzip.BadGzipFile, isal_zlib.error)
MOST_EXPANDED = 1032  # bytes that a byte of a deflate stream can become
AGAIN = "Fetch or write it again"


@dataclass(frozen=True)
class NiftiFile:
    """A NIfTI file as its header describes it.

    ``slope`` and ``intercept`` scale stored values; (1, 0) where the header states none.
    """

    path: Path
    header: Nifti1Header  # Nifti2Header is a subclass
    compressed: bool
    shape: tuple[int, ...]  # trailing singleton dimensions beyond the fourth are dropped
    dtype: np.dtype
    slope: float
    intercept: float

    @property
    def n_volumes(self) -> int:
        """Number of volumes; 1 for a 3D image."""
        return self.shape[3] if len(self.shape) == 4 else 1

    @property
    def always_finite(self) -> bool:
        """Whether no voxel can be NaN or infinite, whatever is stored: integers that are not scaled."""
        return self.dtype.kind in "iu" and (self.slope, self.intercept) == (1.0, 0.0)

    @property
    def volume_bytes(self) -> int:
        """Size of a volume in the file."""
        return int(np.prod(self.shape[:3])) * self.dtype.itemsize

    @property
    def offset(self) -> int:
        """Where the voxels begin."""
        return int(self.header["vox_offset"]) or self.header.sizeof_hdr + 4

    def volumes(self, start: int = 0) -> Iterator[np.ndarray]:
        """Volumes from number ``start`` on, one at a time, scaled.  # (x, y, z) float32, Fortran order

        Raises
        ------
        ImageUnreadable
            Where the file ends early or its compression is broken.
        """
        # the next volume is decompressed while this one is worked on
        yield from map(self._scaled, ahead(self._stored(start)))

    def _stored(self, start: int) -> Iterator[bytearray]:
        """The bytes of one volume after the other; each lasts until the one after the next is drawn."""
        with _opened(self) as stream:
            _skip(stream, self.offset + start * self.volume_bytes, self)
            pair = bytearray(self.volume_bytes), bytearray(self.volume_bytes)
            for index in range(start, self.n_volumes):
                raw = pair[index % 2]
                _fill(raw, stream, self, index)
                yield raw
            if len(stream.read(self.volume_bytes)) == self.volume_bytes:  # the checksum too is compared at the end
                raise _goes_on(self)

    def _scaled(self, raw: bytearray) -> np.ndarray:
        """A copy of the voxels, as float32."""
        stored = np.frombuffer(raw, dtype=self.dtype)
        if (self.slope, self.intercept) != (1.0, 0.0):
            stored = stored * self.slope + self.intercept  # float64, as nibabel scales
        with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is refused where it matters
            return stored.astype(np.float32).reshape(self.shape[:3], order="F")


def open_nifti(path: Path) -> NiftiFile:
    """The file's header, checked.

    Raises
    ------
    ImageUnreadable
        For a missing, empty or foreign file, and for a header that cannot be true.
    SurfaceData
        For CIFTI.
    NotABoldSeries
        For more than four dimensions.
    DataTypeUnsupported
        For complex, RGB and extended-precision voxels.
    """
    compressed = _begins_with_gzip(path)
    header = _read_header(path, compressed)
    if int(header["intent_code"]) in CIFTI_INTENTS:
        raise SurfaceData(
            "this is CIFTI (surface) data", file=path, expected="a volume", remedy="Give the run in an MNI volume space"
        )
    shape, dtype = _shape(header, path), _dtype(header, path)
    _check_offset(header, path)
    slope, intercept = _scaling(header, path)
    image = NiftiFile(path, header, compressed, shape, dtype, slope, intercept)
    _check_length(image)
    return image


def open_series(path: Path) -> NiftiFile:
    """A 4D file's header, checked; see `open_nifti`.

    Raises
    ------
    NotABoldSeries
        For an image without a time axis.
    """
    image = open_nifti(path)
    if len(image.shape) != 4:
        raise NotABoldSeries(
            f"the image is {len(image.shape)}D (shape {_times(image.shape)})",
            file=path,
            expected="a 4D BOLD series",
            remedy="Give the preprocessed series, not a reference volume or mask",
        )
    return image


# --- header -----------------------------------------------------------------------------------------------------


def _begins_with_gzip(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            start = stream.read(2)
    except OSError as error:
        raise _not_opened(path, error) from None
    if not start:
        raise ImageUnreadable("the file is empty (0 bytes)", file=path, remedy=AGAIN)
    return start == GZIP_MAGIC


def _not_opened(path: Path, error: OSError) -> ImageUnreadable:
    if path.is_symlink() and not path.exists():
        return ImageUnreadable("the file is a dangling link: not fetched", file=path, remedy="Run `datalad get` on it")
    return ImageUnreadable(
        f"the file cannot be read ({error.strerror or error})",
        file=path,
        remedy="Check its permissions, or fetch it again",
    )


def _read_header(path: Path, compressed: bool) -> Nifti1Header:
    block = _first_bytes(path, compressed, Nifti2Header.sizeof_hdr)
    for kind, magics in ((Nifti1Header, (b"n+1",)), (Nifti2Header, (b"n+2",))):
        if len(block) < kind.sizeof_hdr:
            break
        header = kind(block[: kind.sizeof_hdr], check=False)
        if int(header["sizeof_hdr"]) == kind.sizeof_hdr and bytes(header["magic"])[:3] in magics:
            return header
    raise ImageUnreadable(
        "this is no single-file NIfTI",
        file=path,
        expected=".nii or .nii.gz (NIfTI-1 or NIfTI-2)",
        remedy="Convert it, or fetch or write it again",
    )


def _first_bytes(path: Path, compressed: bool, n_bytes: int) -> bytes:
    try:
        with igzip.open(path, "rb") if compressed else path.open("rb") as stream:
            return stream.read(n_bytes)
    except GZIP_FAULTS as error:
        raise _corrupt(path, error) from None


def _shape(header: Nifti1Header, path: Path) -> tuple[int, ...]:
    n_dims = int(header["dim"][0])
    shape = tuple(int(n) for n in header["dim"][1 : n_dims + 1])
    if not 1 <= n_dims <= 7 or any(n < 1 for n in shape) or np.prod(shape[:3], dtype=float) > LARGEST_VOLUME:
        raise ImageUnreadable(f"the header declares dimensions {_times(shape)}", file=path, remedy=AGAIN)
    while len(shape) > 4 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 4:
        raise NotABoldSeries(
            f"the image is {len(shape)}D (shape {_times(shape)})",
            file=path,
            expected="a 4D BOLD series",
            remedy="Split it into one file per series",
        )
    return shape + (1,) * (3 - len(shape))


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(str(n) for n in shape)


def _dtype(header: Nifti1Header, path: Path) -> np.dtype:
    try:
        dtype = header.get_data_dtype()
    except KeyError:
        raise DataTypeUnsupported(
            f"the header names an unknown data type ({header['datatype']})", file=path, remedy=AGAIN
        ) from None
    if dtype.kind not in REAL_KINDS or dtype.itemsize > 8:
        raise DataTypeUnsupported(
            f"the voxels are {data_type_codes.label[int(header['datatype'])]}",
            file=path,
            expected="integers or floats of 8 to 64 bits",
            remedy="Convert it to float32, or give the series that the pipeline wrote",
        )
    return dtype


def _scaling(header: Nifti1Header, path: Path) -> tuple[float, float]:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or np.isnan(slope):
        return 1.0, 0.0
    if np.isinf(slope) or not np.isfinite(intercept):
        raise ImageUnreadable(
            f"the header scales voxels by {slope} with intercept {intercept}", file=path, remedy=AGAIN
        )
    return slope, intercept


def _check_offset(header: Nifti1Header, path: Path) -> None:
    """Refuse a header after which voxels could not begin; 0 stands for "right behind"."""
    begin = float(header["vox_offset"])
    if begin != 0 and not header.sizeof_hdr + 4 <= begin < LARGEST_OFFSET:
        raise ImageUnreadable(
            f"the voxels begin at byte {begin:g} by the header",
            file=path,
            expected=f"{header.sizeof_hdr + 4} or somewhat more",
            remedy=AGAIN,
        )


def _check_length(image: NiftiFile) -> None:
    needed, found = image.offset + image.n_volumes * image.volume_bytes, image.path.stat().st_size
    if image.compressed:  # the uncompressed length shows only while reading; what cannot be is not worth the memory
        if needed > MOST_EXPANDED * found:
            raise ImageUnreadable(
                f"{found} compressed bytes cannot hold the {needed} that the header declares",
                file=image.path,
                remedy=AGAIN,
            )
        return
    if found < needed:
        raise ImageUnreadable(
            f"the file is truncated: {found} bytes",
            file=image.path,
            expected=f"{needed} bytes by its header",
            remedy=AGAIN,
        )


def _goes_on(image: NiftiFile) -> ImageUnreadable:
    return ImageUnreadable(
        "the file goes on after its last volume, for the length of a volume or more",
        file=image.path,
        expected=f"{image.n_volumes} volumes by its header",
        remedy=AGAIN,
    )


# --- voxels -----------------------------------------------------------------------------------------------------


@contextmanager
def _opened(image: NiftiFile) -> Iterator[BinaryIO]:
    try:
        with igzip.open(image.path, "rb") if image.compressed else image.path.open("rb") as stream:
            yield stream
    except GZIP_FAULTS as error:
        raise _corrupt(image.path, error) from None
    except OSError as error:
        raise _not_opened(image.path, error) from None


def _corrupt(path: Path, error: Exception) -> ImageUnreadable:
    fault = "ends early" if isinstance(error, EOFError) else "is corrupt"
    return ImageUnreadable(f"the gzip stream {fault} ({error})", file=path, remedy="Fetch or write the file again")


def _skip(stream: BinaryIO, n_bytes: int, image: NiftiFile) -> None:
    if image.compressed:  # gzip cannot seek: read on, a volume at a time
        for begin in range(0, n_bytes, image.volume_bytes):
            stream.read(min(image.volume_bytes, n_bytes - begin))
    else:
        stream.seek(n_bytes)


def _fill(raw: bytearray, stream: BinaryIO, image: NiftiFile, index: int) -> None:
    view, filled = memoryview(raw), 0
    while filled < len(raw):
        got = stream.readinto(view[filled:])
        if not got:
            raise ImageUnreadable(
                f"the file ends inside volume {index} (counted from 0)",
                file=image.path,
                expected=f"{image.n_volumes} volumes by its header",
                remedy=AGAIN,
            )
        filled += got
