"""Reports: what they say, what they escape, when they are written again, and what a call tells while it runs."""

from __future__ import annotations

import io
import json
import re
import shutil
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import report_cases as cases
from fmriprep_tree import write_dataset, write_run
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from neurostorm_bids.aggregate import aggregate
from neurostorm_bids.cli import main
from neurostorm_bids.errors import TableUnreadable
from neurostorm_bids.progress import Progress, progress_line, summary
from neurostorm_bids.report.carpet import MOST_COLUMNS, Carpet
from neurostorm_bids.report.charts import Scale, against_training, principal_plane, ticks, timeline, trajectories
from neurostorm_bids.report.cohort import LEAST_RUNS, QualityRow, common_warnings, outliers
from neurostorm_bids.report.figures import figures_whole, picture_file, read_figures
from neurostorm_bids.report.group import write_group_report
from neurostorm_bids.report.page import methods, number
from neurostorm_bids.report.participant import needs_report, report_file, write_participant_report
from neurostorm_bids.report.pictures import Mosaic, greys, outline, webp
from neurostorm_bids.space.grid import Grid
from neurostorm_bids.workflow import Outcome


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Output folders with and without hostile texts."""
    made = {}
    for name, text in (("plain", ""), ("hostile", cases.HOSTILE)):
        root = tmp_path_factory.mktemp(name)
        cases.write_results(root / "out", root / "fmriprep", text=text)
        cases.write_evaluation(root / "out", text=text)
        aggregate(root / "out", expected=[("01", None), ("02", None), ("03", None)])
        made[name] = root / "out"
    return made


@pytest.fixture
def output(folders, tmp_path) -> Path:
    """An output folder of one's own."""
    return Path(shutil.copytree(folders["plain"], tmp_path / "out"))


def participants(text: str = "") -> dict[str, dict[str, object]]:
    return {"age": {"01": 50.0, "02": 60.0}, f"site{text}": {"01": f"a{text}", "02": "b"}}


def pages(folder: Path, text: str = "") -> dict[str, str]:
    for label in ("01", "02"):
        write_participant_report(folder, label)
    write_group_report(folder, participants(text))
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.html"))}


class Elements(HTMLParser):
    """Start tags with their attributes, and the text between tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += f"{data} "

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


# --- participant ------------------------------------------------------------------------------------------------


def test_the_page_says_what_was_run_and_what_came_of_it(output):
    write_participant_report(output, "01")
    text = " ".join(Elements(report_file(output, "01").read_text()).text.split())
    for said in (
        "sub-01_task-movie", "sub-01_task-rest", "fMRIPrep", "24.1.0", "affine-approximate", "MNI152NLin2009cAsym",
        "Denoising none", "90 (2 dropped at the start)", "matched by its affine alone", "Warned of",
        "calibrated 95 % interval 50 to 73", "no interval for the person", "unlike the training data",
        "with a temperature fitted on held-out people", "Assumed of its input grid", "f00d", "5e771", "c0ffee",
        "'out put' participant --model base",
        "Towards a general-purpose foundation model", "doi:10.1038/sdata.2016.44", "bids:fmriprep:sub-01/func",
        "Where the predictions come from, over all runs", "Visual", "an error of 0.4 %", "another map: yes",
        "Not for clinical use", "torch", "left out for motion",
    ):  # fmt: skip
        assert said in text, said


def test_only_what_was_calibrated_is_called_an_interval(output):
    for path in output.rglob("*_predictions.tsv"):
        rows = [line.split("\t") for line in path.read_text().splitlines()]
        kept = [place for place, name in enumerate(rows[0]) if not name.startswith("interval")]
        path.write_text("".join("\t".join(row[place] for place in kept) + "\n" for row in rows))
        stamp(path)
    write_participant_report(output, "01")
    text = report_file(output, "01").read_text()
    assert "standard deviation; no interval for the person" in " ".join(text.split())
    assert "calibrated 95 % interval" not in text and "Blue frame" not in text


def stamp(path: Path) -> None:
    """Make a table that a test changed agree with its sidecar."""
    from neurostorm_bids.outputs.atomic import sha256

    sidecar = path.with_suffix(".json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"DataSha256": sha256(path)}))


def test_a_run_that_failed_is_told_with_its_reason_until_it_has_results(output):
    write_participant_report(output, "02")
    assert "sub-02_task-fail: voxels are NaN" in report_file(output, "02").read_text()
    cases.write_run(output, output.parent / "in", {"sub": "02", "task": "fail"}, seed=5)
    write_participant_report(output, "02")
    assert "voxels are NaN" not in report_file(output, "02").read_text()


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("func/*movie*_embedding.tsv", "was cut or changed"),
        ("func/*movie*_qc.json", "cannot be read as JSON"),
        ("figures/*movie*_mean.webp", "was cut or changed"),
        ("figures/*movie*_report.json", "cannot be read as JSON"),
    ],
)
def test_damaged_results_are_told_in_their_place_and_the_rest_is_shown(output, pattern, said):
    (path,) = (output / "sub-01").glob(pattern)
    path.write_bytes(path.read_bytes()[:30])
    faults = write_participant_report(output, "01")
    page = report_file(output, "01").read_text()
    assert faults and said in faults[0] and said in page
    assert "sub-01_task-rest" in page


@pytest.mark.parametrize("content", ["[]", '{"Pictures": {}}', '{"Pictures": {}, "Clips": 3, "Motion": []}'])
def test_figures_of_another_shape_do_not_stop_the_page(output, content):
    for path in (output / "sub-01/figures").glob("*_report.json"):
        path.write_text(content)
    assert write_participant_report(output, "01") or content.startswith("{")
    assert "are not what this program writes" in report_file(output, "01").read_text() or content == "[]"


@pytest.mark.parametrize("value", [None, 3, "text", [1], {"a": {"b": 1}}])
def test_sidecar_entries_of_another_type_do_not_stop_the_page(output, value):
    for path in output.rglob("func/*.json"):
        content = json.loads(path.read_text())
        kept = {key: content[key] for key in ("DataSha256", "ResumeKey")}
        path.write_text(json.dumps(dict.fromkeys(content, value) | kept))
    pages(output)


def test_equal_results_give_equal_bytes_and_a_moved_folder_still_works(output, tmp_path):
    first = pages(output)
    moved = tmp_path / "elsewhere" / "out"
    shutil.copytree(output, moved)
    for page in moved.glob("*.html"):
        page.unlink()
    assert pages(moved) == first
    for page in first.values():
        links = [attributes["href"] for attributes in Elements(page).of("a")]
        assert all(link.startswith("#") or (moved / link).is_file() for link in links)


def test_a_page_is_due_when_a_result_is_newer(output):
    assert needs_report(output, "01")
    write_participant_report(output, "01")
    assert not needs_report(output, "01")
    cases.write_run(output, output.parent / "in", {"sub": "01", "task": "new"}, seed=9)
    assert needs_report(output, "01")


def test_what_comes_in_while_the_page_is_made_is_on_it(output, monkeypatch):
    from neurostorm_bids.report import participant

    made = participant.participant_page
    late = [{"sub": "01", "task": "late"}]

    def slow(folder, results):
        while late:
            cases.write_run(folder, folder.parent / "in", late.pop(), seed=7)
        return made(folder, results)

    monkeypatch.setattr(participant, "participant_page", slow)
    write_participant_report(output, "01")
    assert "sub-01_task-late" in report_file(output, "01").read_text()


# --- what pages may not do --------------------------------------------------------------------------------------


def test_no_text_of_anybody_becomes_markup(folders):
    plain, hostile = pages(folders["plain"]), pages(folders["hostile"], cases.HOSTILE)
    assert set(plain) == set(hostile) == {"sub-01.html", "sub-02.html", "group.html"}
    for name, page in hostile.items():
        elements, expected = Elements(page), Elements(plain[name])
        assert "alert(" in page, name  # the texts are there
        for tag in ("script", "img", "a", "svg", "iframe", "style", "link"):
            assert len(elements.of(tag)) == len(expected.of(tag)), (name, tag)
        assert not any(key.startswith("on") for _, attributes in elements.tags for key in attributes)


def test_file_names_become_no_markup(output):
    name = "sub-01_task-<img src=x onerror=alert(1)>_space-MNI152NLin6Asym_res-model_desc-neurostorm_qc"
    (table,) = (output / "sub-01/func").glob("*rest*_qc.tsv")
    for kind in (".tsv", ".json"):
        (table.parent / (name + kind)).write_bytes(table.with_suffix(kind).read_bytes())
    crash = output / "sub-02/log/20260101-000000_x/crash-<script>alert(3)</script>.txt".replace("</", "<\\")
    crash.write_text("<b>why</b>\n\n")
    for page in pages(output).values():
        assert "<img src=x" not in page and "<script>alert" not in page and "<b>why" not in page


def test_pages_need_nothing_but_themselves(folders):
    for name, page in pages(folders["plain"]).items():
        assert not re.search(r"https?://|//cdn|@import|url\(", page), name
        elements = Elements(page)
        assert all(attributes["src"].startswith("data:image/webp;base64,") for attributes in elements.of("img"))
        assert all("src" not in attributes for attributes in elements.of("script"))
        assert [attributes["href"] for attributes in elements.of("link")] == ["data:,"]
        (policy,) = [a["content"] for a in elements.of("meta") if a.get("http-equiv") == "Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'sha256-" if name == "group.html"
                                 else "default-src 'none'; script-src 'none'")  # fmt: skip


def test_every_picture_has_a_text_in_its_place(folders):
    for page in pages(folders["plain"]).values():
        elements = Elements(page)
        assert all(len(attributes["alt"] or "") > 20 for attributes in elements.of("img"))
        outer = [a for a in elements.of("svg") if ("height" in a and a.get("height") != "100%") or "viewbox" in a]
        named = [a for a in outer if a.get("preserveaspectratio") != "none"]
        assert named and all(a.get("aria-label") or a.get("aria-hidden") == "true" for a in named)


# --- group ------------------------------------------------------------------------------------------------------


def test_the_group_page_has_map_metrics_outliers_and_what_is_missing(folders):
    page = pages(folders["plain"])["group.html"]
    text = " ".join(Elements(page).text.split())
    for said in ("2 participants in 2 rows, 3 runs", "sub-03: no result", "sub-02_task-fail", "fc-correlation",
                 "Observed age across, predicted up", "The figures show", "PredictionIntervalHalfWidth",
                 "male", "fold 1", "applied, not cross-validated"):  # fmt: skip
        assert said in text, said
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.DOTALL)
    data = json.loads(found)
    assert [row["href"] for row in data["rows"]] == ["sub-01.html", "sub-02.html"]
    columns = {column["name"]: column for column in data["columns"]}
    assert columns["age"] == {"group": "participant", "name": "age", "kind": "number", "values": [50.0, 60.0]}
    assert columns["site"]["values"] == ["a", "b"]
    assert columns["dice"]["group"] == "quality" and columns["base_age"]["group"] == "predicted"
    assert all(len(place) == 2 for place in data["maps"]["base"]["places"])


def test_an_empty_folder_has_a_group_page_that_says_so(tmp_path):
    write_group_report(tmp_path)
    assert "No pooled embeddings are there" in (tmp_path / "group.html").read_text()


def quality(values: list[float], name: str = "dice") -> list[QualityRow]:
    return [QualityRow(f"sub-{n:02d}", f"{n:02d}", None, {name: value}, ()) for n, value in enumerate(values)]


def test_outliers_lie_on_the_bad_side_and_small_samples_have_none():
    others = [0.95, 0.94, 0.96, 0.95, 0.93, 0.95]
    (found,) = outliers(quality([*others, 0.5]))
    assert (found.run, found.figures[0][0]) == ("sub-06", "dice")
    assert outliers(quality([*others, 1.4])) == []
    assert outliers(quality([0.95] * (LEAST_RUNS - 2) + [0.1])) == []
    assert outliers(quality([0.95] * 10 + [0.949])) == []


def test_warnings_that_differ_by_figures_count_together():
    texts = ["the mask is poor (Dice 0.81)", "the mask is poor (Dice 0.79)", "TR outside 0.7 to 1.0 s"]
    rows = [QualityRow(text, "01", None, {}, (text,)) for text in texts]
    assert common_warnings(rows) == [("the mask is poor (Dice ...", 2), ("TR outside 0.7 to 1.0 s", 1)]


# --- pictures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [1, -1])
def test_left_is_on_the_left_however_the_grid_is_stored(flip):
    matrix = np.diag([4.0 * flip, 4, 4, 1])
    matrix[:3, 3] = [-46 * flip, -46, -46]
    grid = Grid.of((24, 24, 24), matrix, "MNI152NLin6Asym")
    points = grid.points().reshape(*grid.shape, 3)
    picture = Mosaic.around(grid, np.ones(grid.shape, bool)).of((points[..., 0] < -10).astype(float))
    axial = picture[:24, :24]  # the first slice of the first row
    assert axial[:, :6].all() and not axial[:, 12:].any()


def test_rows_of_the_mosaic_stand_upright():
    grid = Grid.of((20, 24, 28), np.vstack([np.c_[np.eye(3) * 2, [-19, -23, -27]], [0, 0, 0, 1]]), "MNI152NLin6Asym")
    mosaic = Mosaic.around(grid, np.ones(grid.shape, bool))
    points = grid.points().reshape(*grid.shape, 3)
    front, top = mosaic.of(points[..., 1] > 15), mosaic.of(points[..., 2] > 20)
    assert front[:4, 2:22].all() and not front[8:24].any() if mosaic.tile_width == 20 else front[:3].any()
    assert top[24:26].any() and not top[40:52].any()  # coronal row: 24 to 52, upper edge first
    assert mosaic.of(np.ones(grid.shape)).shape == (24 + 28 + 28, 6 * 24)
    assert mosaic.positions_mm("axial") == sorted(mosaic.positions_mm("axial"))


@given(st.integers(1, 12), st.integers(1, 12), st.randoms(use_true_random=False))
def test_an_outline_has_an_edge_for_every_border_of_a_pixel(height, width, random):
    mask = np.array([[random.random() < 0.5 for _ in range(width)] for _ in range(height)])
    padded = np.pad(mask, 1).astype(int)
    expected = np.abs(np.diff(padded, axis=0)).sum() + np.abs(np.diff(padded, axis=1)).sum()
    assert sum(int(n) for n in re.findall(r"[hv](\d+)", outline(mask))) == expected


def test_a_picture_is_what_was_drawn_and_the_same_bytes():
    drawn = greys(np.linspace(0, 1, 100 * 80).reshape(80, 100), 0, 1)
    read = np.asarray(Image.open(io.BytesIO(webp(drawn))).convert("L")).astype(int)
    assert read.shape == drawn.shape and np.abs(read - drawn).mean() < 4
    assert webp(drawn) == webp(drawn)


def test_figures_are_whole_or_not(output):
    (path,) = (output / "sub-01/figures").glob("*rest*_report.json")
    assert figures_whole(path)
    assert set(read_figures(path).pictures) == {"mean", "template", "carpet"}
    picture_file(path, "carpet").unlink()
    assert not figures_whole(path)
    with pytest.raises(TableUnreadable, match="run the participant level again: it draws what is missing"):
        read_figures(path)


# --- carpet -----------------------------------------------------------------------------------------------------


def filled(n_volumes: int, course: np.ndarray) -> Carpet:
    brain = np.zeros(cases.GRID.shape, bool)
    brain[14:34, 14:34, 14:34] = True
    carpet = Carpet(cases.GRID, brain, n_volumes)
    for value in course:
        carpet.add(np.full(cases.GRID.shape, value, np.float32))
    return carpet


def test_the_carpet_shows_courses_without_trend_in_their_own_sd():
    course = 500 + 3 * np.arange(60) + 20 * np.sin(np.arange(60) * 2 * np.pi / 12)
    values = filled(60, course).values()
    assert values.shape[1] == 60 and np.allclose(values.std(axis=1), 1) and np.allclose(values.mean(axis=1), 0)
    assert np.corrcoef(values[0], np.sin(np.arange(60) * 2 * np.pi / 12))[0, 1] > 0.98


def test_a_long_carpet_is_averaged_and_takes_no_more_memory():
    long, short = filled(2500, np.arange(2500) % 7), filled(900, np.arange(900) % 7)
    assert (long.volumes_per_column, short.volumes_per_column) == (3, 1)
    assert long.values().shape[1] == 834 <= MOST_COLUMNS and np.isfinite(long.values()).all()
    assert long._columns.nbytes < 1.01 * MOST_COLUMNS * 220 * 4


def test_a_constant_voxel_is_grey():
    assert not filled(30, np.full(30, 7.0)).values().any()


# --- charts -----------------------------------------------------------------------------------------------------


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_few_and_within(low, span):
    found = ticks(low, low + span)
    assert 1 <= len(found) <= 8
    assert all(low - 1e-6 * span <= tick <= low + span * (1 + 1e-6) for tick in found)


def test_scales_put_the_ends_at_the_ends():
    across, up = Scale(2, 4), Scale(2, 4, flipped=True)
    assert (across(2), across(3), across(4), up(2), up(4)) == (0, 50, 100, 100, 0)
    assert Scale(3, 3)(3) == 50 and Scale.around([])(0) == 6


def test_time_is_one_axis_for_motion_clips_and_carpet():
    content = {
        "Motion": {"FramewiseDisplacement": [None, 0.2, 0.4, 0.2, 0.2], "Onset": 0.0, "RepetitionTime": 2.0},
        "Clips": [{"Onset": 2.0, "Duration": 4.0, "Used": True}, {"Onset": 6.0, "Duration": 4.0, "Used": False}],
        "Carpet": {"Rows": {"grey matter": 3, "other": 1}, "LimitInSD": 2, "VolumesPerColumn": 1, "Onset": 2.0,
                   "Duration": 8.0},
    }  # fmt: skip
    line = timeline(content)
    assert [(clip["x"], clip["width"], clip["used"]) for clip in line["clips"]] == [(20, 40, True), (60, 40, False)]
    assert (line["carpet"]["x"], line["carpet"]["width"]) == (20, 80)
    assert line["fd"]["path"] == "M1.5 60L2.5 20L3.5 60L4.5 60"  # unknown first volume, 0.5 mm at the top
    assert [band["height"] for band in line["carpet"]["bands"]] == [75, 25]


def test_the_plane_is_that_of_most_variance_with_fixed_signs():
    rows = np.random.default_rng(0).standard_normal((30, 5)) * [9, 3, 0.1, 0.1, 0.1]
    plane, shares = principal_plane(rows)
    assert abs(np.corrcoef(plane[:, 0], rows[:, 0])[0, 1]) > 0.99 and shares[0] > shares[1] > 0.05
    assert np.allclose(np.abs(principal_plane(-rows)[0]), np.abs(plane))
    assert principal_plane(np.ones((4, 3)))[1] == (0.0, 0.0)


def test_two_clips_have_no_trajectory():
    assert trajectories({"a": np.ones((2, 4))}) == {}
    ways = trajectories({"a": np.random.default_rng(1).standard_normal((4, 3)), "b": np.zeros((2, 3))})
    assert [len(ways[name]["points"]) for name in "ab"] == [4, 2] and len(ways["a"]["others"]) == 2


def test_a_value_far_from_training_is_still_on_the_axis():
    chart = against_training(90.0, 2.0, 50.0, 5.0, (80.0, 100.0))
    assert chart["z"] == 8 and 0 < chart["mean"] < chart["value"] < 100
    assert chart["interval"][0] + chart["interval"][1] <= 100


@pytest.mark.parametrize(("value", "said"), [(None, "n/a"), ("0.97213", "0.972"), (7, "7"), (True, "yes"),
                                             ("false", "no"), ("female", "female"), (float("nan"), "n/a")])  # fmt: skip
def test_figures_are_written_for_reading(value, said):
    assert number(value) == said


def test_citations_become_numbers_in_order():
    found = methods("# T\n\nA [@b; @a] and\nB [@a].", "@misc{a,\n  author = {X, Y and Z, Z},\n  title = {T {U}}\n}\n")
    assert found["paragraphs"] == [[("A", [1, 2]), (" and B", [2]), (".", [])]]
    assert found["references"] == ["b", "X and Z. T U."]


# --- the levels -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processed(tmp_path_factory) -> Path:
    """A dataset of two participants, the second broken, after the participant level."""
    folder = tmp_path_factory.mktemp("levels")
    root = write_dataset(folder / "fmriprep")
    write_run(root, "sub-01_task-rest", seed=1, n_volumes=40)
    write_run(root, "sub-02_task-rest", n_volumes=5)
    (root / "participants.tsv").write_text("participant_id\tage\nsub-01\t50\nsub-02\t61\n")
    assert call(folder, "participant", "--model", "demo", "--offline") == 1
    return folder


def call(folder: Path, *words: str) -> int:
    plugin = folder / "linear.yml"  # in this process: starting a pool takes longer than the runs
    plugin.write_text("plugin: Linear\n")
    places = [str(folder / "fmriprep"), str(folder / "out")]
    return main([*places, *words, "-w", str(folder / "work"), "--use-plugin", str(plugin)])


def test_the_participant_level_leaves_a_report_of_every_participant(processed):
    page = (processed / "out/sub-01.html").read_text()
    assert f"neurostorm {processed / 'fmriprep'} {processed / 'out'} participant --model demo" in page
    assert Elements(page).of("img") and "never trained" not in page
    assert "5 volumes at TR 2 s are 10 s" in (processed / "out/sub-02.html").read_text()


def test_the_report_says_of_a_model_that_it_was_never_trained(processed, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(processed / "out", out)
    (sidecar,) = out.rglob("*_desc-demo_embedding.json")
    content = json.loads(sidecar.read_text())
    content["Model"]["Trained"] = False
    sidecar.write_text(json.dumps(content))
    words = ["participant", "--reports-only", "-w", str(tmp_path / "w")]
    assert main([str(processed / "fmriprep"), str(out), *words]) == 0
    assert "never trained" in (out / "sub-01.html").read_text()


def test_reports_only_needs_neither_model_nor_input(processed, monkeypatch, capfd):
    first = (processed / "out/sub-01.html").read_bytes()
    (processed / "out/sub-01.html").unlink()
    monkeypatch.setattr("neurostorm_bids.participant.load_models", None)
    (processed / "fmriprep").rename(processed / "gone")
    try:
        assert call(processed, "participant", "--reports-only", "--participant-label", "01") == 0
    finally:
        (processed / "gone").rename(processed / "fmriprep")
    assert (processed / "out/sub-01.html").read_bytes() == first
    assert "1 reports: " in capfd.readouterr().out
    assert call(processed, "participant", "--reports-only", "--participant-label", "99") == 66


def test_a_resumed_call_writes_a_lost_report_and_computes_nothing(processed, monkeypatch):
    first = (processed / "out/sub-01.html").read_bytes()
    (processed / "out/sub-01.html").unlink()
    monkeypatch.setattr("neurostorm_bids.process.prepare_run", None)
    words = ("participant", "--model", "demo", "--offline", "--participant-label", "01")
    assert call(processed, *words) == 0
    assert (processed / "out/sub-01.html").read_bytes() == first


def test_a_report_that_cannot_be_written_costs_exit_code_1_and_no_result(processed, capfd):
    page = processed / "out/sub-01.html"
    page.unlink()
    page.mkdir()
    try:
        words = ("participant", "--model", "demo", "--offline", "--participant-label", "01")
        assert call(processed, *words) == 1
        assert "report: " in capfd.readouterr().err
    finally:
        page.rmdir()
        assert call(processed, "participant", "--reports-only") == 0


def test_the_group_level_writes_its_report_and_rebuilds_it(processed, capfd):
    assert call(processed, "group") == 0
    page = processed / "out/group.html"
    first = page.read_bytes()
    assert b"sub-02: no result" in first and b"too few to draw" in first
    page.unlink()
    assert call(processed, "group", "--reports-only") == 0
    assert page.read_bytes() == first
    assert f"group report: {page}" in capfd.readouterr().out


@pytest.mark.parametrize("level", ["participant", "group"])
def test_nobody_elses_folder_gets_a_report(tmp_path, level, capfd):
    (tmp_path / "out/sub-01/log/x").mkdir(parents=True)
    (tmp_path / "out/sub-01/log/x/fmriprep.toml").touch()
    assert call(tmp_path, level, "--reports-only") == 66
    assert "no results are there to report" in capfd.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["sub-01"]


# --- progress ---------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


DONE = Outcome("sub-01_task-rest", "done", 12.0, 7, warnings=("look",))
FAILED = Outcome("sub-02_task-rest", "failed", 1.0, message="sub-02_task-rest: NaN", crash_file="/o/crash.txt")


def test_a_line_a_run_says_when_the_rest_will_be_done():
    line = progress_line(DONE, 1, 3, 60.0, datetime(2026, 1, 1, 12, 0))
    assert line == "[1/3] sub-01_task-rest: 7 clips in 12.0 s; about 2 min left, until 12:02\n    warning: look"
    assert progress_line(FAILED, 3, 3, 60.0) == "[3/3] sub-02_task-rest: FAILED: sub-02_task-rest: NaN"


def test_plain_lines_without_a_terminal_a_bar_with_one_nothing_when_quiet():
    for stream, quiet, has_lines, has_bar in ((io.StringIO(), False, True, False), (Terminal(), False, True, True),
                                              (Terminal(), True, False, False)):  # fmt: skip
        with Progress(2, quiet=quiet, stream=stream) as progress:
            progress.ended(DONE)
            progress.ended(FAILED)
        said = stream.getvalue()
        assert ("[2/2] sub-02_task-rest: FAILED" in said) == has_lines
        assert ("1/2 [" in said) == has_bar
        assert ("\r" in said) == has_bar


def test_the_summary_counts_times_and_says_where_to_look(tmp_path):
    (tmp_path / "sub-01.html").touch()
    skipped = Outcome("sub-03_task-rest", "skipped")
    lines = summary([DONE, FAILED, skipped], [], tmp_path, 14.2, ["sub-01.html: odd"]).splitlines()
    assert lines[0] == f"1 runs done, 1 were there already, 1 failed, 0 rejected. Results: {tmp_path}"
    assert [line.split()[0] for line in lines[2:7]] == ["done", "skipped", "failed", "rejected", "all"]
    assert lines[2].split() == ["done", "1", "12.0", str(tmp_path / "sub-01.html")]
    assert lines[4].split() == ["failed", "1", "1.0", "/o/crash.txt"]
    assert lines[6].split()[:3] == ["all", "3", "14.2"]
    assert lines[-2:] == ["report: sub-01.html: odd", "failed: sub-02_task-rest: NaN (details: /o/crash.txt)"]
