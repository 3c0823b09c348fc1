"""How far apart two templates are: what an affine-only route between them costs, in millimetres.

    python -m benchmarks template_distance --transform tpl-MNI152NLin6Asym_from-MNI152NLin2009cAsym_mode-image_xfm.h5
    python -m benchmarks template_distance --images FIXED_T1 FIXED_MASK MOVING_T1 [MOVING_MASK]

The first is exact: by how much the transform moves the voxels of the template brain. The second estimates it where the
transform is not to be had, by registering the templates' T1 images (SimpleITK, diffeomorphic demons on three scales),
and measures itself on a known warp, of which it finds the smaller part that its smoothing lets through.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from neurostorm_bids.space import NEUROSTORM_2MM
from neurostorm_bids.space.template import template_brain
from neurostorm_bids.space.transforms import points_through

SCALES = ((4, 60), (2, 60), (1, 30))  # shrink factor, iterations
KNOWN_MM = 2.5


def summary(name: str, millimetres: np.ndarray) -> str:
    """Mean, median and 95th percentile of distances, in a line."""
    middle, high = np.percentile(millimetres, [50, 95])
    return f"{name}: mean {millimetres.mean():.2f} mm, median {middle:.2f} mm, 95th percentile {high:.2f} mm"


def of_transform(path: Path) -> np.ndarray:
    """By how much a transform moves each voxel of the template brain, in mm.  # (n,)"""
    moved = points_through(NEUROSTORM_2MM, (path,)) - NEUROSTORM_2MM.points()
    return np.linalg.norm(moved, axis=1)[template_brain(NEUROSTORM_2MM).brain.ravel()]


def of_images(paths: list[Path]) -> None:
    """Register the moving template to the fixed one, and print what that says of their distance."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # the same figures on any machine
    images = [sitk.DICOMOrient(sitk.ReadImage(str(path), sitk.sitkFloat32), "LPS") for path in paths]
    fixed, moving = (_brain(sitk, images[n], images[n + 1 : n + 2]) for n in (0, 2))
    brain = sitk.GetArrayFromImage(images[1]) > 0
    print(summary("registered templates", _displacement(sitk, fixed, moving)[brain]))
    known = _warped(sitk, fixed)
    print(summary(f"a known warp of mean {KNOWN_MM:g} mm, as registered", _displacement(sitk, fixed, known)[brain]))


def _brain(sitk, image, mask: list):
    if not mask:
        return image
    on_image = sitk.Resample(mask[0], image, sitk.Transform(), sitk.sitkNearestNeighbor)
    return sitk.Mask(image, sitk.Cast(on_image > 0, sitk.sitkUInt8))


def _displacement(sitk, fixed, moving) -> np.ndarray:
    moving = sitk.Resample(moving, fixed, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkFloat32)
    moving = sitk.HistogramMatching(moving, fixed, 256, 10, True)
    demons = sitk.DiffeomorphicDemonsRegistrationFilter()
    demons.SetSmoothDisplacementField(True)
    demons.SetStandardDeviations(1.5)
    field = sitk.Image(fixed.GetSize(), sitk.sitkVectorFloat64)
    field.CopyInformation(fixed)
    for shrink, n_iterations in SCALES:
        demons.SetNumberOfIterations(n_iterations)
        pair = [
            sitk.Shrink(sitk.SmoothingRecursiveGaussian(image, float(shrink)), [shrink] * 3)
            for image in (fixed, moving)
        ]
        field = demons.Execute(*pair, sitk.Resample(field, pair[0]))
    return np.linalg.norm(sitk.GetArrayFromImage(sitk.Resample(field, fixed)), axis=-1)


def _warped(sitk, image):
    rng = np.random.default_rng(0)
    warp = np.stack([gaussian_filter(rng.normal(size=image.GetSize()[::-1]), 8) for _ in range(3)], axis=-1)
    warp *= KNOWN_MM / np.linalg.norm(warp, axis=-1).mean()
    field = sitk.GetImageFromArray(warp, isVector=True)
    field.CopyInformation(image)
    return sitk.Resample(image, image, sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64)))


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m benchmarks template_distance``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks template_distance", description=__doc__)
    parser.add_argument("--transform", type=Path, metavar="FILE")
    parser.add_argument("--images", type=Path, nargs="+", metavar="FILE")
    options = parser.parse_args(argv)
    if options.transform:
        print(summary(options.transform.name, of_transform(options.transform)))
    if options.images:
        of_images(options.images)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
