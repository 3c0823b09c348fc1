"""``--group-workflow evaluate`` through the command line, on embeddings with known content."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from neurostorm_bids import simulate
from neurostorm_bids.cli import main, parse_settings
from neurostorm_bids.inputs import find_runs
from neurostorm_bids.outputs import desc_label, read_tsv
from neurostorm_bids.outputs.atomic import sha256, write_json, write_text
from neurostorm_bids.outputs.names import run_file, sidecar_of
from neurostorm_bids.outputs.resume import DATA_HASH
from neurostorm_bids.outputs.tables import Column, tsv_text
from neurostorm_bids.stored import content_of

N, D = 24, 4
TABLES = ("metrics", "differences", "folds", "predictions", "splits")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Two task runs a participant, pairs of siblings; images of 30 volumes of 8 mm, which only some tests read."""
    root = tmp_path_factory.mktemp("data") / "fmriprep"
    simulate.write_dataset(
        root, n_subjects=N, runs=2, tasks=("rest",), n_volumes=42, zoom_mm=8.0, n_sites=2, family_size=2, seed=2
    )
    return root


def write_embeddings(output: Path, dataset: Path, features, *, model: str = "made", hashes=None) -> None:
    """Tables as the participant level writes them; ``features`` maps participant and run to (clips, d)."""
    for row in read_tsv(dataset / "participants.tsv"):
        label = str(row["participant_id"]).removeprefix("sub-")
        for run in ("1", "2"):
            entities = {"sub": label, "task": "rest", "run": find_run(dataset, label, run)}
            clips = features(row, int(run))
            place = {"template": "MNI152NLin6Asym", "suffix": "embedding", "extension": ".tsv"}
            path = run_file(output, entities, desc=desc_label(model), **place)
            columns = [
                Column("onset", [16.0 * i for i in range(len(clips))], "."),
                Column("duration", [16.0] * len(clips), "."),
                Column("mean_fd", [0.1 + 0.01 * int(label)] * len(clips), "."),
                *(Column(f"d{i:03d}", clips[:, i].tolist(), ".") for i in range(clips.shape[1])),
            ]
            write_text(path, tsv_text(columns))
            sidecar = {
                "Model": {"Name": model, "Hash": "0" * 64, "Trained": True},
                "Timing": {"Frames": 40, "EffectiveStep": 0.8, "FirstFrame": 0.0},
                "Route": {"Kind": "affine"},
                "InputPipeline": {"Name": "fMRIPrep", "Version": "25.0"},
                DATA_HASH: sha256(path),
            }
            if hashes:
                sidecar["RunSha256"] = hashes(label, int(run))
            write_json(sidecar_of(path), sidecar)


def find_run(dataset: Path, label: str, run: str) -> str:
    paths = sorted((dataset / f"sub-{label}" / "func").glob("*desc-preproc_bold.nii.gz"))
    return paths[int(run) - 1].name.split("_run-")[1].split("_")[0]


def telling(row, run) -> np.ndarray:
    """Embeddings that hold age and sex."""
    rng = np.random.default_rng([int(str(row["participant_id"])[4:]), run])
    clips = 0.2 * rng.normal(size=(2, D))
    clips[:, 0] += (float(row["age"]) - 45) / 10
    clips[:, 1] += row["sex"] == "F"
    return clips


def evaluate(dataset: Path, output: Path, *words: str) -> int:
    common = ("--quiet", "--n-bootstrap", "100", "--repeats", "2", "--work-dir", str(output.parent / "work"))
    return main([str(dataset), str(output), "group", "--group-workflow", "evaluate", *common, *words])


SIMPLE = ("--group-by", "family_id", "--n-permutations", "19", "--compare", "nuisance", "demographics")


def test_a_telling_embedding_beside_what_it_is_compared_with(dataset: Path, tmp_path: Path, capsys):
    output = tmp_path / "out"
    write_embeddings(output, dataset, telling)
    assert evaluate(dataset, output, "--target", "age", "sex", *SIMPLE) == 0
    said = capsys.readouterr().out
    assert "made: above chance (r2" in said
    assert "made against nuisance: motion, site and acquisition alone do not explain it" in said
    # never what is not in it: the target itself is left out
    assert "made against demographics: it does better than a prediction from sex alone" in said
    assert "made against demographics: it does better than a prediction from age alone" in said
    assert "age and sex" not in said
    for target, first in (("age", "r2"), ("sex", "balanced_accuracy")):
        folder = output / "evaluation" / target
        assert sorted(path.name for path in folder.iterdir()) == sorted(
            [*(f"{name}{end}" for name in TABLES for end in (".tsv", ".json")), "evaluation.json", "methods.md"]
        )
        rows = {(row["features"], row["metric"]): row for row in read_tsv(folder / "metrics.tsv")}
        assert {name for name, _ in rows} == {"made", "nuisance", "demographics", "chance"}
        best = rows["made", first]
        assert float(best["value"]) > 0.7 and float(best["p"]) == pytest.approx(1 / 20)
        assert (
            0.5 < float(best["ci_low"]) <= float(best["value"]) <= float(best["ci_high"]) <= 1
            and best["repeat_sd"] is not None
        )
        difference = {(r["features"], r["metric"]): r for r in read_tsv(folder / "differences.tsv")}["chance", first]
        assert float(difference["ci_low"]) > 0
        report = json.loads((folder / "evaluation.json").read_text())
        assert report["Design"]["Families"] == N // 2 and report["Leakage"] == {"Allowed": False, "Findings": []}
        assert "Embeddings identify people" in report["Description"]
        assert set(report["Confounds"]["made"]) >= {"mean_fd", "site"} and set(report["WithinSites"]["made"])
        assert any("With 24 participants" in line for line in report["Statements"])
        assert any("made: its predictions go along with mean_fd" in line for line in report["Statements"])
        bias = [line for line in report["Statements"] if line.startswith("made, age bias: MAE ")]
        assert len(bias) == (target == "age") and all("year" in line and "after correction" in line for line in bias)
        assert "resamples of families" in (folder / "methods.md").read_text()
    assert "evaluation" in (output / ".bidsignore").read_text().splitlines()
    matrix = report["ConfusionOfFirstRepeat"]["made"]
    assert np.sum(matrix) == N and np.trace(matrix) > 18
    assert report["Calibration"]["made"]["BrierAfter"] > 0
    predictions = read_tsv(folder / "predictions.tsv")
    assert len(predictions) == 4 * 2 * N and float(predictions[0]["p_F"]) + float(
        predictions[0]["p_M"]
    ) == pytest.approx(1)


def test_the_same_command_writes_the_same_bytes_and_other_seeds_others(dataset: Path, tmp_path: Path):
    output = tmp_path / "out"
    write_embeddings(output, dataset, telling)
    folder = output / "evaluation" / "age"
    contents = []
    for seed in ("0", "0", "1"):
        assert evaluate(dataset, output, "--target", "age", *SIMPLE, "--random-seed", seed) == 0
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1] and contents[0]["splits.tsv"] != contents[2]["splits.tsv"]


def test_families_that_folds_would_tear_apart_stop_it(dataset: Path, tmp_path: Path, capsys):
    output = tmp_path / "out"
    write_embeddings(output, dataset, telling)
    words = ("--target", "age", "--n-permutations", "0", "--compare", "none")
    assert evaluate(dataset, output, *words) == 2
    assert "families (family_id) on both sides of a fold" in (said := capsys.readouterr().err)
    assert "--group-by family_id" in said and not (output / "evaluation").exists()
    assert evaluate(dataset, output, *words, "--allow-leakage") == 0
    report = json.loads((output / "evaluation" / "age" / "evaluation.json").read_text())
    assert report["Leakage"]["Allowed"] and report["Leakage"]["Findings"][0]["Count"] > 0
    assert report["Statements"][0].startswith("LEAKAGE, allowed by --allow-leakage")
    assert "LEAKAGE" in (output / "evaluation" / "age" / "methods.md").read_text()


def test_a_participant_on_both_sides_of_stated_splits_stops_it(dataset: Path, tmp_path: Path, capsys):
    output, table = tmp_path / "out", tmp_path / "splits.tsv"
    write_embeddings(output, dataset, telling)
    names = [row["participant_id"] for row in read_tsv(dataset / "participants.tsv")]
    roles = [(name, "test" if number % 2 else "train") for number, name in enumerate(names)]
    planted = [*roles, *((name, "train") for name, role in roles[:6] if role == "test")]
    table.write_text("participant_id\tsplit\n" + "".join(f"{name}\t{role}\n" for name, role in planted))
    words = ("--target", "age", "--splits", str(table), "--n-permutations", "0", "--compare", "none")
    assert evaluate(dataset, output, *words) == 2
    assert "fold 1 has participants on two sides" in capsys.readouterr().err
    assert evaluate(dataset, output, *words, "--allow-leakage") == 0
    report = json.loads((output / "evaluation" / "age" / "evaluation.json").read_text())
    assert report["Leakage"]["Findings"][0] == {
        "Kind": "participants on both sides of a fold",
        "Count": 3,
        "Examples": sorted(name.removeprefix("sub-") for name, role in roles[:6] if role == "test"),
    }


def test_family_splits_change_the_number_where_families_are_alike(dataset: Path, tmp_path: Path):
    """Embeddings that tell families apart, and a target that runs in families."""
    output = tmp_path / "out"
    rows = read_tsv(dataset / "participants.tsv")
    value = {row["participant_id"]: hash_of(row["family_id"]) for row in rows}
    table = "participant_id\tscore\n" + "".join(f"{who}\t{score}\n" for who, score in value.items())
    phenotype = tmp_path / "with-scores"
    phenotype.mkdir()
    for path in dataset.iterdir():
        (phenotype / path.name).symlink_to(path)
    (phenotype / "phenotype").mkdir()
    (phenotype / "phenotype" / "scores.tsv").write_text(table)

    def of_family(row, run):
        family = int(str(row["family_id"])[1:])
        noise = np.random.default_rng([int(str(row["participant_id"])[4:]), run]).normal(size=(2, 20))
        return np.random.default_rng([family, 5]).normal(size=20) + 0.1 * noise

    write_embeddings(output, phenotype, of_family)
    words = ("--target", "phenotype/scores.tsv:score", "--n-permutations", "0", "--compare", "none")
    found = []
    for more in (("--allow-leakage",), ("--group-by", "family_id")):
        assert evaluate(phenotype, output, *words, *more) == 0
        rows = read_tsv(output / "evaluation" / "score" / "metrics.tsv")
        found.append(next(float(r["value"]) for r in rows if (r["features"], r["metric"]) == ("made", "pearson")))
    assert found[0] > found[1] + 0.3


def hash_of(family: str | None) -> float:
    return float(np.random.default_rng([int(str(family)[1:]), 8]).normal())


@pytest.mark.parametrize("how", ["hash", "embedding"])
def test_one_image_under_two_names_stops_it(dataset: Path, tmp_path: Path, capsys, how: str):
    output = tmp_path / "out"

    def copied(row, run):
        return telling({**row, "participant_id": "sub-01"} if row["participant_id"] == "sub-02" else row, run)

    def same(label: str, run: int) -> str:
        return "copy" if label in ("01", "02") and run == 1 else f"{label}-{run}"

    if how == "hash":
        write_embeddings(output, dataset, telling, hashes=same)
    else:
        fixed = {"age": "40", "sex": "F"}
        write_embeddings(output, dataset, lambda row, run: copied({**row, **fixed}, run))
    assert evaluate(dataset, output, "--target", "age", *SIMPLE) == 2
    assert "images under several participants: 1 (sub-01 = sub-02)" in capsys.readouterr().err


def trained_on(dataset: Path, output: Path, tmp_path: Path, labels, *, named: str = "elsewhere", images: bool = True):
    """A model folder beside embeddings of hash 0, whose training.json names the images of some participants."""
    runs = find_runs(parse_settings([str(dataset), str(output), "participant", "-w", str(tmp_path / "work")])).runs
    recorded = [
        {
            "dataset": named,
            "participant": run.participant,
            "content": content_of(run) if images else run.name,
        }
        for run in runs
        if run.participant in labels
    ]
    write_json(output / "models" / "made" / "model.json", {"sha256": "0" * 64, "trained": True})
    write_json(output / "models" / "made" / "training.json", {"runs": recorded})


def test_participants_that_a_model_was_trained_on_stop_it(dataset: Path, tmp_path: Path, capsys):
    output = tmp_path / "out"
    write_embeddings(output, dataset, telling)
    trained_on(dataset, output, tmp_path, ("03", "07", "11"))
    assert evaluate(dataset, output, "--target", "age", *SIMPLE) == 2
    said = capsys.readouterr().err
    assert "participants that made was trained on: 3 (sub-03, sub-07, sub-11)" in said and "--allow-leakage" in said
    assert evaluate(dataset, output, "--target", "identity", "--compare", "none") == 2
    assert "trained on: 3" in capsys.readouterr().err and not (output / "evaluation").exists()
    assert evaluate(dataset, output, "--target", "age", *SIMPLE, "--allow-leakage") == 0
    report = json.loads((output / "evaluation" / "age" / "evaluation.json").read_text())
    assert report["Leakage"]["Findings"][0]["Count"] == 3 and not report["Warnings"]
    assert report["Statements"][0].startswith(
        "LEAKAGE, allowed by --allow-leakage: participants that made was trained on"
    )
    others = [f"{i:02d}" for i in range(1, N + 1) if i not in (3, 7, 11)]
    assert evaluate(dataset, output, "--target", "age", *SIMPLE, "--participant-label", *others) == 0


def test_images_processed_again_are_known_by_dataset_and_label(dataset: Path, tmp_path: Path, capsys):
    output = tmp_path / "out"
    write_embeddings(output, dataset, telling)
    trained_on(dataset, output, tmp_path, ("03", "07"), named=dataset.name, images=False)
    assert evaluate(dataset, output, "--target", "age", *SIMPLE) == 2
    assert "in a dataset that is called fmriprep too, made was trained on: 2 (sub-03" in capsys.readouterr().err
    trained_on(dataset, output, tmp_path, ("03", "07"), images=False)  # strangers of another dataset
    assert evaluate(dataset, output, "--target", "age", *SIMPLE) == 0
    (output / "models" / "made" / "training.json").unlink()
    assert evaluate(dataset, output, "--target", "age", *SIMPLE) == 0
    report = json.loads((output / "evaluation" / "age" / "evaluation.json").read_text())
    assert "made: whom it was trained on is not known" in report["Warnings"][0]


def test_a_fine_tuned_model_passes_on_what_its_backbone_saw(dataset: Path, tmp_path: Path, capsys):
    output = tmp_path / "out"
    write_embeddings(output, dataset, telling)
    rows = sorted(read_tsv(dataset / "participants.tsv"), key=lambda row: str(row["family_id"]))
    names = [str(row["participant_id"]) for row in rows]
    table = output / "evaluation" / "base-age"
    lines = [f"1\t{name}\t{'train' if number < 12 else 'test'}" for number, name in enumerate(names)]
    write_text(table / "splits.tsv", "\n".join(["fold\tparticipant_id\tsplit", *lines]) + "\n")
    lines = [f"{name}\tn/a\t1\t40\t41" for name in names[12:]]
    write_text(table / "predictions.tsv", "\n".join(["participant_id\trun\tfold\ttruth\tpredicted", *lines]) + "\n")
    write_json(
        output / "models" / "base-age" / "training.json", {"pretraining_overlap": [names[-1].removeprefix("sub-")]}
    )
    words = ("--target", "age", "--tuned", "base-age", *SIMPLE)
    assert evaluate(dataset, output, *words) == 2
    assert f"the model that base-age began from was trained on: 1 ({names[-1]})" in capsys.readouterr().err


def test_runs_of_one_person_with_different_values_are_rows_of_their_own(dataset: Path, tmp_path: Path):
    output = tmp_path / "out"

    def of_run(row, run):
        return telling(row, run) + np.array([0, 0, 2.0 * run, 0])

    write_embeddings(output, dataset, of_run)
    assert evaluate(dataset, output, "--target", "entity:run", *SIMPLE, "--target-kind", "classification") == 0
    rows = read_tsv(output / "evaluation" / "run" / "predictions.tsv")
    assert {row["row"] for row in rows if row["participant_id"] == "sub-01"} == {
        f"sub-01_task-rest_run-{find_run(dataset, '01', run)}" for run in "12"
    }
    metrics = {(r["features"], r["metric"]): r for r in read_tsv(output / "evaluation" / "run" / "metrics.tsv")}
    assert float(metrics["made", "accuracy"]["value"]) > 0.95


def test_sites_are_left_out_in_turn(dataset: Path, tmp_path: Path):
    output = tmp_path / "out"
    write_embeddings(output, dataset, telling)
    words = ("--target", "age", "--leave-out", "site", "--allow-leakage", "--n-permutations", "9", "--compare", "none")
    assert evaluate(dataset, output, *words) == 0
    folds = read_tsv(output / "evaluation" / "age" / "folds.tsv")
    assert {row["fold"] for row in folds} == {"site1", "site2"} and {row["repeat"] for row in folds} == {"1"}


def test_people_are_told_apart_across_and_within_runs(dataset: Path, tmp_path: Path, capsys):
    output = tmp_path / "out"

    def of_person(row, run):
        person = np.random.default_rng(int(str(row["participant_id"])[4:])).normal(size=12)
        rng = np.random.default_rng([int(str(row["participant_id"])[4:]), run])
        return person + rng.normal(size=12) + 0.05 * rng.normal(size=(4, 12))  # runs differ more than their halves

    write_embeddings(output, dataset, of_person)
    write_embeddings(output, dataset, lambda row, run: np.random.default_rng([run, int(str(row["participant_id"])[4:])])
                     .normal(size=(2, 12)), model="noise")  # fmt: skip
    words = ("--target", "identity", "--compare", "none", "--n-permutations", "99")
    assert evaluate(dataset, output, *words) == 0
    said = capsys.readouterr().out
    assert (
        "made, across runs: rank-1 " in said and "made against noise, across runs: it finds people more often" in said
    )
    table = read_tsv(output / "evaluation" / "identity" / "metrics.tsv")
    noise = next(r for r in table if (r["features"], r["setting"], r["metric"]) == ("noise", "across runs", "map"))
    assert float(noise["p"]) > 0.05
    rows = {(r["setting"], r["metric"]): r for r in table if r["features"] == "made"}
    assert float(rows["across runs", "rank1"]["p"]) == pytest.approx(0.01)
    differences = read_tsv(output / "evaluation" / "identity" / "differences.tsv")
    assert {(r["model"], r["features"]) for r in differences} == {("made", "noise")}
    assert "Finn" in (output / "evaluation" / "identity" / "methods.md").read_text()
    assert {row["gallery"] for row in rows.values()} == {str(N)}
    assert float(rows["within runs", "rank1"]["value"]) > 0.95
    assert 0.15 < float(rows["across runs", "rank1"]["value"]) < 0.95
    assert float(rows["across runs", "rank1"]["chance"]) == pytest.approx(1 / N)


def test_what_cannot_be_evaluated_is_said(dataset: Path, tmp_path: Path, capsys):
    output = tmp_path / "out"
    assert evaluate(dataset, output) == 2
    assert "an evaluation without a target" in capsys.readouterr().err
    assert evaluate(dataset, output, "--target", "age") == 66
    assert "no embedding of the selected runs is there" in capsys.readouterr().err
    write_embeddings(output, dataset, telling)
    assert evaluate(dataset, output, "--target", "age", "--group-by", "clan") == 2
    assert "has no column 'clan'" in capsys.readouterr().err
    assert (
        evaluate(dataset, output, "--target", "age", "--participant-label", "01", "02", "--group-by", "family_id") == 2
    )
    assert "10 or more" in capsys.readouterr().err
    broken = next(output.glob("sub-01/func/*_embedding.tsv"))
    broken.write_text(broken.read_text()[:-5])
    assert evaluate(dataset, output, "--target", "age", *SIMPLE) == 1
    assert "was cut or changed" in capsys.readouterr().err


def test_a_fine_tuned_model_stands_on_its_recorded_splits(dataset: Path, tmp_path: Path, capsys):
    output = tmp_path / "out"
    write_embeddings(output, dataset, telling)
    rows = read_tsv(dataset / "participants.tsv")
    names = [row["participant_id"] for row in rows]
    tuned = output / "evaluation" / "base-age"
    fold = {name: 1 + number % 3 for number, name in enumerate(names)}
    splits = [(f, n, "test" if fold[n] == f else "train") for f in (1, 2, 3) for n in names]
    lines = ["fold\tparticipant_id\tsplit", *("\t".join(map(str, row)) for row in splits)]
    write_text(tuned / "splits.tsv", "\n".join(lines) + "\n")
    said = [
        (row["participant_id"], "n/a", fold[row["participant_id"]], row["age"], float(row["age"]) + 1) for row in rows
    ]
    said = [row for row in said if row[2] != 3]  # a fold that was not trained
    lines = ["participant_id\trun\tfold\ttruth\tpredicted", *("\t".join(map(str, row)) for row in said)]
    write_text(tuned / "predictions.tsv", "\n".join(lines) + "\n")
    words = ("--target", "age", "--tuned", "base-age", "--allow-leakage", "--n-permutations", "19", "--compare", "none")
    assert evaluate(dataset, output, *words) == 0
    metrics = {(r["features"], r["metric"]): r for r in read_tsv(output / "evaluation" / "age" / "metrics.tsv")}
    best = metrics["base-age", "mae"]
    assert float(best["value"]) == pytest.approx(1) and float(best["p"]) == pytest.approx(1 / 20)
    folds = read_tsv(output / "evaluation" / "age" / "folds.tsv")
    assert {row["fold"] for row in folds if row["features"] == "made"} == {"1", "2"}
    said = capsys.readouterr().out
    assert "base-age against made: " in said and "p = 0.05 of 19 permutations without training again" in said
    assert (
        "base-age: its p comes from labels permuted among the tested rows of each fold, WITHOUT training again" in said
    )
    assert "WITHOUT training again" in (output / "evaluation" / "age" / "metrics.json").read_text()
    methods = (output / "evaluation" / "age" / "methods.md").read_text()
    assert "base-age was fine-tuned beforehand" in methods and "without training again" in methods
    write_text(tuned / "predictions.tsv", "participant_id\tfold\n" + "".join(f"{n}\t{fold[n]}\n" for n in names))
    assert evaluate(dataset, output, *words) == 74
    assert "holds no number for 'predicted'" in capsys.readouterr().err


def test_controls_and_connectivity_are_read_from_the_images(dataset: Path, tmp_path: Path, capsys):
    output = tmp_path / "out"
    work = str(tmp_path / "work")
    assert (
        main(
            [
                str(dataset),
                str(output),
                "participant",
                "--model",
                "demo",
                "--quiet",
                "--work-dir",
                work,
                "--nprocs",
                "1",
                "--participant-label",
                *[f"{i:02d}" for i in range(1, 11)],
            ]
        )
        == 0
    )
    words = ("--target", "age", "--model", "demo", "--group-by", "family_id", "--n-permutations", "9", "--folds", "3")
    words += ("--allow-leakage", "--repeats", "1", "--n-bootstrap", "20")
    with pytest.raises(SystemExit):
        evaluate(dataset, output, *words, "--compare", "magic")
    capsys.readouterr()
    code = evaluate(dataset, output, *words, "--compare", "fc", "mean-image", "static", "shuffled")
    assert code == 2 and "independent participants have age" in capsys.readouterr().err
    code = evaluate(dataset, output, *(w for w in words if w not in ("--group-by", "family_id")))
    assert code == 0
    rows = read_tsv(output / "evaluation" / "age" / "metrics.tsv")
    assert {row["features"] for row in rows} >= {
        "demo",
        "static-demo",
        "shuffled-demo",
        "fc-correlation",
        "fc-tangent",
        "mean-image",
    }
    values = {row["features"]: float(row["value"]) for row in rows if row["metric"] == "mae"}
    assert values["static-demo"] != values["demo"]
    report = json.loads((output / "evaluation" / "age" / "evaluation.json").read_text())
    assert not any("NOT trained" in line for line in report["Warnings"])
    said = " ".join(report["Statements"])
    assert "demo against static-demo:" in said
