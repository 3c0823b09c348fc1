"""Train the bundled demo model and its packs on simulated data alone, with the program's own commands.

    python scripts/train_demo_model.py WORK

WORK keeps datasets, clip stores and models; what is there already is not made again. Some minutes on one core.
The result replaces neurostorm_bids/data/demo-model and neurostorm_bids/data/demo-packs.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from build_demo_model import DEMO, build

from neurostorm_bids import simulate
from neurostorm_bids.model.description import ModelDescription, read_json
from neurostorm_bids.model.folder import read_model_folder, write_model_folder

DATA = Path(__file__).resolve().parents[1] / "neurostorm_bids" / "data"
PEOPLE = {"n_subjects": 60, "n_volumes": 60, "effects": simulate.DEMO_EFFECTS}
# other seeds than that of the demo: nobody there was trained on
DATASETS = {"unlabelled": {"seed": 1001, **PEOPLE}, "labelled": {"seed": 1002, **PEOPLE}}
PRETRAIN = [
    "--objective",
    "mae",
    "--no-augmentation",
    "--epochs",
    "2",
    "--batch-size",
    "4",
    "--validation-share",
    "0.1",
]
TUNE = ["--method", "linear", "--fold", "1"]
TARGETS = ("age", "sex", "diagnosis")


def main(work: Path) -> None:
    """Simulate, pretrain, tune, and put the result where the program finds it."""
    for name, plan in DATASETS.items():
        if not (work / name / "dataset_description.json").exists():
            simulate.write_dataset(work / name, **plan)
    if not (work / "start").exists():
        build(work / "start")
    models = work / "out" / "models"
    if not (models / "demo").exists():
        call(work, "unlabelled", "pretrain", *PRETRAIN, "--model", str(work / "start"), "--name", "demo", "--resume")
    if not all((models / f"demo-{target}").exists() for target in TARGETS):
        call(work, "labelled", "finetune", *TUNE, "--model", str(models / "demo"), "--target", *TARGETS, "--resume")
    place(models / "demo", DATA / "demo-model")
    for target in TARGETS:
        place(models / f"demo-{target}", DATA / "demo-packs" / target)


def call(work: Path, dataset: str, workflow: str, *words: str) -> None:
    """A command of the program."""
    command = [str(work / dataset), str(work / "out"), "group", "--group-workflow", workflow, *words]
    command += ["--work-dir", str(work / "work"), "--nprocs", "1", "--device", "cpu"]
    print("$ neurostorm", shlex.join(command), flush=True)
    subprocess.run([sys.executable, "-m", "neurostorm_bids", *command], check=True)


def place(folder: Path, target: Path) -> None:
    """Put a model among the bundled ones, saying where it comes from; its hash does not change by that."""
    found = read_model_folder(folder)
    told: ModelDescription = replace(
        found.description,
        summary=f"Trained on simulated data alone, to try out the program. {found.description.summary}",
        source="scripts/train_demo_model.py",
        licence=DEMO.licence,
    )
    training = read_json(folder / "training.json")
    training["settings"]["model"] = [Path(name).name for name in training["settings"]["model"]]
    shutil.rmtree(target, ignore_errors=True)
    write_model_folder(target, told, found.weights, self_test=found.self_test, training=training)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
