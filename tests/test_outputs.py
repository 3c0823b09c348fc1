"""Results as BIDS derivatives: names, bytes, sidecars, the dataset's own files, and the validator's verdict."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurostorm_bids import __version__
from neurostorm_bids.attribution.summary import Share
from neurostorm_bids.errors import (
    ModelNamesCollide,
    NonFiniteOutput,
    OutputNotWritable,
    OutputWriteFailed,
    TableUnreadable,
)
from neurostorm_bids.inputs.runs import Source
from neurostorm_bids.outputs import (
    ClipRow,
    ModelRecord,
    QualityFigure,
    RunFiles,
    RunRecord,
    TargetRow,
    check_model_names,
    desc_label,
    is_complete,
    name_datasets,
    outputs_complete,
    read_sidecar,
    read_tsv,
    replacing,
    sidecar_of,
    write_bold,
    write_dataset_files,
    write_embedding,
    write_json,
    write_predictions,
    write_quality,
    write_text,
)
from neurostorm_bids.outputs.dataset import (
    check_no_way_out,
    container_tag,
    dataset_description,
    write_bidsignore,
    write_descriptions,
)
from neurostorm_bids.outputs.maps import MapRecord, write_map
from neurostorm_bids.outputs.names import BIDSIGNORE, file_name, parse_entities
from neurostorm_bids.outputs.resume import is_whole
from neurostorm_bids.outputs.sidecars import bids_uri, resolution
from neurostorm_bids.outputs.tables import Column, tsv_text
from neurostorm_bids.outputs.writers import model_description
from neurostorm_bids.space.grid import NEUROSTORM_2MM, Grid

SMALL = Grid.of((4, 5, 6), np.diag([-2, 2, 2, 1]), "MNI152NLin6Asym")
MODEL = ModelRecord(name="demo", hash="f00d", trained=False, resume_key="key-demo", backend="torch")
PREFIX = "sub-01_ses-1_task-rest_run-01_space-MNI152NLin6Asym_res-model"
FUNC = "sub-01/ses-1/func"


@pytest.fixture
def source(tmp_path: Path) -> Source:
    root = tmp_path / "fmriprep"
    root.mkdir()
    description = {"Name": "x", "BIDSVersion": "1.9.0", "GeneratedBy": [{"Name": "fMRIPrep", "Version": "24.1.0"}]}
    (root / "dataset_description.json").write_text(json.dumps(description))
    return Source(root=root, pipeline="fMRIPrep", version="24.1.0")


def run_of(source: Source, **changes) -> RunRecord:
    entities = {"sub": "01", "ses": "1", "task": "rest", "run": "01"}
    bold = source.root / FUNC / "sub-01_ses-1_task-rest_run-01_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
    given = {
        "entities": entities,
        "sources": (bold,),
        "datasets": name_datasets([source]),
        "grid": NEUROSTORM_2MM,
        "resume_key": "key-run",
        "route": "lattice",
        "t_r_s": 2.0,
        "step_s": 0.8,
        "dropped_clips": {"incomplete tail": 1, "motion": 0},
        "temporal_variance_share": 0.0135,
        "warnings": ("no confounds",),
    }
    return RunRecord(**(given | changes))


def clips(n: int) -> list[ClipRow]:
    return [ClipRow(onset_s=16.0 * i, duration_s=16.0, mean_fd_mm=0.1) for i in range(n)]


def check_words(path: Path) -> None:
    """Every column of a table is described, in sentences, and nothing else is called a column."""
    sidecar = read_sidecar(path)
    described = {name: entry for name, entry in sidecar.items() if isinstance(entry, dict) and "Description" in entry}
    assert list(described) == path.read_text().splitlines()[0].split("\t")
    for text in (sidecar["Description"], *(entry["Description"] for entry in described.values())):
        assert re.fullmatch(r"[A-Z0-9].*\.", text) and not text.isupper(), text


def write_all(output_dir: Path, source: Source, model: ModelRecord = MODEL) -> RunRecord:
    run = run_of(source, grid=SMALL)
    write_dataset_files(output_dir, [source], [model])
    write_embedding(output_dir, run, model, clips(2), np.ones((2, 3), np.float32))
    write_predictions(output_dir, run, model, [TargetRow(target="age", kind="regression", value=30.5, n_clips=2)])
    write_quality(output_dir, run, [QualityFigure(name="dice", value=0.9, description="Overlap with the template.")])
    write_bold(output_dir, run, (np.full(SMALL.shape, i, np.float32) for i in range(3)), n_frames=3)
    return run


# --- names ------------------------------------------------------------------------------------------------------


def test_names_follow_the_order_of_bids_and_keep_what_tells_runs_apart(tmp_path: Path):
    entities = {"desc": "preproc", "space": "T1w", "run": "2", "part": "mag", "echo": "1", "dir": "AP", "rec": "x"}
    entities |= {"ce": "c", "acq": "a", "task": "rest", "ses": "b", "sub": "01", "res": "2"}
    files = RunFiles.of(tmp_path, entities, template="MNI152NLin6Asym", model_name="mae ratio-0.5")
    assert files.embedding.relative_to(tmp_path).as_posix() == (
        "sub-01/ses-b/func/sub-01_ses-b_task-rest_acq-a_ce-c_rec-x_dir-AP_run-2_echo-1_part-mag"
        "_space-MNI152NLin6Asym_res-model_desc-maeratio05_embedding.tsv"
    )
    assert files.bold.name.endswith("_res-model_desc-neurostorm_bold.nii.gz")
    assert sidecar_of(files.bold).name.endswith("_res-model_desc-neurostorm_bold.json")
    assert files.quality.name.endswith("_res-model_desc-neurostorm_qc.tsv")


def test_entities_come_back_from_a_name(tmp_path: Path):
    entities = {"sub": "01", "ses": "b", "task": "rest", "run": "2"}
    files = RunFiles.of(tmp_path, entities, template="MNI152NLin6Asym", model_name="mae-0.5")
    own = {"space": "MNI152NLin6Asym", "res": "model", "desc": "mae05"}
    assert parse_entities(files.embedding) == entities | own
    shared = "sub-01_ses-b_task-rest_run-2_space-MNI152NLin6Asym_res-model_desc-neurostorm_report.json"
    assert files.figures.relative_to(tmp_path).as_posix() == f"sub-01/figures/{shared}"


def test_a_run_without_session_lies_in_no_session_folder(tmp_path: Path):
    files = RunFiles.of(tmp_path, {"sub": "01", "task": "rest"}, template="MNI152NLin6Asym", model_name="m")
    assert files.predictions.parent == tmp_path / "sub-01" / "func"


@pytest.mark.parametrize("entities", [{"sub": "0_1"}, {"sub": ""}, {"sub": "01", "atlas": "x"}, {"sub": "../1"}])
def test_a_label_that_would_break_the_file_name_is_refused(entities: dict[str, str]):
    with pytest.raises(ValueError, match="no BIDS entity"):
        file_name(entities, "bold", ".nii.gz")


def test_models_that_would_share_their_files_are_refused():
    check_model_names(["ratio05", "ratio08"])
    with pytest.raises(ModelNamesCollide, match=r"'ratio0\.5' and 'ratio05' give the same file names"):
        check_model_names(["ratio0.5", "ratio05"])
    with pytest.raises(ModelNamesCollide):
        check_model_names(["..."])


# --- atomic writes ----------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "a.tsv"
    write_text(path, "old")
    with pytest.raises(RuntimeError), replacing(path) as handle:
        handle.write(b"half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.tsv"]


def test_a_full_disk_is_said_to_be_one_and_leaves_nothing(tmp_path: Path):
    message = r"b\.tsv: cannot be written \(No space left"
    with pytest.raises(OutputWriteFailed, match=message), replacing(tmp_path / "b.tsv"):
        raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputNotWritable, match="file"):
        write_text(tmp_path / "file" / "x.json", "{}")


def test_the_file_mode_is_that_of_the_umask(tmp_path: Path):
    old = os.umask(0o027)
    try:
        write_text(tmp_path / "a.json", "{}")
    finally:
        os.umask(old)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o640


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path: Path):
    code = (
        "import os, pathlib, signal\nfrom neurostorm_bids.replacing import replacing\n"
        f"with replacing(pathlib.Path({str(tmp_path / 'a.tsv')!r})) as handle:\n"
        "    handle.write(b'half'); handle.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".a.tsv.")
    write_text(tmp_path / "a.tsv", "whole")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.tsv": "whole"}


def test_a_writer_that_is_still_at_work_is_left_alone(tmp_path: Path):
    path = tmp_path / "a.tsv"
    with replacing(path) as slow:
        write_text(path, "fast")
        slow.write(b"slow")
    assert path.read_text() == "slow"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_writer_whose_file_was_taken_for_abandoned_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Between making a file and locking it, another writer may find it unlocked and remove it."""
    locks = iter([lambda: next(tmp_path.iterdir()).unlink(), lambda: None])
    monkeypatch.setattr("neurostorm_bids.replacing.fcntl.flock", lambda *_: next(locks)())
    write_text(tmp_path / "a.tsv", "whole")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.tsv": "whole"}
    assert next(locks, None) is None


# --- tables and sidecars ----------------------------------------------------------------------------------------


@given(st.lists(st.floats(width=32, allow_infinity=False), min_size=1))
def test_float32_survives_the_table(values: list[float]):
    text = tsv_text([Column("x", np.array(values, np.float32), "any")])
    back = [float("nan") if cell == "n/a" else float(cell) for cell in text.splitlines()[1:]]
    np.testing.assert_array_equal(np.array(back, np.float32), np.array(values, np.float32))


def test_cells_are_written_in_one_fixed_way():
    values = [None, np.nan, True, np.bool_(False), 3, np.int64(4), 0.1 + 0.2, -0.0, 16.0, 1e-7, "text"]
    text = tsv_text([Column("x", values, "any")])
    assert text.split() == ["x", "n/a", "n/a", "true", "false", "3", "4", "0.3", "0", "16", "1e-07", "text"]


@pytest.mark.parametrize(
    "columns", [[("a", [1]), ("a", [2])], [("a", [1]), ("b", [])], [("a", ["x\ty"])], [("\n", [1])]]
)
def test_a_table_that_could_not_be_read_back_is_never_written(columns):
    with pytest.raises(ValueError):
        tsv_text([Column(name, values, "any") for name, values in columns])


def test_infinite_values_are_never_written(tmp_path: Path):
    with pytest.raises(NonFiniteOutput, match="column x holds an infinite value"):
        tsv_text([Column("x", [np.inf], "any")])
    with pytest.raises(NonFiniteOutput, match=r"a\.json: a number of the sidecar is not finite"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_the_embedding_table_and_its_sidecar(tmp_path: Path, source: Source):
    embedding = np.random.default_rng(0).standard_normal((3, 288)).astype(np.float32)
    rows = [*clips(2), ClipRow(onset_s=35.2, duration_s=16.0)]
    path = write_embedding(tmp_path / "out", run_of(source), MODEL, rows, embedding)
    table = read_tsv(path)
    sidecar = read_sidecar(path)
    assert list(table[0]) == ["onset", "duration", "mean_fd", *(f"d{i:03d}" for i in range(288))]
    assert [row["onset"] for row in table] == ["0", "16", "35.2"]
    assert table[2]["mean_fd"] is None
    np.testing.assert_array_equal(np.float32([[row[f"d{i:03d}"] for i in range(288)] for row in table]), embedding)
    assert all("Description" in sidecar[name] for name in table[0])
    assert [sidecar[name]["Units"] for name in ("onset", "duration", "mean_fd")] == ["s", "s", "mm"]
    assert sidecar["Sources"] == [
        f"bids:fmriprep:{FUNC}/sub-01_ses-1_task-rest_run-01_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
    ]
    assert "NOT trained" in sidecar["Description"]
    assert sidecar["Model"]["Trained"] is False and sidecar["Model"]["Backend"] == "torch"
    assert sidecar["Grid"]["Shape"] == [96, 96, 96]
    assert sidecar["Resolution"] == "Grid of the model: 2 mm isotropic, 96x96x96 voxels, origin (96, -114, -78)"
    assert sidecar["Timing"] == {"InputRepetitionTime": 2, "EffectiveStep": 0.8}
    assert sidecar["Clips"] == {"Dropped": {"incomplete tail": 1}}
    assert sidecar["TemporalVarianceShare"] == 0.0135
    assert sidecar["Warnings"] == ["no confounds"]
    assert sidecar["ResumeKey"] == "key-demo"
    assert sidecar["Software"]["neurostorm-bids"]
    check_words(path)


def test_a_sidecar_says_all_that_is_known_of_a_run(tmp_path: Path, source: Source):
    run = run_of(
        source, grid=SMALL, input_pipeline="fMRIPrep", input_version="24.1.0", input_denoising="none", n_frames=50,
        input_space="T1w", steps=("by affine",), approximate=False, interpolation="linear", preprocessing="package",
        first_frame_s=4.0, n_volumes=20, dummy_scans=2, clip_frames=20, clip_stride=10, n_clips=3, dropped_frames=0,
        normalisation={"Mean": 500.0}, settings_hash="beef", extra={"Motion": {"MeanFd": 0.1}},
    )  # fmt: skip
    model = replace(
        MODEL, trained=True, device="cpu", precision="float32", batch_size=2, threads=1, provenance={"t_r_s": "stated"},
        license="CC0", extra={"Ensemble": 2},
    )  # fmt: skip
    path = write_embedding(tmp_path / "out", run, model, clips(1), np.ones((1, 1)), what="after the last stage")
    sidecar = read_sidecar(path)
    assert sidecar.pop("Software") and sidecar.pop("Sources") and sidecar.pop("DataSha256")
    for column in ("onset", "duration", "mean_fd", "d000"):
        sidecar.pop(column)
    assert sidecar == {
        "Description": "Embedding of each clip of the run by the model demo, after the last stage.",
        "Resolution": "Grid of the model: 2 mm isotropic, 4x5x6 voxels, origin (0, 0, 0)",
        "SpatialReference": "bids:templateflow:tpl-MNI152NLin6Asym",
        "InputPipeline": {"Name": "fMRIPrep", "Version": "24.1.0", "Denoising": "none"},
        "Route": {
            "Kind": "lattice", "InputSpace": "T1w", "Steps": ["by affine"], "Interpolation": "linear",
            "Approximate": False,
        },
        "Grid": {"Template": "MNI152NLin6Asym", "Shape": [4, 5, 6], "Affine": SMALL.matrix.tolist()},
        "Timing": {
            "InputRepetitionTime": 2, "EffectiveStep": 0.8, "FirstFrame": 4, "InputVolumes": 20, "DummyScans": 2,
            "Frames": 50, "Preprocessing": "package",
        },
        "Clips": {
            "Used": 3, "Dropped": {"incomplete tail": 1}, "DroppedFrames": 0, "FramesPerClip": 20, "StrideInFrames": 10,
        },
        "Normalisation": {"Mean": 500},
        "TemporalVarianceShare": 0.0135,
        "Warnings": ["no confounds"],
        "SettingsHash": "beef",
        "Motion": {"MeanFd": 0.1},
        "Model": {
            "Name": "demo", "Hash": "f00d", "Trained": True, "Backend": "torch", "Device": "cpu",
            "Precision": "float32", "BatchSize": 2, "Threads": 1, "InputProvenance": {"t_r_s": "stated"},
            "License": "CC0", "Ensemble": 2,
        },
        "ResumeKey": "key-demo",
    }  # fmt: skip


def test_a_trained_model_is_not_called_untrained(tmp_path: Path, source: Source):
    model = replace(MODEL, trained=True)
    path = write_embedding(tmp_path / "out", run_of(source), model, clips(1), np.ones((1, 2)))
    assert "NOT trained" not in sidecar_of(path).read_text()


def test_the_predictions_table_says_units_classes_and_what_clip_sd_is_not(tmp_path: Path, source: Source):
    targets = [
        TargetRow(target="age", kind="regression", value=31.25, unit="year", clip_sd=2.5, n_clips=9),
        TargetRow(target="g", kind="regression", value=-0.5, standard_units=True, n_clips=9, in_distribution=False),
        TargetRow(
            target="sex", kind="classification", value="female", n_clips=9, probabilities={"male": 0.25, "female": 0.75}
        ),
    ]
    path = write_predictions(tmp_path / "out", run_of(source), MODEL, targets)
    age, g, sex = read_tsv(path)
    assert age == {
        "target": "age", "kind": "regression", "value": "31.25", "unit": "year", "clip_sd": "2.5",
        "n_clips": "9", "in_distribution": None, "p_male": None, "p_female": None,
    }  # fmt: skip
    assert (g["unit"], g["in_distribution"]) == ("training SD", "false")
    assert (sex["value"], sex["p_male"], sex["p_female"]) == ("female", "0.25", "0.75")
    sidecar = read_sidecar(path)
    assert "not an interval" in sidecar["clip_sd"]["Description"]
    assert set(sidecar["kind"]["Levels"]) == {"regression", "classification"}
    check_words(path)


def test_intervals_of_predictions_have_ends(tmp_path: Path, source: Source):
    targets = [
        TargetRow(target="age", kind="regression", value=30.5, unit="year", n_clips=2, interval=(20.5, 40.25)),
        TargetRow(target="g", kind="regression", value=0.5, n_clips=2),
    ]
    path = write_predictions(tmp_path / "out", run_of(source), MODEL, targets)
    ends = [(row["interval_low"], row["interval_high"]) for row in read_tsv(path)]
    assert ends == [("20.5", "40.25"), (None, None)]
    for name, word in (("interval_low", "Lower"), ("interval_high", "Upper")):
        assert read_sidecar(path)[name]["Description"].startswith(f"{word} end of the 95 % prediction interval")
    check_words(path)


def test_quality_figures_have_their_units(tmp_path: Path, source: Source):
    figures = [
        QualityFigure(name="dice", value=0.9, description="Overlap with the template."),
        QualityFigure(name="centroid_offset", value=None, description="Distance of the centroids.", unit="mm"),
    ]
    path = write_quality(tmp_path / "out", run_of(source), figures)
    assert read_tsv(path) == [{"dice": "0.9", "centroid_offset": None}]
    sidecar = read_sidecar(path)
    assert sidecar["centroid_offset"] == {"Description": "Distance of the centroids.", "Units": "mm"}
    assert "Units" not in sidecar["dice"] and "Model" not in sidecar
    assert sidecar["ResumeKey"] == "key-run"
    check_words(path)


def test_the_normalised_run_is_a_valid_image_with_equal_bytes_each_time(tmp_path: Path, source: Source):
    run = run_of(source, grid=SMALL, first_frame_s=4.0)
    data = np.random.default_rng(0).standard_normal((3, *SMALL.shape)).astype(np.float32)
    one = write_bold(tmp_path / "one", run, iter(data), n_frames=3)
    time.sleep(1.1)  # a second is the resolution of gzip's time stamp
    two = write_bold(tmp_path / "two", run, iter(data.astype(np.float64)), n_frames=3)
    assert one.read_bytes() == two.read_bytes()
    image = nib.load(one)
    np.testing.assert_array_equal(np.moveaxis(np.asanyarray(image.dataobj), -1, 0), data)
    np.testing.assert_array_equal(image.affine, SMALL.matrix)
    assert image.header.get_zooms() == pytest.approx((2, 2, 2, 0.8))
    assert image.header.get_xyzt_units() == ("mm", "sec")
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (4, 4)
    assert gzip.decompress(one.read_bytes())[344:348] == b"n+1\0"
    sidecar = read_sidecar(one)
    expected = {"TaskName": "rest", "RepetitionTime": 0.8, "StartTime": 4, "SkullStripped": True, "Units": "arbitrary"}
    assert expected.items() <= sidecar.items()
    assert sidecar["Description"] == (
        "The run as the model sees it: on the model grid, at the effective step, normalised, background flat."
    )
    assert sidecar["SpatialReference"] == "bids:templateflow:tpl-MNI152NLin6Asym"


@pytest.mark.parametrize(
    ("volumes", "error", "message"),
    [
        ([np.zeros(SMALL.shape)], OutputWriteFailed, "1 volumes came, 2 were announced"),
        ([np.zeros((4, 5, 7))] * 2, OutputWriteFailed, r"shape \(4, 5, 7\)\. expected \(4, 5, 6\)"),
        ([np.full(SMALL.shape, np.nan)] * 2, NonFiniteOutput, "NaN or infinity"),
    ],
)
def test_a_wrong_volume_stops_the_image_and_leaves_nothing(tmp_path: Path, source: Source, volumes, error, message):
    with pytest.raises(error, match=message):
        write_bold(tmp_path / "out", run_of(source, grid=SMALL), volumes, n_frames=2)
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]


def test_embedding_and_clips_must_be_as_many(tmp_path: Path, source: Source):
    with pytest.raises(ValueError, match="2 clips, 3 rows"):
        write_embedding(tmp_path / "out", run_of(source), MODEL, clips(2), np.ones((3, 4)))


def test_sources_become_bids_uris_of_the_innermost_dataset(tmp_path: Path):
    raw, derived = tmp_path / "raw", tmp_path / "raw" / "derivatives" / "fmriprep"
    datasets = {"raw": raw, "fmriprep": derived}
    assert bids_uri(derived / "sub-01" / "a b.nii", datasets) == "bids:fmriprep:sub-01/a%20b.nii"
    assert bids_uri(raw / "sub-01" / "x.tsv", datasets) == "bids:raw:sub-01/x.tsv"
    cached = Path("/cache/tpl-MNI152NLin6Asym_from-MNI152NLin2009cAsym_mode-image_xfm.h5")
    assert bids_uri(cached, datasets) == f"bids:templateflow:tpl-MNI152NLin6Asym/{cached.name}"
    assert bids_uri(Path("/elsewhere/x.h5"), datasets) == "x.h5"


# --- resume -----------------------------------------------------------------------------------------------------


def test_a_result_is_complete_with_its_key_and_whole_file_only(tmp_path: Path, source: Source):
    path = write_embedding(tmp_path / "out", run_of(source), MODEL, clips(1), np.ones((1, 2)))
    assert is_complete(path, "key-demo")
    assert not is_complete(path, "another key")
    assert outputs_complete([path], "key-demo") and not outputs_complete([path, tmp_path / "no.tsv"], "key-demo")
    text = path.read_text()
    path.write_text(text[:-5])
    assert not is_complete(path, "key-demo")
    path.write_text(text)
    for broken in ("", "[1]", "{"):
        sidecar_of(path).write_text(broken)
        assert not is_complete(path, "key-demo")
    sidecar_of(path).unlink()
    assert not is_complete(path, "key-demo")


def test_data_that_outlived_a_kill_before_its_sidecar_is_incomplete(tmp_path: Path, source: Source):
    run = run_of(source)
    path = write_embedding(tmp_path / "out", run, MODEL, clips(1), np.ones((1, 2)))
    old = sidecar_of(path).read_text()
    write_embedding(tmp_path / "out", run, replace(MODEL, resume_key="new"), clips(1), np.zeros((1, 2)))
    sidecar_of(path).write_text(old)  # as after a kill between the new table and its sidecar
    assert not is_complete(path, "key-demo") and not is_complete(path, "new")


# --- the dataset ------------------------------------------------------------------------------------------------


def test_dataset_description_names_this_app_first_then_the_input(tmp_path: Path, source: Source, monkeypatch):
    monkeypatch.setenv("NEUROSTORM_CONTAINER", "neurostorm:1.0")
    monkeypatch.delenv("APPTAINER_NAME", raising=False)
    monkeypatch.delenv("SINGULARITY_NAME", raising=False)
    stated = {"Name": "fMRIPrep", "Version": "24.1.0", "CodeURL": "https://example.org"}
    (source.root / "dataset_description.json").write_text(json.dumps({"GeneratedBy": [stated, {"Version": "0"}]}))
    content = dataset_description(tmp_path / "out", [source, source])
    assert content.pop("BIDSVersion").count(".") == 2
    assert content["DatasetLinks"].pop("templateflow").startswith("https://")
    assert content == {
        "Name": "NeuroSTORM embeddings and predictions",
        "DatasetType": "derivative",
        "GeneratedBy": [
            {"Name": "neurostorm", "Version": __version__, "Container": {"Type": "docker", "Tag": "neurostorm:1.0"}},
            stated,
        ],
        "SourceDatasets": [{"URL": "../fmriprep"}],
        "DatasetLinks": {"fmriprep": "../fmriprep"},
    }


def test_old_and_broken_descriptions_of_the_input_still_name_its_pipeline(tmp_path: Path, source: Source):
    path = source.root / "dataset_description.json"
    path.write_text(json.dumps({"PipelineDescription": {"Name": "fMRIPrep", "Version": "1.5.10"}}))
    assert dataset_description(tmp_path, [source])["GeneratedBy"][1] == {"Name": "fMRIPrep", "Version": "1.5.10"}
    for broken in ("", "[]", "{}"):
        path.write_text(broken)
        assert dataset_description(tmp_path, [source])["GeneratedBy"][1] == {"Name": "fMRIPrep", "Version": "24.1.0"}


def test_inputs_are_named_by_their_pipelines(tmp_path: Path):
    a, b, c = (
        Source(root=tmp_path / name, pipeline=pipeline)
        for name, pipeline in zip("abc", ("HCP 1.0", "fMRIPrep", "%"), strict=True)
    )
    assert name_datasets([c, b, a]) == {"hcp10": a.root, "fmriprep": b.root, "input": c.root}


def test_the_grid_is_told_in_words():
    grid = Grid.of((4, 5, 6), [[-2, 0, 0, 9], [0, 3, 0, -7.5], [0, 0, 4, 0], [0, 0, 0, 1]], "MNI152NLin6Asym")
    assert resolution(grid) == "Grid of the model: 2 x 3 x 4 mm, 4x5x6 voxels, origin (9, -7.5, 0)"


def test_a_sidecar_that_cannot_be_read_is_named_with_its_remedy(tmp_path: Path):
    for content, fault in (
        (None, "cannot be read as JSON"),
        ("{", "cannot be read as JSON"),
        ("[]", "holds no JSON object"),
    ):
        if content is not None:
            (tmp_path / "t.json").write_text(content)
        with pytest.raises(TableUnreadable, match=fault) as caught:
            read_sidecar(tmp_path / "t.tsv")
        assert caught.value.file == tmp_path / "t.json" and "participant level again" in caught.value.remedy


def test_two_inputs_of_one_pipeline_get_distinct_names_in_a_fixed_order(tmp_path: Path):
    a, b = (Source(root=tmp_path / name, pipeline="fMRIPrep") for name in ("a", "b"))
    assert name_datasets([b, a]) == name_datasets([a, b, a]) == {"fmriprep": a.root, "fmriprep-2": b.root}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"NEUROSTORM_CONTAINER": "x:1"}, {"Type": "docker", "Tag": "x:1"}),
        ({"SINGULARITY_NAME": "x.sif"}, {"Type": "apptainer", "Tag": "x.sif"}),
        ({"APPTAINER_NAME": "/a/x.sif", "NEUROSTORM_CONTAINER": "x:1"}, {"Type": "apptainer", "Tag": "x:1"}),
    ],
)
def test_the_container_is_told_from_the_environment(environment, expected):
    assert container_tag(environment) == expected


@pytest.mark.parametrize("content", ['{"GeneratedBy": [{"Name": "fMRIPrep"}]}', '{"GeneratedBy": ["x"]}', "", "[]"])
def test_the_folder_of_another_program_is_never_taken_over(tmp_path: Path, source: Source, content: str):
    (tmp_path / "dataset_description.json").write_text(content)
    with pytest.raises(OutputNotWritable, match="the output folder is a dataset of"):
        write_dataset_files(tmp_path, [source], [MODEL])
    assert (tmp_path / "dataset_description.json").read_text() == content
    assert not (tmp_path / ".bidsignore").exists()


def test_group_tables_are_ignored_while_sessions_are_rows(tmp_path: Path):
    path = tmp_path / ".bidsignore"
    path.write_text("mine\n")
    for rows, ignored in ((None, False), (True, True), (True, True), (None, True), (False, False)):
        write_bidsignore(tmp_path, sessions_as_rows=rows)
        assert path.read_text().splitlines() == [*BIDSIGNORE, "mine", *["phenotype/neurostorm_*"] * ignored]


@pytest.mark.parametrize(("trained", "told"), [(True, False), (False, True)])
def test_untrained_models_are_described_as_such(trained: bool, told: bool):
    text = model_description(replace(MODEL, trained=trained))
    assert "model demo, hash f00d." in text and ("NOT trained" in text) == told


def test_a_second_call_changes_nothing_and_keeps_what_users_added(tmp_path: Path, source: Source):
    out = tmp_path / "out"
    write_dataset_files(out, [source], [MODEL])
    (out / "README.md").write_text("ours now")
    with (out / ".bidsignore").open("a") as handle:
        handle.write("my_notes.txt\n")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    write_dataset_files(out, [source], [MODEL])
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def _describe(output_dir: Path, label: str) -> None:
    write_descriptions(output_dir, {label: f"model {label}"})


def test_models_that_write_at_once_are_all_described(tmp_path: Path):
    labels = [f"m{i}" for i in range(8)]
    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as pool:
        pool.starmap(_describe, [(tmp_path, label) for label in labels], chunksize=1)
    rows = read_tsv(tmp_path / "descriptions.tsv")
    assert [row["desc_id"] for row in rows] == [*(f"desc-{label}" for label in labels), "desc-neurostorm"]


def test_a_model_called_as_the_app_keeps_one_row(tmp_path: Path):
    about = "Quality figures and normalised run on the model grid, whatever the model."
    write_descriptions(tmp_path, {})
    assert read_tsv(tmp_path / "descriptions.tsv") == [{"desc_id": "desc-neurostorm", "description": about}]
    write_descriptions(tmp_path, {"neurostorm": "The published model."})
    (row,) = read_tsv(tmp_path / "descriptions.tsv")
    assert row == {"desc_id": "desc-neurostorm", "description": f"{about} The published model."}


@pytest.mark.parametrize("content", [b"", b"a\tb\n1\n", b"\xff\xfe\x00"])
def test_a_broken_table_is_named_with_its_remedy(tmp_path: Path, content: bytes):
    (tmp_path / "t.tsv").write_bytes(content)
    with pytest.raises(TableUnreadable, match=r"t\.tsv.*run the participant level again"):
        read_tsv(tmp_path / "t.tsv")


# --- maps -------------------------------------------------------------------------------------------------------


def test_a_map_its_table_and_their_sidecars(tmp_path: Path):
    record = MapRecord(
        entities={"sub": "01", "task": "rest"}, desc="ageAttribution", grid=SMALL, model=MODEL,
        description="What age rests on.", unit="year", sources=("bids:x:bold.nii.gz",),
        attribution={"Method": "occlusion"}, resume_key="key-map", warnings=("few clips",),
    )  # fmt: skip
    values = np.arange(np.prod(SMALL.shape), dtype=float).reshape(SMALL.shape)
    rows = [
        Share("network", "Vis", None, 40, (1.0, -2.0, 3.0), -0.5, 0.25, 0.5),
        Share("parcel", "Vis_1", "Vis", 20, (4.0, 5.0, 6.0), 1.5, 0.75, 0.25),
    ]
    image, table = write_map(tmp_path, record, values, rows)
    start = "sub-01/func/sub-01_task-rest_space-MNI152NLin6Asym_res-model_desc-ageAttribution"
    assert [path.relative_to(tmp_path).as_posix() for path in (image, table)] == [
        f"{start}_boldmap.nii.gz", f"{start}_attribution.tsv",
    ]  # fmt: skip
    written = nib.load(image)
    assert written.get_data_dtype() == np.float32 and np.array_equal(written.affine, SMALL.affine)
    np.testing.assert_array_equal(np.squeeze(written.get_fdata()), values)
    assert table.read_text().splitlines() == [
        "level\tname\tnetwork\tn_voxels\tx\ty\tz\tattribution\tmass\tvolume\tenrichment",
        "network\tVis\tn/a\t40\t1\t-2\t3\t-0.5\t0.25\t0.5\t0.5",
        "parcel\tVis_1\tVis\t20\t4\t5\t6\t1.5\t0.75\t0.25\t3",
    ]
    of_image, of_table = read_sidecar(image), read_sidecar(table)
    assert (of_image["Description"], of_table["Description"]) == (
        "What age rests on.", "What age rests on. By network and parcel.",
    )  # fmt: skip
    assert (of_image["Units"], of_image["SkullStripped"]) == ("year", True) and "level" not in of_image
    assert "Units" not in of_table and of_table["attribution"]["Units"] == "year"
    assert [of_table[axis]["Units"] for axis in "xyz"] == ["mm"] * 3
    check_words(table)
    assert set(of_table["level"]["Levels"]) == {"network", "parcel", "rest"}
    for sidecar in (of_image, of_table):
        assert sidecar["Sources"] == ["bids:x:bold.nii.gz"] and sidecar["Warnings"] == ["few clips"]
        assert sidecar["Attribution"] == {"Method": "occlusion"} and sidecar["SpatialReference"]
        assert sidecar["Resolution"] and sidecar["Software"] and sidecar["Model"]
    assert is_complete(image, "key-map") and is_complete(table, "key-map") and is_whole(table)
    assert not is_complete(image, "another key")
    table.write_text("changed")
    assert not is_whole(table)


# --- links ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["sub-01", "sub-01/ses-1", "sub-01/ses-1/func", "logs", "logs/a/b/c"])
def test_a_link_that_leads_a_folder_of_ours_out_is_refused(tmp_path: Path, place: str):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (out / place).parent.mkdir(parents=True)
    (out / place).symlink_to(elsewhere)
    with pytest.raises(OutputNotWritable, match="a link that leads out of the output folder") as caught:
        check_no_way_out(out, ["01"])
    assert caught.value.file == out / place
    assert "OUTPUT_DIR" in caught.value.remedy
    check_no_way_out(elsewhere, ["01"])


def test_links_within_the_output_and_of_files_and_of_other_participants_are_let_be(tmp_path: Path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (out / "sub-02").mkdir(parents=True)
    (out / "sub-01").symlink_to(out / "sub-02")
    (out / "sub-03").symlink_to(elsewhere)
    (out / ".git").symlink_to(elsewhere)
    (elsewhere / "x").touch()
    (out / "README.md").symlink_to(elsewhere / "x")
    check_no_way_out(out, ["01", "02"])
    with pytest.raises(OutputNotWritable):
        check_no_way_out(out, ["03"])


# --- the whole tree and the validator ---------------------------------------------------------------------------

TREE = [
    ".bidsignore",
    "README.md",
    "dataset_description.json",
    "descriptions.tsv",
    "logs/CITATION.bib",
    "logs/CITATION.md",
    "logs/descriptions/demo.tsv",
    f"{FUNC}/{PREFIX}_desc-demo_embedding.json",
    f"{FUNC}/{PREFIX}_desc-demo_embedding.tsv",
    f"{FUNC}/{PREFIX}_desc-demo_predictions.json",
    f"{FUNC}/{PREFIX}_desc-demo_predictions.tsv",
    f"{FUNC}/{PREFIX}_desc-neurostorm_bold.json",
    f"{FUNC}/{PREFIX}_desc-neurostorm_bold.nii.gz",
    f"{FUNC}/{PREFIX}_desc-neurostorm_qc.json",
    f"{FUNC}/{PREFIX}_desc-neurostorm_qc.tsv",
]


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def validate(folder: Path) -> tuple[list[str], int]:
    """Errors of bids-validator-deno ("CODE location"), and how many files it looked at."""
    program = shutil.which("bids-validator-deno", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert program, "bids-validator-deno is a dependency of this package"
    done = subprocess.run([program, "--format", "json", str(folder)], capture_output=True, text=True, check=False)
    report = json.loads(done.stdout)
    issues = [issue for issue in report["issues"]["issues"] if issue["severity"] == "error"]
    return [f"{issue['code']} {issue['location']}" for issue in issues], report["summary"]["totalFiles"]


def add_reports_and_logs(out: Path) -> None:
    map_files = [f"{FUNC}/{PREFIX}_desc-age_{name}" for name in ("attribution.tsv", "attribution.json",
                                                                 "boldmap.nii.gz", "boldmap.json")]  # fmt: skip
    reports = ["sub-01/log/x/neurostorm.toml", "sub-01/figures/sub-01_mean.webp", "sub-01.html", "group.html"]
    for name in (*reports, *map_files):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("x")


def test_the_whole_output_is_as_listed_and_valid(tmp_path: Path, source: Source):
    out = tmp_path / "out"
    write_all(out, source)
    assert tree(out) == TREE
    add_reports_and_logs(out)
    errors, seen = validate(out)
    assert errors == []
    # dataset_description.json, README.md, descriptions.tsv, the image, its sidecar, and logs/ as one
    assert seen == 6
    assert (
        (out / ".bidsignore").read_text().split()
        == list(BIDSIGNORE)
        == [
            "figures",
            "group.html",
            "log",
            "sub-*.html",
            "sub-*_attribution.json",
            "sub-*_attribution.tsv",
            "sub-*_boldmap.json",
            "sub-*_boldmap.nii.gz",
            "sub-*_embedding.json",
            "sub-*_embedding.tsv",
            "sub-*_predictions.json",
            "sub-*_predictions.tsv",
            "sub-*_qc.json",
            "sub-*_qc.tsv",
        ]
    )


@pytest.mark.parametrize("pattern", BIDSIGNORE)
def test_every_ignored_pattern_is_needed(tmp_path: Path, source: Source, pattern: str):
    out = tmp_path / "out"
    write_all(out, source)
    add_reports_and_logs(out)
    (out / ".bidsignore").write_text("\n".join(line for line in BIDSIGNORE if line != pattern))
    errors, _ = validate(out)
    assert any(error.startswith("NOT_INCLUDED") for error in errors)


def test_two_runs_of_the_writers_give_equal_bytes(tmp_path: Path, source: Source):
    for name in ("one", "two"):
        write_all(tmp_path / name, source)
    one, two = (
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()}
        for n in ("one", "two")
    )
    assert one == two


def test_labels_keep_letters_and_digits():
    assert desc_label("pt_neurostorm-mae ratio0.5") == "ptneurostormmaeratio05"
