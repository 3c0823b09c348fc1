"""Bringing runs to the model's grid: routes, transforms and streamed resampling; the only stage that knows affines.

::

    route = choose_route(run, grid)
    series = to_grid(route, grid)
    require_coverage(series, 0.5)
    tally = Tally(series)
    for volume in series.observed_by(tally.add).volumes():
        ...
    quality = assess(series, tally)
"""

from neurostorm_bids.space.grid import NEUROSTORM_2MM, Grid
from neurostorm_bids.space.quality import FIGURES, RunQuality, Tally, assess, require_coverage
from neurostorm_bids.space.routes import Route, choose_route
from neurostorm_bids.space.series import GridSeries, to_grid

__all__ = [
    "FIGURES",
    "NEUROSTORM_2MM",
    "Grid",
    "GridSeries",
    "Route",
    "RunQuality",
    "Tally",
    "assess",
    "choose_route",
    "require_coverage",
    "to_grid",
]
