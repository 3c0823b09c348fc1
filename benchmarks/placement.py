"""How the quality figures move when a brain is misplaced: the simulation behind their thresholds.

    python -m benchmarks placement [--brains 8]

Each simulated brain is the template bent by a smooth random warp (2.5 mm SD), in EPI contrast with bias field,
dropout, scalp and noise; its field of view is cut at random. It is then misplaced in one way after another.
"""

from __future__ import annotations

import argparse
from types import SimpleNamespace

import numpy as np
from scipy.ndimage import binary_dilation, gaussian_filter
from scipy.spatial.transform import Rotation

from neurostorm_bids.space import NEUROSTORM_2MM, Grid, Tally, assess
from neurostorm_bids.space.resample import weight_matrix
from neurostorm_bids.space.template import TemplateBrain

CENTRE = np.array([0.0, -18.0, 12.0])
FIGURES = ("coverage", "outside_fov", "dice", "centroid_offset", "template_correlation", "lr_asymmetry")


def _turn(axis: str, degrees: float) -> np.ndarray:
    return Rotation.from_euler(axis, degrees, degrees=True).as_matrix()


# name -> (matrix around the centre of the brain, shift in mm)
MISPLACEMENTS = {
    "in place": (np.eye(3), (0, 0, 0)),
    "5 mm right": (np.eye(3), (5, 0, 0)),
    "5 mm up": (np.eye(3), (0, 0, 5)),
    "10 mm right": (np.eye(3), (10, 0, 0)),
    "10 mm forward": (np.eye(3), (0, 10, 0)),
    "10 mm up": (np.eye(3), (0, 0, 10)),
    "20 mm up": (np.eye(3), (0, 0, 20)),
    "pitched 10 degrees": (_turn("x", 10), (0, 0, 0)),
    "pitched 20 degrees": (_turn("x", 20), (0, 0, 0)),
    "turned 15 degrees": (_turn("z", 15), (0, 0, 0)),
    "15 % too large": (np.eye(3) / 1.15, (0, 0, 0)),
    "20 % too small": (np.eye(3) / 0.8, (0, 0, 0)),
    "mirrored left to right": (np.diag([-1.0, 1, 1]), (0, 0, 0)),
    "front to back": (np.diag([1.0, -1, 1]), (0, 0, 0)),
    "upside down": (np.diag([1.0, 1, -1]), (0, 0, 0)),
    "y and z exchanged": (np.array([[1.0, 0, 0], [0, 0, 1], [0, 1, 0]]), (0, 0, 0)),
}


def tissue(grid: Grid) -> TemplateBrain:
    """Grey and white matter of the template on a grid of 2 mm that reaches beyond the model's."""
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_gm_template, load_mni152_wm_template

    def on(image) -> np.ndarray:
        geometry = Grid.of(image.shape, image.affine, grid.template)
        values = np.asarray(image.dataobj, dtype=np.float32).ravel(order="F")
        return (weight_matrix(geometry, grid.points(), "linear") @ values).reshape(grid.shape)

    brain = on(load_mni152_brain_mask(resolution=1)) > 0.5
    contrast = brain * (1.2 - 0.35 * on(load_mni152_gm_template(1)) - 0.55 * on(load_mni152_wm_template(1)))
    return TemplateBrain(contrast, brain, brain)


def brain_of(seed: int, grid: Grid, template: TemplateBrain) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One participant: mean image, brain mask, field of view, and the warp of its points.  # (X, Y, Z) each"""
    rng = np.random.default_rng(seed)
    noise = np.stack([gaussian_filter(rng.normal(size=grid.shape), 10) for _ in range(3)], axis=-1)
    warp = 2.5 * noise / noise.std()
    scalp = binary_dilation(template.brain, iterations=5) & ~binary_dilation(template.brain, iterations=2)
    bias = np.exp(0.25 * _unit(gaussian_filter(rng.normal(size=grid.shape), 20)))
    hole = np.exp(-(((grid.points() - [0, 40, -20]) / [22, 14, 14]) ** 2).sum(axis=1)).reshape(grid.shape)
    image = (template.image + 0.25 * scalp) * bias * (1 - 0.8 * hole) + 0.03 * np.abs(rng.normal(size=grid.shape))
    z = grid.points()[:, 2].reshape(grid.shape)
    field_of_view = (z > -70 + rng.uniform(0, 25)) & (z < 85 - rng.uniform(0, 10))
    mask = template.brain & (hole < 0.85) & field_of_view
    return image * field_of_view, mask, field_of_view, warp


def _unit(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std()


def figures(seed: int, template: TemplateBrain, grid: Grid) -> dict[str, tuple[float, ...]]:
    """The quality figures of one participant under each misplacement."""
    image, mask, field_of_view, warp = brain_of(seed, grid, template)
    rows = {}
    for name, (matrix, shift) in MISPLACEMENTS.items():
        points = (grid.points() - CENTRE - shift) @ matrix.T + CENTRE
        moved = weight_matrix(grid, points + warp.reshape(-1, 3), "linear")
        image_there, mask_there, view_there = (
            (moved @ part.astype(np.float32).ravel(order="F")).reshape(grid.shape)
            for part in (image, mask, field_of_view)
        )
        series = SimpleNamespace(grid=grid, brain=mask_there > 0.5, inside=view_there > 0.5, t_r_s=0.8)
        tally = Tally(series)
        tally.add(image_there)
        quality = assess(series, tally)
        rows[name] = (*(getattr(quality, figure) for figure in FIGURES), bool(quality.warnings))
    return rows


def main(argv: list[str] | None = None) -> int:
    """Print, for each misplacement, the worst and best value of each figure and how many brains were flagged."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks placement", description=__doc__)
    parser.add_argument("--brains", type=int, default=8)
    n_brains = parser.parse_args(argv).brains
    template = tissue(NEUROSTORM_2MM)
    tables = [figures(seed, template, NEUROSTORM_2MM) for seed in range(n_brains)]
    print("| misplacement | " + " | ".join(FIGURES) + " | flagged |\n|" + "---|" * (len(FIGURES) + 2))
    for name in MISPLACEMENTS:
        values = np.array([table[name] for table in tables], dtype=float)
        spans = [f"{low:.2f} to {high:.2f}" for low, high in zip(values.min(0), values.max(0), strict=True)][:-1]
        print(f"| {name} | " + " | ".join(spans) + f" | {int(values[:, -1].sum())} of {n_brains} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
