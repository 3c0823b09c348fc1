"""Synthetic runs and transforms for the tests of the space stage, and SimpleITK as the oracle."""

from __future__ import annotations

from pathlib import Path

import h5py
import nibabel
import numpy as np
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter, zoom

from neurostorm_bids.inputs.runs import BoldImage, BoldRun, Source, TransformFile
from neurostorm_bids.space.grid import Grid

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SMALL = Grid.of((40, 44, 38), [[-5, 0, 0, 97], [0, 5, 0, -118], [0, 0, 5, -82], [0, 0, 0, 1]], "MNI152NLin6Asym")


# --- geometry ---------------------------------------------------------------------------------------------------


def centred(shape, zooms, *, codes: str = "RAS", degrees=(0.0, 0.0, 0.0), centre=(0.0, -18.0, 12.0)) -> np.ndarray:
    """An affine whose image is centred at ``centre``, stored along ``codes``, rotated by Euler angles."""
    letters = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    axes = np.zeros((3, 3))
    for column, code in enumerate(codes):
        row, sign = letters[code]
        axes[row, column] = sign
    turn = np.array(sitk.Euler3DTransform((0, 0, 0), *np.radians(degrees)).GetMatrix()).reshape(3, 3)
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ axes * np.asarray(zooms, dtype=float)
    matrix[:3, 3] = np.asarray(centre) - matrix[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return matrix


def smooth_volume(shape, seed: int = 0, low: float = 200, high: float = 1200, sigma: float = 1.5) -> np.ndarray:
    """Smooth positive noise: gradients everywhere, so a misplaced voxel shows."""
    volume = gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    return low + (volume - volume.min()) / np.ptp(volume) * (high - low)


def balls(affine: np.ndarray, shape, markers: dict[tuple[float, float, float], float], radius_mm: float) -> np.ndarray:
    """A volume with a smooth bump of the given height at each world position."""
    world = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    volume = np.zeros(shape)
    for position, height in markers.items():
        volume += height * np.exp(-((world - position) ** 2).sum(axis=-1) / (2 * radius_mm**2))
    return volume


# --- files ------------------------------------------------------------------------------------------------------


def write_image(path: Path, data, affine, *, t_r_s: float = 2.0, code: int = 4, units=("mm", "sec")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(np.asarray(data), affine)
    image.header.set_xyzt_units(*units)
    if np.ndim(data) == 4:
        image.header.set_zooms((*image.header.get_zooms()[:3], t_r_s))
    image.set_sform(affine, code)
    image.set_qform(affine, code, strip_shears=True)
    nibabel.save(image, path)
    return path


def with_header(path: Path, **fields) -> Path:
    """An image of a single file, fields of its header overwritten behind nibabel's back."""
    with path.open("r+b") as stream:
        header = nibabel.Nifti1Header(stream.read(348), check=False)
        for name, value in fields.items():
            header[name] = value
        stream.seek(0)
        stream.write(header.binaryblock)
    return path


def wobbling(volume: np.ndarray, n_volumes: int = 3) -> np.ndarray:
    """A series whose volumes are the given one times 1, 1.1, 1.2 ..."""
    return np.stack([volume * (1 + 0.1 * t) for t in range(n_volumes)], axis=-1).astype(np.float32)


def write_bold(folder: Path, space: str, volume: np.ndarray, affine: np.ndarray, *, mask=True, **kwargs) -> BoldImage:
    """A short run and its (full) mask, under fMRIPrep's names."""
    name = f"sub-01_task-rest_{'' if space == 'boldref' else f'space-{space}_'}"
    bold = write_image(folder / f"{name}desc-preproc_bold.nii.gz", wobbling(volume), affine, **kwargs)
    if mask is True:
        mask = np.ones(volume.shape, np.uint8)
    mask_path = None if mask is None else folder / f"{name}desc-brain_mask.nii.gz"
    if mask_path is not None:
        write_image(mask_path, mask, affine)
    return BoldImage(bold, space, mask_path)


def run_of(*images: BoldImage, transforms: tuple[TransformFile, ...] = (), **kwargs) -> BoldRun:
    root = images[0].bold.parent if images else Path()
    return BoldRun(
        Source(root, "fMRIPrep"),
        {"sub": "01", "task": "rest"},
        images,
        transforms=transforms,
        **{"t_r_s": 2.0} | kwargs,
    )


# --- transforms, in ITK's own terms -----------------------------------------------------------------------------


def smooth_field(
    seed: int, peak_mm: float, geometry: np.ndarray, shape=(24, 28, 24)
) -> sitk.DisplacementFieldTransform:
    """A displacement field that is smooth and reaches ``peak_mm``; ``geometry`` is its RAS affine."""
    coarse = np.random.default_rng(seed).normal(size=(*(max(4, n // 4) for n in shape), 3))
    vectors = np.stack(
        [gaussian_filter(zoom(coarse[..., c], np.divide(shape, coarse.shape[:3]), order=1), 2) for c in range(3)], -1
    )
    vectors *= peak_mm / np.linalg.norm(vectors, axis=-1).max()
    image = sitk.GetImageFromArray(np.ascontiguousarray(vectors.transpose(2, 1, 0, 3)), isVector=True)
    place(image, geometry)
    return sitk.DisplacementFieldTransform(sitk.Cast(image, sitk.sitkVectorFloat64))


def place(image: sitk.Image, affine: np.ndarray) -> None:
    """Give a SimpleITK image the geometry of an RAS affine."""
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())


def affine_transform(seed: int) -> sitk.AffineTransform:
    rng = np.random.default_rng(seed)
    transform = sitk.AffineTransform(3)
    transform.SetMatrix((np.eye(3) + rng.normal(0, 0.06, (3, 3))).ravel().tolist())
    transform.SetTranslation(rng.normal(0, 6, 3).tolist())
    transform.SetCenter(rng.normal(0, 10, 3).tolist())
    return transform


def euler_transform(seed: int) -> sitk.Euler3DTransform:
    rng = np.random.default_rng(seed)
    return sitk.Euler3DTransform(
        rng.normal(0, 10, 3).tolist(), *rng.uniform(-0.25, 0.25, 3).tolist(), rng.normal(0, 8, 3).tolist()
    )


def composite(*components: sitk.Transform) -> sitk.CompositeTransform:
    """ITK applies the component added last first."""
    return sitk.CompositeTransform(list(components))


def write_transform(transform: sitk.Transform, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteTransform(transform, str(path))
    return path


def respelled(path: Path, target: Path, *, precision: str, misspelled: bool) -> Path:
    """An .h5 transform again, in another precision or with the keys of ITK before 5.0."""
    word = "Tranform" if misspelled else "Transform"
    with h5py.File(path) as old, h5py.File(target, "w") as new:
        for name, group in old["TransformGroup"].items():
            kind = group["TransformType"][0].decode().replace("double", precision)
            copy = new.create_group(f"TransformGroup/{name}")
            copy["TransformType"] = np.array([kind.encode("ascii")], dtype=h5py.string_dtype("ascii"))
            if "TransformParameters" in group:
                dtype = {"float": "f4", "double": "f8"}[precision]
                copy[f"{word}Parameters"] = group["TransformParameters"][()].astype(dtype)
                copy[f"{word}FixedParameters"] = group["TransformFixedParameters"][()]
    return target


# --- the oracle -------------------------------------------------------------------------------------------------


def map_points(transform: sitk.Transform, points: np.ndarray) -> np.ndarray:
    """RAS points through a SimpleITK transform."""
    flip = np.array([-1.0, -1.0, 1.0])
    return np.array([transform.TransformPoint((point * flip).tolist()) for point in points]) * flip


def resampled(image: BoldImage, transform: sitk.Transform, grid: Grid, interpolator=sitk.sitkLinear) -> np.ndarray:
    """The first volume of a run on a grid, as SimpleITK makes it.  # (X, Y, Z)"""
    series = sitk.ReadImage(str(image.bold), sitk.sitkFloat32)
    size = list(series.GetSize())
    first = sitk.Extract(series, [*size[:3], 0], [0, 0, 0, 0])
    reference = sitk.Image(*grid.shape, sitk.sitkFloat32)
    place(reference, grid.matrix)
    return sitk.GetArrayFromImage(sitk.Resample(first, reference, transform, interpolator, 0.0)).transpose(2, 1, 0)
