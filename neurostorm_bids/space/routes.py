"""Which way leads from a run's images to the model's grid, and why that one.

Images and transforms span a graph: its nodes are spaces, its edges are transform files of the participant, of
TemplateFlow, and (as a last resort) the assumption that two adult MNI templates are one. Every path from an image
to the model's template is a candidate; the best one wins:

1. the image lies on the template's own lattice: placed, no interpolation;
2. the image lies in the template on another grid: one interpolation by its affine;
3. native or T1w images through the participant's own transforms to the template;
4. images in another template: through the participant's own inverse and forward transforms, or native and T1w
   images through the other template, or the image itself through TemplateFlow's transform between the templates;
5. the image as it lies in the other template, its affine taken for the model's: approximate.

Only the last lets two interpolations (the pipeline's and ours) pass where one would do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from neurostorm_bids.errors import NeurostormError, NoRoute, TransformUnavailable
from neurostorm_bids.inputs.runs import BoldImage, BoldRun
from neurostorm_bids.settings import Interpolation, Normalization
from neurostorm_bids.space.grid import Grid, on_lattice
from neurostorm_bids.space.header import judged_affine
from neurostorm_bids.space.nifti import open_series
from neurostorm_bids.space.templateflow import template_transform, transform_name

RouteKind = Literal["lattice", "affine", "transform", "affine-approximate", "array"]
NATIVE = "boldref"
SCANNER_NAMES = ("scanner",)  # what fMRIPrep before 23.2 calls the space of its native reference
PARTICIPANT_SPACES = (NATIVE, "T1w", "T2w")
ADULT_TEMPLATES = ("MNI152NLin6Asym", "MNI152NLin2009cAsym")  # a few millimetres apart: see docs/normalization.md


@dataclass(frozen=True)
class Hop:
    """One edge of the graph: images move from ``source`` to ``target``, so points move the other way.

    ``path`` is None for a TemplateFlow transform that has not been looked up, and for an identity.
    """

    source: str
    target: str
    kind: Literal["own", "template", "identity"]
    path: Path | None = None

    def describe(self) -> str:
        """The hop in words, for sidecars and logs."""
        if self.kind == "identity":
            return f"{self.source} taken for {self.target}: no transform"
        name = self.path.name if self.path else transform_name(self.source, self.target)
        return f"{self.source} to {self.target} by {name}"


@dataclass(frozen=True)
class Route:
    """How a run reaches the model's grid.

    Attributes
    ----------
    kind : str
        "lattice", "affine", "transform" or "affine-approximate".
    image : BoldImage
        The image that is read, and ``geometry`` its grid.
    hops : tuple of Hop
        From the space of the image to the template, in the order in which an image would move.
    steps : tuple of str
        The route in words.
    why : str
        What made it the best one.
    """

    kind: RouteKind
    run: BoldRun
    image: BoldImage
    geometry: Grid
    hops: tuple[Hop, ...] = ()
    interpolation: Interpolation = "linear"
    steps: tuple[str, ...] = ()
    why: str = ""
    warnings: tuple[str, ...] = field(default=())

    @property
    def files(self) -> tuple[Path, ...]:
        """Transform files of the route."""
        return tuple(hop.path for hop in self.hops if hop.path is not None)


def choose_route(
    run: BoldRun,
    grid: Grid,
    *,
    normalization: Normalization = "auto",
    interpolation: Interpolation = "linear",
    offline: bool = False,
) -> Route:
    """The best route of a run to the grid; headers are read, voxels are not.

    A TemplateFlow transform is looked up (and fetched, unless ``offline``) only for a route that needs it.

    Raises
    ------
    NoRoute
        When no image can reach the template of the grid, or none as ``normalization`` demands.
    TransformUnavailable
        When ``normalization`` is "transform" and the transform that is missing is the only way.
    ImageUnreadable, AffineMissing, ...
        When the only images that could be used are faulty.
    """
    routes, faults = _candidates(run, grid, interpolation)
    if not routes and faults:
        raise faults[0]
    allowed = sorted(
        (route for route in routes if _allowed(route, normalization)), key=lambda route: _rank(route, grid)
    )
    if not allowed:
        raise _no_route(run, grid, normalization)
    missing: list[TransformUnavailable] = []
    for route in sorted(allowed, key=lambda route: _rank(route, grid)):
        try:
            found = _looked_up(route, offline)
        except TransformUnavailable as error:
            missing.append(error)
            continue
        return _explained(found, allowed, normalization, (*faults, *missing))
    raise missing[0]


# --- candidates -------------------------------------------------------------------------------------------------


def _candidates(run: BoldRun, grid: Grid, interpolation: Interpolation) -> tuple[list[Route], list[NeurostormError]]:
    hops, routes, faults = _hops(run, grid.template), [], []
    for image in run.images:
        paths = list(_paths(image.space, grid.template, hops))
        if not paths:
            continue
        try:
            geometry = _geometry(image)
        except NeurostormError as error:
            faults.append(error)
            continue
        routes += [Route(_kind(geometry, path, grid), run, image, geometry, path, interpolation) for path in paths]
    return routes, faults


def _geometry(image: BoldImage) -> Grid:
    series = open_series(image.bold)
    affine = judged_affine(series, in_template=image.space not in PARTICIPANT_SPACES)
    return Grid.of(series.shape[:3], affine, image.space)


def _hops(run: BoldRun, template: str) -> list[Hop]:
    own = [
        Hop(NATIVE if file.source in SCANNER_NAMES else file.source, file.target, "own", file.path)
        for file in run.transforms
        if file.target not in (NATIVE, *SCANNER_NAMES)  # head motion: applied by the pipeline already
    ]
    if template not in ADULT_TEMPLATES:
        return own
    others = [other for other in ADULT_TEMPLATES if other != template]
    return own + [Hop(other, template, kind) for other in others for kind in ("template", "identity")]


def _paths(space: str, template: str, hops: list[Hop], seen: tuple[str, ...] = ()) -> Iterator[tuple[Hop, ...]]:
    if space == template:
        yield ()
        return
    for hop in hops:
        if hop.source == space and hop.target not in (*seen, space):
            for rest in _paths(hop.target, template, hops, (*seen, space)):
                yield (hop, *rest)


def _kind(geometry: Grid, path: tuple[Hop, ...], grid: Grid) -> RouteKind:
    if any(hop.kind == "identity" for hop in path):
        return "affine-approximate"
    if path:
        return "transform"
    return "lattice" if on_lattice(geometry, grid) else "affine"


# --- choice -----------------------------------------------------------------------------------------------------


def _allowed(route: Route, normalization: Normalization) -> bool:
    if normalization == "auto":
        return True
    if normalization == "affine":
        return all(hop.kind == "identity" for hop in route.hops)
    return route.kind == normalization


def _rank(route: Route, grid: Grid) -> tuple:
    off_size = float(np.abs(np.log(route.geometry.zooms / grid.zooms)).sum())
    resampled_before = route.image.space != NATIVE
    return (_tier(route), resampled_before, len(route.hops), off_size, str(route.image.bold))


def _tier(route: Route) -> int:
    if route.kind in ("lattice", "affine"):
        return ("lattice", "affine").index(route.kind)
    if route.kind == "affine-approximate":
        return 9 + len(route.hops)  # nothing is gained by more transforms before a guess
    between_templates = any(hop.kind == "template" for hop in route.hops)
    if route.image.space in PARTICIPANT_SPACES:
        return 4 if between_templates else 2
    return 5 if between_templates else 3


def _looked_up(route: Route, offline: bool) -> Route:
    hops = tuple(_with_path(hop, offline) if hop.kind == "template" else hop for hop in route.hops)
    return replace(route, hops=hops)


def _with_path(hop: Hop, offline: bool) -> Hop:
    return replace(hop, path=template_transform(hop.source, hop.target, offline=offline))


def _explained(
    route: Route, allowed: list[Route], normalization: Normalization, passed_over: tuple[NeurostormError, ...]
) -> Route:
    warnings = [f"not used: {error}" for error in passed_over]
    if route.kind == "affine-approximate":
        warnings.append(
            f"{route.image.bold.name}: {_approximation(route)}; anatomy is misplaced by a few millimetres "
            "(docs/normalization.md)"
        )
    others = dict.fromkeys(
        f"{other.kind} from {_place(other.image)}" for other in allowed if other.image != route.image
    )
    why = "forced by --normalization" if normalization != "auto" else "best of the routes there are"
    if normalization == "affine" and route.kind == "lattice":
        route = replace(route, kind="affine")
    return replace(
        route,
        steps=_steps(route),
        why=why + (f"; also possible: {', '.join(others)}" if others else ""),
        warnings=tuple(warnings),
    )


def _approximation(route: Route) -> str:
    hop = next(hop for hop in route.hops if hop.kind == "identity")
    return f"{hop.source} is taken for {hop.target} for want of {transform_name(hop.source, hop.target)}"


def _place(image: BoldImage) -> str:
    return image.space + (f" res-{image.resolution}" if image.resolution else "")


def _steps(route: Route) -> tuple[str, ...]:
    how = {
        "lattice": "placed on the grid voxel by voxel, no interpolation",
        "affine": f"one {route.interpolation} interpolation by affine",
    }.get(route.kind, f"one {route.interpolation} interpolation")
    return (f"{route.image.bold.name} ({_place(route.image)})", *(hop.describe() for hop in route.hops), how)


def _no_route(run: BoldRun, grid: Grid, normalization: Normalization) -> NoRoute:
    spaces = sorted({_place(image) for image in run.images}) or ["none"]
    transforms = sorted({f"{file.source} to {file.target}" for file in run.transforms}) or ["none"]
    forced = "" if normalization == "auto" else f" by the route --normalization {normalization}"
    return NoRoute(
        f"{run.name}: no image of this run can be brought to {grid.template}{forced} "
        f"(spaces found: {', '.join(spaces)}; transforms found: {', '.join(transforms)})",
        expected=f"a BOLD series in {grid.template}, or one with the transforms that lead there",
        remedy=f"Run fMRIPrep with --output-spaces {grid.template}:res-2 (and --level full)",
    )
