"""A grid on the voxels of an image: the copied box against the gather, for any flips, orders, steps and overlaps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurostorm_bids.space.grid import Grid
from neurostorm_bids.space.resample import (
    LatticeSampler,
    NearestSampler,
    sampler_in_space,
    voxel_coordinates,
    weight_matrix,
)

IMAGE = Grid.of((5, 6, 7), [[2, 0, 0, -4], [0, 2, 0, 3], [0, 0, 2, 10], [0, 0, 0, 1]], "MNI152NLin6Asym")
signed_steps = st.sampled_from((-3, -2, -1, 1, 2, 3))


@st.composite
def grids_on_voxels(draw: st.DrawFn) -> Grid:
    """A grid whose voxel centres are those of ``IMAGE`` or lie whole steps outside of it."""
    to_image = np.eye(4)
    to_image[:3, :3] = np.diag(draw(st.tuples(*[signed_steps] * 3)))[:, draw(st.permutations(range(3)))]
    to_image[:3, 3] = draw(st.tuples(*[st.integers(-6, 12)] * 3))
    shape = draw(st.tuples(*[st.integers(1, 6)] * 3))
    return Grid.of(shape, IMAGE.matrix @ to_image, IMAGE.template)


@settings(max_examples=200, deadline=None)
@given(grids_on_voxels(), st.sampled_from(("linear", "nearest", "lanczos")))
def test_a_box_is_what_a_gather_would_be(grid, kernel):
    volume = np.asfortranarray(np.random.default_rng(0).normal(size=IMAGE.shape).astype(np.float32))
    box = sampler_in_space(IMAGE, grid, kernel)
    gather = NearestSampler(voxel_coordinates(IMAGE, grid.points()), IMAGE.shape, grid.shape)
    assert isinstance(box, LatticeSampler)
    assert np.array_equal(box(volume), gather(volume))
    assert np.array_equal(box.inside(), gather.inside())
    assert (box.weights != gather.weights).nnz == 0


@pytest.mark.parametrize(
    "to_image",
    [
        pytest.param(np.diag([1, 1, 1.01, 1]), id="a step of 1.01 voxels"),
        pytest.param(np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0.5], [0, 0, 0, 1]]), id="half a voxel apart"),
        pytest.param(np.array([[1, 1, 0, 0], [-1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), id="turned by 45 degrees"),
    ],
)
def test_a_grid_between_voxels_is_interpolated(to_image):
    grid = Grid.of((4, 4, 4), IMAGE.matrix @ to_image, IMAGE.template)
    volume = np.random.default_rng(0).normal(size=IMAGE.shape).astype(np.float32)
    expected = weight_matrix(IMAGE, grid.points(), "linear") @ volume.ravel(order="F")
    assert LatticeSampler.between(IMAGE, grid) is None
    assert np.array_equal(sampler_in_space(IMAGE, grid, "linear")(volume).ravel(), expected)


def test_headers_round_and_the_grid_is_still_on_voxels():
    rounded = IMAGE.matrix
    rounded[:3, 3] += 1e-5
    assert LatticeSampler.between(IMAGE, Grid.of((4, 4, 4), rounded, IMAGE.template)) is not None
