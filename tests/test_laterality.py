"""Whatever the storage order and the route, the embedding is the same; a mirrored brain gives another."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from fmriprep_tree import AFFINE, bold_data, brain_mask
from space_phantoms import (
    affine_transform,
    balls,
    centred,
    composite,
    euler_transform,
    run_of,
    smooth_field,
    write_image,
    write_transform,
)

from neurostorm_bids.inputs.runs import BoldImage, TransformFile
from neurostorm_bids.model import load_model
from neurostorm_bids.prepare import prepare_run
from neurostorm_bids.process import embed_run
from neurostorm_bids.settings import Settings

SIX, NINE = "MNI152NLin6Asym", "MNI152NLin2009cAsym"
ORIENTATIONS = ["".join(letters) for axes in permutations(("RL", "AP", "SI")) for letters in product(*axes)]
MARKERS = {(-44.0, 8.0, 28.0): 900.0, (28.0, 32.0, -4.0): 1500.0, (12.0, -60.0, 36.0): 2100.0}  # mm


@pytest.fixture(scope="module")
def model():
    return load_model("demo", device="cpu", offline=True)


@pytest.fixture(scope="module")
def transforms(tmp_path_factory) -> dict[str, TransformFile]:
    folder = tmp_path_factory.mktemp("transforms")
    field = smooth_field(3, 6, centred((24, 28, 24), (8, 8, 8), codes="LPS"))
    warp = composite(affine_transform(2), field)
    cache = folder / f"templateflow/tpl-{SIX}/tpl-{SIX}_from-{NINE}_mode-image_xfm.h5"
    return {
        "native": TransformFile(write_transform(euler_transform(1), folder / "bold.txt"), "boldref", "T1w"),
        "T1w": TransformFile(write_transform(warp, folder / "t1w.h5"), "T1w", SIX),
        "cache": TransformFile(write_transform(warp, cache), NINE, SIX),
    }


ROUTES = {
    "affine": (SIX, ()),
    "T1w": ("T1w", ("T1w",)),
    "native": ("boldref", ("native", "T1w")),
    "2009c": (NINE, ()),
}


def phantom() -> np.ndarray:
    """A run with three bright markers, none the mirror image of another.  # (20, 24, 20, 20)"""
    mask = brain_mask()
    markers = balls(AFFINE, mask.shape, MARKERS, 14) * mask
    return bold_data(11) + markers[..., None].astype("f4")


def embedding_of(folder: Path, model, codes: str, route: str, transforms, data: np.ndarray) -> np.ndarray:
    space, names = ROUTES[route]
    turn = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(tuple(codes)))
    stored = [nib.Nifti1Image(array, AFFINE).as_reoriented(turn) for array in (data, brain_mask().astype("u1"))]
    bold = write_image(folder / f"{codes}_bold.nii.gz", np.asarray(stored[0].dataobj), stored[0].affine)
    mask = write_image(folder / f"{codes}_mask.nii.gz", np.asarray(stored[1].dataobj), stored[1].affine)
    run = run_of(BoldImage(bold, space, mask), transforms=tuple(transforms[name] for name in names))
    settings = Settings(
        bids_dir=folder, output_dir=folder, level="participant", work_dir=folder / "work", offline=True, min_coverage=0
    )
    prepared = prepare_run(run, model.input, settings)
    assert prepared.route.kind == ("affine" if route == "affine" else "transform")
    return embed_run(replace(prepared), [model])[0].embedding


@pytest.mark.parametrize("route", ROUTES)
def test_the_embedding_stays_put_from_every_orientation(tmp_path, model, transforms, route, monkeypatch):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(transforms["cache"].path.parents[1]))
    data = phantom()
    straight = embedding_of(tmp_path, model, "RAS", route, transforms, data)
    mirrored = embedding_of(tmp_path, model, "RAS", route, transforms, data[::-1])
    scale = np.abs(straight).max()
    assert np.abs(mirrored - straight).max() > 1e-3 * scale
    for codes in ORIENTATIONS:
        turned = embedding_of(tmp_path, model, codes, route, transforms, data)
        assert np.abs(turned - straight).max() < 1e-5 * scale, codes
