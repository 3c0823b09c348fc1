"""Examples for clusters: each script calls the program as its parser wants it, and BABS' call works."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import fmriprep_tree
import pytest
import yaml

from neurostorm_bids.cli import parse_settings
from neurostorm_bids.settings import Settings
from neurostorm_bids.workflow import _plugin_file

ROOT = Path(__file__).resolve().parents[1]
SLURM = ROOT / "examples" / "slurm"
BABS = ROOT / "examples" / "babs"
BIN = Path(sys.executable).parent


def stub(folder: Path, name: str, body: str) -> None:
    """A program that stands in for another one."""
    path = folder / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


def run(words: list, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {"PATH": f"{cwd}:{BIN}:/usr/bin:/bin", "HOME": str(cwd), **environment}
    return subprocess.run(list(map(str, words)), cwd=cwd, env=known, capture_output=True, text=True, check=False)


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """Programs that write down how they were called, and a dataset of three participants."""
    stub(tmp_path, "neurostorm", f'printf "%q " "$@" >> {tmp_path}/calls; echo >> {tmp_path}/calls; exit ${{CODE:-0}}')
    stub(tmp_path, "srun", 'exec "$@"')
    stub(tmp_path, "sbatch", f'echo "$@" >> {tmp_path}/submitted; echo 77')
    for label in ("01", "02", "03"):
        (tmp_path / "data" / f"sub-{label}").mkdir(parents=True)
    places = {"BIDS_DIR": "data", "OUTPUT_DIR": "out", "WORK_DIR": "scratch", "LOG_DIR": "out/logs/slurm"}
    return {name: str(tmp_path / place) for name, place in places.items()} | {
        "MODEL": "demo",
        "NEUROSTORM": "neurostorm",
    }


def calls(folder: Path) -> list[Settings]:
    return [parse_settings(shlex.split(line)) for line in (folder / "calls").read_text().splitlines()]


def ended(cluster: dict[str, str]) -> Path:
    folder = Path(cluster["LOG_DIR"]) / "ended"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# --- Slurm --------------------------------------------------------------------------------------------------------


def test_an_array_task_runs_its_line_and_notes_how_it_ended(tmp_path: Path, cluster: dict[str, str]):
    (tmp_path / "list").write_text("sub-01\nsub-02 sub-03\n")
    notes = ended(cluster)
    task = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_JOB_ID": "9", "SLURM_CPUS_PER_TASK": "4", "SLURM_MEM_PER_NODE": "6144"}
    done = run(["bash", SLURM / "participant.sh", tmp_path / "list"], tmp_path, **cluster, **task, CODE="1")
    assert done.returncode == 1
    (settings,) = calls(tmp_path)
    assert (settings.participant_label, settings.nprocs, settings.mem_mb) == (("02", "03"), 4, 6144)
    assert settings.offline and str(settings.work_dir).startswith(cluster["WORK_DIR"])
    assert {path.name: path.read_text() for path in notes.iterdir()} == {"sub-02": "1\n", "sub-03": "1\n"}


def test_a_task_that_was_given_the_whole_node_states_no_memory(tmp_path: Path, cluster: dict[str, str]):
    (tmp_path / "list").write_text("sub-01\n")
    ended(cluster)
    task = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "9", "SLURM_MEM_PER_NODE": "0"}
    assert run(["bash", SLURM / "participant.sh", tmp_path / "list"], tmp_path, **cluster, **task).returncode == 0
    assert calls(tmp_path)[0].mem_mb is None


def submit(tmp_path: Path, cluster: dict[str, str], **more: str) -> list[str]:
    done = run(["bash", SLURM / "submit.sh"], tmp_path, **cluster, **more)
    assert done.returncode == 0, done.stderr
    return [path.read_text() for path in sorted(Path(cluster["LOG_DIR"]).glob("*.txt"))]


def test_only_participants_that_are_not_done_are_submitted(tmp_path: Path, cluster: dict[str, str]):
    notes = ended(cluster)
    (notes / "sub-01").write_text("0\n")
    (notes / "sub-02").write_text("65\n")
    assert submit(tmp_path, cluster) == ["sub-02\nsub-03\n"]  # one failed, one was never heard of
    array, group = (tmp_path / "submitted").read_text().splitlines()
    assert "--array=1-2%100" in array and "--dependency=afterany:77" in group and group.endswith("aggregate.sh")


def test_several_participants_a_task_and_nothing_left(tmp_path: Path, cluster: dict[str, str]):
    assert submit(tmp_path, cluster, PER_TASK="2") == ["sub-01 sub-02\nsub-03\n"]
    for label in ("01", "02", "03"):
        (ended(cluster) / f"sub-{label}").write_text("0\n")
    (tmp_path / "submitted").unlink()
    submit(tmp_path, cluster)
    assert not (tmp_path / "submitted").exists()


def test_aggregate_and_training_are_calls_that_the_parser_takes(tmp_path: Path, cluster: dict[str, str]):
    task = {"SLURM_JOB_ID": "9", "SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "8"}
    for words in (["aggregate.sh"], ["train.sh", "--epochs", "3"]):
        done = run(["bash", SLURM / words[0], *words[1:]], tmp_path, **cluster, **task, NAME="mine")
        assert done.returncode == 0, done.stderr
    group, training = calls(tmp_path)
    assert (group.level, group.group_workflow) == ("group", "aggregate")
    assert (training.devices, training.num_nodes, training.name, training.epochs) == (4, 2, "mine", 3)
    assert training.group_workflow == "pretrain" and training.resume


def test_the_plugin_file_is_one_that_the_program_reads():
    plugin = _plugin_file(SLURM / "plugin.yml")
    assert plugin["plugin"] == "SLURM" and "--mem=" in plugin["plugin_args"]["sbatch_args"]


# --- BABS ---------------------------------------------------------------------------------------------------------


def test_the_options_of_the_babs_example_are_ones_that_the_parser_takes():
    config = yaml.safe_load((BABS / "neurostorm.yaml").read_text())
    words = [word for flag, value in config["bids_app_args"].items() if flag.startswith("-") for word in (flag, value)]
    known = {"$BABS_TMPDIR": "/tmp/w", "$SLURM_CPUS_PER_TASK": "4", "$SLURM_MEM_PER_NODE": "6144", "": None}
    words = [word for word in (known.get(word, word) for word in words) if word is not None]
    label = config["bids_app_args"]["$SUBJECT_SELECTION_FLAG"]
    settings = parse_settings(["in", "out", "participant", *words, label, "sub-01"])
    assert (settings.participant_label, settings.nprocs, settings.mem_mb) == (("01",), 4, 6144)
    assert config["singularity_args"] == ["--containall", "--writable-tmpfs"]


def zipped(root: Path, subject: str, data=None) -> Path:
    """A BABS job's folder: the zipped fMRIPrep results of one participant, and nothing else."""
    fmriprep_tree.write_dataset(root / "made" / "fmriprep")
    fmriprep_tree.write_run(root / "made" / "fmriprep", f"{subject}_task-rest", data=data)
    folder = root / "job" / "inputs" / "data" / "fmriprep"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / f"{subject}_fmriprep-23-2-1.zip", "w") as archive:
        for path in sorted((root / "made").rglob("*.*")):
            archive.write(path, path.relative_to(root / "made"))
    return root / "job"


def test_babs_call_gives_a_zip_of_results_and_leaves_nothing_else(tmp_path: Path):
    job = zipped(tmp_path, "sub-01")
    environment = {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": "/nonexistent", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", BABS / "job.sh", "sub-01", "", "--model", "demo"],
        cwd=job,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (result,) = job.glob("sub-01_neurostorm*.zip")
    names = zipfile.ZipFile(result).namelist()
    assert sum(name.endswith("_embedding.tsv") for name in names) == 1
    assert "neurostorm/dataset_description.json" in names
    assert {path.name for path in job.iterdir()} == {".git", "inputs", result.name}
    assert [path.name for path in (job / "inputs/data/fmriprep").iterdir()] == ["sub-01_fmriprep-23-2-1.zip"]


def test_a_babs_job_that_fails_says_so(tmp_path: Path):
    stub(tmp_path, "neurostorm", "exit 65")
    job = zipped(tmp_path, "sub-01")
    done = run(["bash", BABS / "job.sh", "sub-01"], job, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 65 and not list(job.glob("*.zip"))
