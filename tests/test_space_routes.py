"""The best route wins, says why, and is refused by name where there is none."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from space_phantoms import SMALL, centred, run_of, write_bold, write_image

from neurostorm_bids.errors import (
    AffineMissing,
    NoRoute,
    NotABoldSeries,
    SurfaceData,
    TransformUnavailable,
)
from neurostorm_bids.inputs.runs import BoldImage, TransformFile
from neurostorm_bids.space import NEUROSTORM_2MM, choose_route
from neurostorm_bids.space.grid import TEMPLATE_LATTICES, Grid, on_lattice, same_voxels
from neurostorm_bids.space.templateflow import template_transform, transform_name

SIX, NINE = "MNI152NLin6Asym", "MNI152NLin2009cAsym"
FSL_2MM = np.array([[-2, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]], float)
SHAPE = (12, 13, 11)
TEMPLATE_FILE = transform_name(NINE, SIX)


@pytest.fixture
def templateflow(tmp_path: Path, monkeypatch) -> Path:
    """A private TemplateFlow cache, which tests fill."""
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "templateflow"))
    return tmp_path / "templateflow"


@pytest.fixture
def cached(templateflow: Path) -> Path:
    path = templateflow / f"tpl-{SIX}" / TEMPLATE_FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(b"transform")
    return path


@pytest.fixture
def image(tmp_path: Path):
    """Small images in any space, by name."""

    def build(space: str, *, zoom: float = 4.0, folder: str = "") -> BoldImage:
        affine = centred(SHAPE, (zoom,) * 3)
        return write_bold(tmp_path / folder, space, np.ones(SHAPE), affine)

    return build


def moves(source: str, target: str) -> TransformFile:
    return TransformFile(Path(f"from-{source}_to-{target}_mode-image_xfm.h5"), source, target)


def hops(route) -> list[tuple[str, str, str]]:
    return [(hop.source, hop.target, hop.kind) for hop in route.hops]


# --- lattices ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "affine", "expected"),
    [
        ((91, 109, 91), FSL_2MM, True),  # FSL, LAS
        ((91, 109, 91), [[2, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]], True),  # TemplateFlow, RAS
        ((109, 91, 91), [[0, -2, 0, 90], [2, 0, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]], True),  # axes swapped
        ((96, 96, 96), NEUROSTORM_2MM.affine, True),
        ((91, 109, 91), [[2, 0, 0, -92], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]], False),  # the decoy
        ((91, 109, 91), [[2, 0, 0, -91], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]], False),  # half a voxel off
        ((91, 109, 91), [[-2, 0.02, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]], False),  # sheared
        ((182, 218, 182), [[-1, 0, 0, 90], [0, 1, 0, -126], [0, 0, 1, -72], [0, 0, 0, 1]], False),  # 1 mm
        ((90, 109, 91), FSL_2MM, False),  # a slice short
    ],
)
def test_the_lattice_is_shape_affine_and_template(shape, affine, expected: bool):
    assert on_lattice(Grid.of(shape, affine, SIX), NEUROSTORM_2MM) is expected
    assert not on_lattice(Grid.of(shape, affine, NINE), NEUROSTORM_2MM)


def test_header_rounding_does_not_leave_the_lattice():
    rounded = FSL_2MM + np.random.default_rng(0).uniform(-1e-5, 1e-5, (4, 4)) * [[1], [1], [1], [0]]
    assert on_lattice(Grid.of((91, 109, 91), rounded, SIX), NEUROSTORM_2MM)
    rounded[0, 3] += 0.05
    assert not on_lattice(Grid.of((91, 109, 91), rounded, SIX), NEUROSTORM_2MM)


def test_a_model_in_another_template_has_its_own_lattice():
    lattice = next(home for home in TEMPLATE_LATTICES if home.template == NINE and home.zooms[0] == 2)
    model = Grid.of((96, 96, 96), [[2, 0, 0, -94.5], [0, 2, 0, -112.5], [0, 0, 2, -76.5], [0, 0, 0, 1]], NINE)
    assert on_lattice(lattice, model)
    assert not same_voxels(lattice, model)


# --- the ladder -------------------------------------------------------------------------------------------------


def test_lattice_before_affine_before_transforms(tmp_path: Path, image):
    on_grid = write_image(tmp_path / "grid_bold.nii.gz", np.ones((*SMALL.shape, 2)), SMALL.matrix)
    lattice, affine, native = BoldImage(on_grid, SIX, resolution="2"), image(SIX), image("boldref")
    own = (moves("boldref", "T1w"), moves("T1w", SIX))
    route = choose_route(run_of(native, affine, lattice, transforms=own), SMALL)
    assert (route.kind, route.image) == ("lattice", lattice)
    ways = ("affine from MNI152NLin6Asym", "transform from boldref")
    assert {route.why.removeprefix("best of the routes there are; also possible: ")} <= {
        f"{one}, {other}" for one, other in (ways, ways[::-1])
    }
    assert "no interpolation" in route.steps[-1]
    route = choose_route(run_of(native, affine, transforms=own), SMALL)
    assert (route.kind, route.image, route.hops) == ("affine", affine, ())
    route = choose_route(run_of(native, transforms=own), SMALL)
    assert (route.kind, hops(route)) == ("transform", [("boldref", "T1w", "own"), ("T1w", SIX, "own")])
    assert [path.name for path in route.files] == [file.path.name for file in own]


def test_of_two_resolutions_the_nearer_is_taken(image):
    near, far = image(SIX, zoom=4.5, folder="b"), image(SIX, zoom=3, folder="a")  # by its path it would come second
    assert choose_route(run_of(far, near), SMALL).image == near


def test_transforms_there_and_back_lead_on(image):
    own = (moves("T1w", NINE), moves(NINE, "T1w"), moves("T1w", SIX))
    assert hops(choose_route(run_of(image("T1w"), transforms=own), SMALL)) == [("T1w", SIX, "own")]


def test_native_before_t1w(image):
    own = (moves("boldref", "T1w"), moves("T1w", SIX))
    route = choose_route(run_of(image("T1w"), image("boldref"), transforms=own), SMALL)
    assert route.image.space == "boldref"
    assert choose_route(run_of(image("T1w"), image("boldref"), transforms=own[1:]), SMALL).image.space == "T1w"


@pytest.mark.parametrize("name", ["scanner", "boldref"])
def test_every_naming_generation_of_bold_to_t1w(image, name: str):
    own = (moves(name, "T1w"), moves("T1w", SIX), moves("orig", "boldref"), moves("scanner", "boldref"))
    route = choose_route(run_of(image("boldref"), transforms=own), SMALL)
    assert [hop.path for hop in route.hops] == [own[0].path, own[1].path]


def test_2009c_through_the_participants_own_transforms(image, templateflow: Path):
    own = (moves(NINE, "T1w"), moves("T1w", SIX))
    route = choose_route(run_of(image(NINE), transforms=own), SMALL)
    assert hops(route) == [(NINE, "T1w", "own"), ("T1w", SIX, "own")]
    assert route.kind == "transform"


def test_2009c_through_templateflow(image, cached: Path):
    route = choose_route(run_of(image(NINE)), SMALL, offline=True)
    assert (route.kind, route.files, route.warnings) == ("transform", (cached,), ())
    native = choose_route(
        run_of(image(NINE), image("boldref"), transforms=(moves("boldref", "T1w"), moves("T1w", NINE))),
        SMALL,
        offline=True,
    )
    assert hops(native) == [("boldref", "T1w", "own"), ("T1w", NINE, "own"), (NINE, SIX, "template")]


def test_2009c_without_the_template_transform_is_approximate_and_says_so(image, templateflow: Path):
    own = (moves("boldref", "T1w"), moves("T1w", NINE))
    route = choose_route(run_of(image("boldref"), image(NINE), transforms=own), SMALL, offline=True)
    assert (route.kind, route.image.space) == ("affine-approximate", NINE)
    assert all(TEMPLATE_FILE in warning for warning in route.warnings)
    assert "a few millimetres" in route.warnings[-1]
    assert "no transform" in " ".join(route.steps)


def test_an_empty_file_in_the_cache_is_not_the_transform(image, cached: Path):
    cached.write_bytes(b"")
    with pytest.raises(TransformUnavailable, match=TEMPLATE_FILE):
        template_transform(NINE, SIX, offline=True)


class Archive(BaseHTTPRequestHandler):
    """TemplateFlow's archive, holding one file; ``promised`` is the length that it announces."""

    content: bytes = b"transform"
    promised: int | None = 9

    def do_GET(self):
        found = self.path == f"/tpl-{SIX}/{TEMPLATE_FILE}"
        self.send_response(200 if found else 404)
        if self.promised is not None:
            self.send_header("content-length", str(self.promised if found else 0))
        self.end_headers()
        if found:
            self.wfile.write(self.content)

    def log_message(self, *args):
        pass


@pytest.fixture
def archive(templateflow: Path, monkeypatch):
    """The archive on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Archive)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("neurostorm_bids.space.templateflow.archive", lambda: f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield Archive
    server.shutdown()
    server.server_close()


def test_a_missing_file_is_fetched_once_and_announced(image, archive, templateflow: Path, caplog):
    route = choose_route(run_of(image(NINE)), SMALL)
    assert route.files == (templateflow / f"tpl-{SIX}" / TEMPLATE_FILE,)
    assert route.files[0].read_bytes() == archive.content
    assert TEMPLATE_FILE in caplog.text
    caplog.clear()
    assert choose_route(run_of(image(NINE)), SMALL, offline=True).files == route.files
    assert not caplog.text
    assert [path.name for path in route.files[0].parent.iterdir()] == [TEMPLATE_FILE]
    (templateflow / "plain").touch()  # a cache that several people share is read by all of them
    assert route.files[0].stat().st_mode == (templateflow / "plain").stat().st_mode


def test_what_is_not_needed_is_not_fetched(image, archive, templateflow: Path):
    assert choose_route(run_of(image(SIX), image(NINE)), SMALL).kind == "affine"
    assert not templateflow.exists()


def test_half_a_file_is_none(archive, templateflow: Path, monkeypatch):
    monkeypatch.setattr(archive, "promised", 900)
    with pytest.raises(TransformUnavailable, match="could not be fetched"):
        template_transform(NINE, SIX, offline=False)
    assert not any(path.is_file() for path in templateflow.rglob("*"))


def test_an_archive_need_not_say_how_long_a_file_is(archive, templateflow: Path, monkeypatch):
    monkeypatch.setattr(archive, "promised", None)
    assert template_transform(NINE, SIX, offline=False).read_bytes() == archive.content


def test_an_archive_without_the_file_is_told(archive, templateflow: Path):
    with pytest.raises(TransformUnavailable, match=r"could not be fetched \(HTTPError\).*Put it there"):
        template_transform("MNI305", SIX, offline=False)


def test_without_a_network_the_file_is_named(templateflow: Path, monkeypatch):
    monkeypatch.setattr("neurostorm_bids.space.templateflow.archive", lambda: "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(TransformUnavailable, match=rf"ConnectionError.*{TEMPLATE_FILE}"):
        template_transform(NINE, SIX, offline=False)


# --- forced routes ----------------------------------------------------------------------------------------------


def test_forced_routes(image, cached: Path):
    affine, native, nine = image(SIX), image("boldref"), image(NINE)
    run = run_of(affine, native, nine, transforms=(moves("boldref", "T1w"), moves("T1w", SIX)))
    forced = {name: choose_route(run, SMALL, normalization=name) for name in ("affine", "transform")}
    assert forced["affine"].image == affine
    assert forced["transform"].image == native
    assert "forced" in forced["affine"].why
    with pytest.raises(NoRoute, match="--normalization lattice"):
        choose_route(run, SMALL, normalization="lattice")


def test_an_image_on_the_lattice_by_its_affine_is_interpolated_and_said_to_be(tmp_path: Path):
    path = write_image(tmp_path / "grid_bold.nii.gz", np.ones((*SMALL.shape, 2)), SMALL.matrix)
    run = run_of(BoldImage(path, SIX, resolution="2"))
    steps = {name: choose_route(run, SMALL, normalization=name).steps for name in ("auto", "affine")}
    assert steps["auto"][-1] == "placed on the grid voxel by voxel, no interpolation"
    assert steps["affine"] == (f"grid_bold.nii.gz ({SIX} res-2)", "one linear interpolation by affine")
    assert choose_route(run, SMALL, normalization="affine").kind == "affine"


def test_forced_transform_without_the_file_is_an_error(image, templateflow: Path):
    with pytest.raises(TransformUnavailable, match=TEMPLATE_FILE):
        choose_route(run_of(image(NINE)), SMALL, normalization="transform", offline=True)


def test_forced_affine_looks_for_no_transform(image, cached: Path):
    assert choose_route(run_of(image(NINE)), SMALL, normalization="affine").kind == "affine-approximate"


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["MNIInfant", "fsLR", "MNI152NLin6Sym", "T1w", "boldref", "Tokyo"])
def test_spaces_without_a_way_are_refused_by_name(image, space: str):
    with pytest.raises(NoRoute, match=rf"spaces found: {space}.*--output-spaces MNI152NLin6Asym:res-2") as caught:
        choose_route(run_of(image(space)), SMALL, offline=True)
    assert "sub-01_task-rest" in str(caught.value)


def test_a_run_without_images_is_refused():
    with pytest.raises(NoRoute, match="spaces found: none; transforms found: none"):
        choose_route(run_of(), SMALL)


def test_a_faulty_image_gives_way_to_a_sound_one_and_is_mentioned(tmp_path: Path, image):
    flat = write_image(tmp_path / "flat_bold.nii.gz", np.ones(SMALL.shape), SMALL.matrix)
    route = choose_route(run_of(BoldImage(flat, SIX), image(SIX)), SMALL)
    assert route.kind == "affine"
    assert "flat_bold.nii.gz: the image is 3D" in route.warnings[0]
    with pytest.raises(NotABoldSeries):
        choose_route(run_of(BoldImage(flat, SIX)), SMALL)


def test_real_faulty_images_are_refused(shared: Path):
    bold = shared / "real/bold"
    for name, error in {
        "oro.nifti/filtered_func_data.nii.gz": AffineMissing,
        "oro.nifti/mniLR.nii.gz": NotABoldSeries,
        "niworkflows/sub-01_task-mixedgamblestask_run-02_space-fsLR_den-91k_bold.dtseries.nii": SurfaceData,
    }.items():
        with pytest.raises(error):
            choose_route(run_of(BoldImage(bold / name, SIX)), NEUROSTORM_2MM)
