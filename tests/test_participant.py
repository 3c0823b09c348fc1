"""The participant level as a user meets it: the whole tree, exit codes, messages, resume, equal bytes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from fmriprep_tree import AFFINE, SHAPE, bold_data, write_dataset, write_run

from neurostorm_bids.cli import main
from neurostorm_bids.outputs import read_tsv

RUN = "task-rest_space-MNI152NLin6Asym_res-model_desc"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    root = write_dataset(tmp_path / "fmriprep")
    write_run(root, "sub-01_ses-a_task-rest_run-1", seed=1)
    write_run(root, "sub-01_ses-b_task-rest_run-1", seed=2)
    write_run(root, "sub-02_task-rest", seed=3)
    return root


def call(dataset: Path, *extra: str, output: str = "out", plugin: str = "Linear") -> int:
    """The command line in this process; nodes run here too unless the plugin says otherwise."""
    folder = dataset.parent
    plugin_file = folder / f"{plugin}.yml"
    plugin_file.write_text(f"plugin: {plugin}\n")
    return main(
        [str(dataset), str(folder / output), "participant", "-w", str(folder / "work"), "--use-plugin",
         str(plugin_file), "--model", "demo", "--offline", *extra]
    )  # fmt: skip


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in tree(folder) if "/log/" not in name}


def run_files(prefix: str) -> list[str]:
    labels = ("demo_embedding", "neurostorm_qc")
    folder, name = prefix.split("/")[0], prefix.split("/")[-1]
    figures = f"{folder}/figures/{name}_space-MNI152NLin6Asym_res-model_desc-neurostorm"
    return [
        *(
            f"{prefix}_space-MNI152NLin6Asym_res-model_desc-{label}.{ext}"
            for label in labels
            for ext in ("json", "tsv")
        ),
        *(f"{figures}_{name}" for name in ("carpet.webp", "mean.webp", "report.json", "template.webp")),
    ]


EXPECTED = sorted(
    [
        ".bidsignore",
        "README.md",
        "dataset_description.json",
        "descriptions.tsv",
        "logs/CITATION.bib",
        "logs/CITATION.md",
        "logs/descriptions/demo.tsv",
        "sub-01.html",
        "sub-02.html",
        *run_files("sub-01/ses-a/func/sub-01_ses-a_task-rest_run-1"),
        *run_files("sub-01/ses-b/func/sub-01_ses-b_task-rest_run-1"),
        *run_files("sub-02/func/sub-02_task-rest"),
    ]
)


def test_the_whole_tree_and_nothing_else(dataset, capfd):
    before = contents(dataset)
    assert call(dataset) == 0
    made = tree(dataset.parent / "out")
    assert [name for name in made if "/log/" not in name] == EXPECTED
    logs = [re.sub(r"/log/[^/]+/", "/log/CALL/", name) for name in made if "/log/" in name]
    assert logs == ["sub-01/log/CALL/neurostorm.toml", "sub-02/log/CALL/neurostorm.toml"]
    assert contents(dataset) == before
    assert "3 runs done, 0 were there already, 0 failed, 0 rejected" in capfd.readouterr().out


def test_clips_and_their_times(dataset):
    assert call(dataset, "--participant-label", "02", "--dummy-scans", "2", "--clip-stride", "10") == 0
    rows = read_tsv(dataset.parent / f"out/sub-02/func/sub-02_{RUN}-demo_embedding.tsv")
    # 18 volumes of 2 s are 45 frames of 0.8 s: clips at frames 0, 10, 20, after 2 dummies of 2 s
    assert [float(row["onset"]) for row in rows] == pytest.approx([4, 12, 20])
    assert [float(row["duration"]) for row in rows] == pytest.approx([16] * 3)
    assert np.isfinite([float(value) for row in rows for key, value in row.items() if key.startswith("d0")]).all()


def test_a_second_call_computes_nothing(dataset, capfd):
    assert call(dataset) == 0
    stamps = {path: path.stat().st_mtime_ns for path in (dataset.parent / "out").rglob("*_embedding.*")}
    capfd.readouterr()
    assert call(dataset) == 0
    assert "0 runs done, 3 were there already" in capfd.readouterr().out
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}


def test_another_setting_or_input_is_computed_again(dataset, capfd):
    assert call(dataset) == 0
    write_run(dataset, "sub-02_task-rest", seed=4)
    capfd.readouterr()
    assert call(dataset) == 0
    assert "1 runs done, 2 were there already" in capfd.readouterr().out
    assert call(dataset, "--clip-stride", "10") == 0
    assert "3 runs done, 0 were there already" in capfd.readouterr().out


def test_tables_made_with_other_settings_are_not_pooled_in_silence(dataset, capfd):
    assert call(dataset, "--participant-label", "01") == 0
    assert call(dataset, "--participant-label", "02", "--clip-stride", "10") == 0
    capfd.readouterr()
    assert main([str(dataset), str(dataset.parent / "out"), "group", "-w", str(dataset.parent / "work")]) == 0
    assert "settings" in capfd.readouterr().err


def test_a_damaged_result_is_computed_again(dataset, capfd):
    assert call(dataset) == 0
    table = dataset.parent / f"out/sub-02/func/sub-02_{RUN}-demo_embedding.tsv"
    whole = table.read_bytes()
    table.write_bytes(whole[:200])
    assert call(dataset) == 0
    assert table.read_bytes() == whole


def test_a_bad_run_is_named_and_the_others_are_there(dataset, capfd):
    data = bold_data(5)
    data[10, 12, 10, 7] = np.nan
    bad = write_run(dataset, "sub-03_task-rest", data=data)
    assert call(dataset) == 1
    out, err = capfd.readouterr()
    last = err.strip().splitlines()[-1]
    assert last.startswith("failed: ")
    assert str(bad) in last
    assert "NaN or infinite" in last
    (crash,) = (dataset.parent / "out/sub-03").rglob("crash-sub-03_task-rest.txt")
    assert str(crash) in last
    assert "Traceback" in crash.read_text()
    assert set(EXPECTED) <= set(tree(dataset.parent / "out"))
    assert "Traceback" not in out + err


def test_nothing_but_bad_runs_is_65(tmp_path, capfd):
    root = write_dataset(tmp_path / "fmriprep")
    write_run(root, "sub-01_task-rest", n_volumes=5)
    assert call(root) == 65
    assert "5 volumes at TR 2 s are 10 s" in capfd.readouterr().err


def test_an_unforeseen_fault_is_contained(dataset, capfd, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr("neurostorm_bids.prepare.read_motion", broken)
    assert call(dataset) == 65
    err = capfd.readouterr().err
    assert "sub-02_task-rest: an unforeseen ZeroDivisionError: of all things. Please report it" in err
    assert "Traceback" not in err


def test_a_missing_dataset_is_66(tmp_path, capfd):
    assert call(tmp_path / "nowhere") == 66
    assert str(tmp_path / "nowhere") in capfd.readouterr().err


def test_without_a_model_the_options_are_told(dataset, capfd, monkeypatch):
    monkeypatch.delenv("NEUROSTORM_MODELS", raising=False)
    code = main([str(dataset), str(dataset.parent / "out"), "participant", "-w", str(dataset.parent / "work")])
    assert code == 66
    err = capfd.readouterr().err
    assert "no model was named and none is installed" in err
    assert "neurostorm-models list" in err
    assert not (dataset.parent / "out").exists()


def test_an_output_that_cannot_be_made_is_73(dataset, capfd):
    (dataset.parent / "out").write_text("a file")
    assert call(dataset) == 73
    assert str(dataset.parent / "out") in capfd.readouterr().err


def test_the_methods_text_alone_needs_no_data(tmp_path, capfd):
    assert call(tmp_path / "nowhere", "--boilerplate-only") == 0
    assert "NeuroSTORM" in capfd.readouterr().out
    assert not (tmp_path / "out").exists()


def test_confounds_are_regressed_out_on_request_and_said_so(dataset, capfd):
    assert call(dataset, "--participant-label", "02", "--denoise", "24P") == 65
    err = capfd.readouterr().err
    assert "desc-confounds_timeseries.tsv" in err
    generator = np.random.default_rng(0)
    table = dataset / "sub-02/func/sub-02_task-rest_desc-confounds_timeseries.tsv"
    moves = ["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z"]
    kinds = ["", "_derivative1", "_power2", "_derivative1_power2"]
    names = [move + kind for move in moves for kind in kinds]
    write_run(dataset, "sub-02_task-rest", seed=3, n_volumes=80)
    rows = ["\t".join(["framewise_displacement", *names])]
    for number in range(80):
        values = generator.standard_normal(24)
        rows.append("\t".join(["0.1" if number else "n/a", *(f"{x:.4f}" for x in values)]))
    table.write_text("\n".join(rows) + "\n")
    assert call(dataset, "--participant-label", "02", "--denoise", "24P") == 0
    sidecar = json.loads((dataset.parent / f"out/sub-02/func/sub-02_{RUN}-demo_embedding.json").read_text())
    assert sidecar["InputPipeline"]["Denoising"] == "24P"


def test_a_dry_run_lists_everything_and_writes_no_result(dataset, capfd):
    write_run(dataset, "sub-03_task-rest", n_volumes=5)
    assert call(dataset, "--dry-run") == 0
    out = capfd.readouterr().out
    assert "sub-01_ses-a_task-rest_run-1: 2 clips, route affine" in out
    assert "sub-03_task-rest: would fail: " in out
    assert re.search(r"4 runs, 6 clips, 1 model\(s\).*About \d+ s .* \d+ MB of memory, .* MB of disk", out)
    assert not (dataset.parent / "out").exists()


def test_the_number_of_workers_changes_no_byte(dataset):
    assert call(dataset, output="one") == 0
    command = [sys.executable, "-m", "neurostorm_bids", str(dataset), str(dataset.parent / "two"), "participant",
               "-w", str(dataset.parent / "work2"), "--model", "demo", "--nprocs", "2",
               "--omp-nthreads", "1"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    one, two = contents(dataset.parent / "one"), contents(dataset.parent / "two")
    assert sorted(one) == sorted(two)
    tables = [name for name in one if name.endswith(".tsv")]
    assert [name for name in tables if one[name] != two[name]] == []


def test_killed_in_the_middle_it_finishes_to_the_same_bytes(dataset):
    command = [sys.executable, "-m", "neurostorm_bids", str(dataset), str(dataset.parent / "out-killed"), "participant",
               "-w", str(dataset.parent / "work2"), "--model", "demo", "--nprocs", "1"]  # fmt: skip
    victim = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list((dataset.parent / "out-killed").rglob("*_embedding.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    first = {path: path.stat().st_mtime_ns for path in (dataset.parent / "out-killed").rglob("*_embedding.json")}
    assert first
    subprocess.run(command, check=True, capture_output=True)
    assert first == {path: path.stat().st_mtime_ns for path in first}
    subprocess.run([part.replace("out-killed", "out-calm") for part in command], check=True, capture_output=True)
    killed = {
        name: data.replace(b"out-killed", b"out-calm") for name, data in contents(dataset.parent / "out-killed").items()
    }
    assert killed == contents(dataset.parent / "out-calm")  # reports show the command that was typed


def test_the_validator_finds_no_error_and_sees_the_tree(dataset):
    assert call(dataset, "--output-bold") == 0
    assert main([str(dataset), str(dataset.parent / "out"), "group", "-w", str(dataset.parent / "work")]) == 0
    done = subprocess.run(
        ["bids-validator-deno", str(dataset.parent / "out"), "--json"], capture_output=True, text=True,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert [issue for issue in report["issues"]["issues"] if issue["severity"] == "error"] == []
    assert report["summary"]["totalFiles"] >= 3 * 2 + 4


def test_array_space_preprocessing_says_that_sides_are_as_stored(dataset, capfd):
    assert call(dataset, "--participant-label", "02", "--preprocessing", "reference") == 0
    assert "ignores the affine" in capfd.readouterr().err


def test_models_side_by_side_keep_their_names(dataset, tmp_path):
    import json
    import shutil

    from neurostorm_bids.model.registry import find_model

    other = tmp_path / "other"
    shutil.copytree(find_model("demo").path, other)
    content = json.loads((other / "model.json").read_text())
    content["name"] = "second.one"
    (other / "model.json").write_text(json.dumps(content))
    assert call(dataset, "--model", "demo", str(other), "--participant-label", "02") == 0
    tables = {label: read_tsv(dataset.parent / f"out/sub-02/func/sub-02_{RUN}-{label}_embedding.tsv")
              for label in ("demo", "secondone")}  # fmt: skip
    assert tables["demo"] == tables["secondone"]


def sidecar_of_run(folder: Path) -> dict:
    (path,) = folder.rglob("*_embedding.json")
    return json.loads(path.read_text())


def test_the_other_template_is_approximate_until_its_transform_is_there(tmp_path, capfd, monkeypatch):
    import SimpleITK as sitk

    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "templateflow"))
    root = write_dataset(tmp_path / "fmriprep")
    write_run(root, "sub-01_task-rest", space="MNI152NLin2009cAsym")
    assert call(root) == 0
    first = sidecar_of_run(tmp_path / "out")
    assert (first["Route"]["Kind"], first["Route"]["Approximate"]) == ("affine-approximate", True)
    assert "tpl-MNI152NLin6Asym_from-MNI152NLin2009cAsym_mode-image_xfm.h5" in capfd.readouterr().err
    assert call(root) == 0
    assert "1 were there already" in capfd.readouterr().out

    folder = tmp_path / "templateflow/tpl-MNI152NLin6Asym"
    folder.mkdir(parents=True)
    shift = sitk.AffineTransform([1, 0, 0, 0, 1, 0, 0, 0, 1], (0.0, 0.0, 4.0))
    name = "tpl-MNI152NLin6Asym_from-MNI152NLin2009cAsym_mode-image_xfm.h5"
    sitk.WriteTransform(shift, str(folder / name))
    assert call(root) == 0
    second = sidecar_of_run(tmp_path / "out")
    assert (second["Route"]["Kind"], second["Route"]["Approximate"]) == ("transform", False)
    assert any(name in step for step in second["Route"]["Steps"])


def test_a_transform_that_is_demanded_and_missing_is_an_error(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "templateflow"))
    root = write_dataset(tmp_path / "fmriprep")
    write_run(root, "sub-01_task-rest", space="MNI152NLin2009cAsym")
    assert call(root, "--normalization", "transform") == 65
    assert "is not in TemplateFlow's cache, and --offline forbids fetching it" in capfd.readouterr().err


def coarse_model(folder: Path) -> Path:
    """An untrained model on another grid than the demo's: 8 mm, 24^3."""
    import torch

    from neurostorm_bids.model import Encoder, EncoderConfig, InputSpec
    from neurostorm_bids.model.description import ModelDescription
    from neurostorm_bids.model.folder import write_model_folder
    from neurostorm_bids.space import Grid

    config = EncoderConfig(img_size=(24, 24, 24, 20), embed_dim=8, depths=(1, 1))
    encoder = Encoder(config, generator=torch.Generator().manual_seed(0))
    grid = Grid.of((24, 24, 24), [[-8, 0, 0, 93], [0, 8, 0, -111], [0, 0, 8, -75], [0, 0, 0, 1]], "MNI152NLin6Asym")
    weights = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    write_model_folder(
        folder, ModelDescription(name="coarse", config=config, input=InputSpec(grid=grid), trained=False), weights
    )
    return folder


def test_models_on_different_grids_keep_their_own_quality_tables(dataset, tmp_path, capfd):
    arguments = (
        "--model",
        "demo",
        str(coarse_model(tmp_path / "coarse")),
        "--participant-label",
        "02",
        "--output-bold",
    )
    assert call(dataset, *arguments) == 0
    folder = dataset.parent / "out/sub-02/func"
    assert sorted(path.name.split("_desc-")[1] for path in folder.glob("*qc.tsv")) == ["coarse_qc.tsv", "demo_qc.tsv"]
    shapes = {path.name.split("_desc-")[1]: nib.load(path).shape[:3] for path in folder.glob("*bold.nii.gz")}
    assert shapes == {"coarse_bold.nii.gz": (24, 24, 24), "demo_bold.nii.gz": (48, 48, 48)}
    whole = contents(dataset.parent / "out")
    for path in folder.glob("*coarse_embedding*"):
        path.unlink()  # one model's results are lost: only they are made again, under the same names
    capfd.readouterr()
    assert call(dataset, *arguments) == 0
    assert "1 runs done" in capfd.readouterr().out
    assert contents(dataset.parent / "out") == whole


@pytest.mark.parametrize("name", ["neurostorm_qc.tsv", "neurostorm_qc.json", "neurostorm_bold.nii.gz"])
def test_a_lost_quality_table_or_image_comes_back(dataset, name):
    assert call(dataset, "--participant-label", "02", "--output-bold") == 0
    (lost,) = (dataset.parent / "out/sub-02/func").glob(f"*_desc-{name}")
    whole = lost.read_bytes()
    lost.unlink()
    assert call(dataset, "--participant-label", "02", "--output-bold") == 0
    assert lost.read_bytes() == whole


def test_the_group_says_who_has_no_result(dataset, capfd):
    write_run(dataset, "sub-03_task-rest", n_volumes=5)
    assert call(dataset) == 1
    capfd.readouterr()
    assert main([str(dataset), str(dataset.parent / "out"), "group", "-w", str(dataset.parent / "work")]) == 0
    assert "missing: sub-03: no result" in capfd.readouterr().err


def test_the_group_goes_on_where_the_input_is_not_at_hand_any_more(dataset, capfd):
    assert call(dataset) == 0
    gone = dataset.rename(dataset.parent / "elsewhere")
    assert main([str(dataset), str(dataset.parent / "out"), "group", "-w", str(dataset.parent / "work")]) == 0
    assert "who lacks results cannot be told" in capfd.readouterr().err
    assert gone.exists()


def test_two_inputs_are_named_alike_in_links_and_sources(tmp_path):
    from neurostorm_bids.outputs import read_sidecar

    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "dataset_description.json").write_text('{"Name": "raw", "BIDSVersion": "1.9.0", "DatasetType": "raw"}')
    first, second = write_dataset(tmp_path / "b"), write_dataset(tmp_path / "a")
    write_run(first, "sub-01_task-rest", seed=1)
    write_run(second, "sub-02_task-rest", seed=2)
    assert call(raw, "--skip-bids-validation", "-d", f"one={first}", f"two={second}") in (0, 1)
    links = json.loads((tmp_path / "out/dataset_description.json").read_text())["DatasetLinks"]
    folders = {name: (tmp_path / "out" / link).resolve() for name, link in links.items()}
    for table in (tmp_path / "out").rglob("*_embedding.tsv"):
        for source in read_sidecar(table)["Sources"]:
            _, name, path = source.split(":", 2)
            assert (folders[name] / path).is_file(), source


@pytest.mark.parametrize("flip", [(0,), (1,), (2,), (0, 1, 2)])
def test_storage_order_does_not_move_the_brain(dataset, flip):
    data, matrix = bold_data(3), AFFINE.copy()
    for axis in flip:
        data = np.flip(data, axis)
        matrix[:3, 3] += matrix[:3, axis] * (SHAPE[axis] - 1)
        matrix[:3, axis] *= -1
    root = write_dataset(dataset.parent / "flipped")
    write_run(root, "sub-02_task-rest", data=data, affine=matrix, mask=False)
    upright = write_dataset(dataset.parent / "upright")
    write_run(upright, "sub-02_task-rest", seed=3, mask=False)
    tables = []
    for source in (root, upright):
        assert call(source, output=f"out-{source.name}") == 0
        tables.append(read_tsv(dataset.parent / f"out-{source.name}/sub-02/func/sub-02_{RUN}-demo_embedding.tsv"))
    values = [np.array([[float(row[key]) for key in row if key[1:].isdigit()] for row in table]) for table in tables]
    assert np.abs(values[0] - values[1]).max() < 1e-5 * np.abs(values[1]).max()
