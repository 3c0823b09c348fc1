"""The simulation of a biobank is read and pooled by the program as real trees are."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def load(name: str):
    specification = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module


def test_every_participant_is_found_and_pooled(tmp_path: Path):
    scaling = load("scaling")
    scaling.build(tmp_path, 7, n_features=3, n_clips=2)
    everybody = tuple(f"{number:06d}" for number in range(7))
    assert scaling.query(tmp_path, everybody) == 7 and scaling.query(tmp_path, everybody[2:4]) == 2
    assert scaling.pool(tmp_path, everybody) == 7
    header, *rows = (tmp_path / "out" / "phenotype" / "neurostorm_embeddings.tsv").read_text().splitlines()
    assert header.endswith("model_d000\tmodel_d001\tmodel_d002") and len(rows) == 7


def test_the_plan_multiplies():
    rows = load("cost").plan(seconds=36.0, n_cores=2, mb=1.024).splitlines()
    assert rows[2] == "| 1,000 | 20 | 0.0 | 0.00 | 1.0 |"
    assert rows[4] == "| 100,000 | 2,000 | 0.8 | 0.08 | 100.0 |"
