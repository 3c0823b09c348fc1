"""Bringing runs to the model's grid: routes, transforms and streamed resampling; the only stage that knows affines."""

from neurostorm_bids.space.grid import NEUROSTORM_2MM, Grid
from neurostorm_bids.space.routes import Route, choose_route
from neurostorm_bids.space.series import GridSeries, to_grid

__all__ = ["NEUROSTORM_2MM", "Grid", "GridSeries", "Route", "choose_route", "to_grid"]
