"""Three input types in one call: each dataset is read in its own way, and what comes out is of one kind."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from pipeline_trees import dcan_tree, hcp_tree, ukb_tree

from neurostorm_bids.cli import main
from neurostorm_bids.outputs import read_sidecar

FAST = ("--model", "demo", "--min-coverage", "0.1", "--offline", "--nprocs", "1")


def test_one_pretraining_over_three_input_types(tmp_path: Path):
    hcp = hcp_tree(hcp_tree(tmp_path / "hcp"), "100408")
    dcan, ukb = dcan_tree(tmp_path / "dcan"), ukb_tree(tmp_path / "ukb")
    arguments = ["--datasets", f"abcd={dcan}", f"ukb={ukb}", "--from-scratch", "--epochs", "1", "--batch-size", "2"]
    arguments += ["--work-dir", str(tmp_path / "w"), "--group-workflow", "pretrain", "--input-type", "hcp"]
    arguments += ["--name", "mixed", "--no-augmentation", "--quiet"]
    assert main([str(hcp), str(tmp_path / "out"), "group", *FAST, *arguments]) == 0
    record = json.loads((tmp_path / "out" / "models" / "mixed" / "training.json").read_text())
    assert record["n_participants"] == 4 and record["n_runs"] == 4
    described = json.loads((tmp_path / "out" / "dataset_description.json").read_text())
    generators = {entry["Name"] for entry in described["GeneratedBy"]}
    assert {"HCP Pipelines", "abcd-hcp-pipeline", "UK Biobank pipeline"} <= generators


def test_sidecars_say_pipeline_denoising_and_motion(tmp_path: Path):
    ukb = ukb_tree(tmp_path / "ukb")
    out = tmp_path / "out"
    assert main([str(ukb), str(out), "participant", *FAST, "--work-dir", str(tmp_path / "w"), "--quiet"]) == 0
    (table,) = out.rglob("*_desc-demo_embedding.tsv")
    assert table.relative_to(out).as_posix().startswith("sub-1000001/ses-1/func/sub-1000001_ses-1_task-rest_")
    assert (pd.read_csv(table, sep="\t")["mean_fd"] > 0).all()
    sidecar = read_sidecar(table)
    text = json.dumps(sidecar)
    assert "UK Biobank pipeline" in text and "ICA-FIX" in text
    page = (out / "sub-1000001.html").read_text()
    assert "UK Biobank pipeline" in page and "ICA-FIX" in page
    sources = " ".join(sidecar["Sources"])
    assert "prefiltered_func_data_mcf.par" in sources and "example_func2standard_warp.nii.gz" in sources
