"""Tasks under nipype: outcomes in order, failures by name, a killed worker loses only its own run."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from neurostorm_bids.errors import PluginUnusable
from neurostorm_bids.settings import Settings
from neurostorm_bids.workflow import Outcome, Task, execute


def settings_for(tmp_path: Path, **values) -> Settings:
    return Settings(
        bids_dir=tmp_path / "in", output_dir=tmp_path / "out", level="participant", work_dir=tmp_path / "work", **values
    )


def succeed(name: str) -> Outcome:
    return Outcome(name, "done", n_clips=3, warnings=("watch out",))


def fail(name: str) -> Outcome:
    return Outcome(name, "failed", message=f"{name}: the file is empty.")


def die(name: str) -> Outcome:
    os.kill(os.getpid(), signal.SIGKILL)
    return succeed(name)


def tasks(*functions) -> list[Task]:
    return [
        Task(f"sub-{number:02d}_task-rest", f"{__name__}:{function.__name__}", (f"run {number}",), 100)
        for number, function in enumerate(functions)
    ]


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    # workers import this module by name
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def test_a_single_task_runs_in_this_process(tmp_path):
    heard: list[Outcome] = []
    outcomes = execute(tasks(succeed), settings_for(tmp_path), tmp_path / "scratch", heard.append)
    assert outcomes == heard == [Outcome("run 0", "done", n_clips=3, warnings=("watch out",))]


def test_a_failure_does_not_stop_the_others(tmp_path):
    outcomes = execute(tasks(fail, succeed), settings_for(tmp_path, debug=True), tmp_path / "scratch", lambda _: None)
    assert [outcome.status for outcome in outcomes] == ["failed", "done"]
    assert outcomes[0].message == "run 0: the file is empty."


def test_stop_on_first_crash_leaves_the_rest_undone(tmp_path):
    settings = settings_for(tmp_path, debug=True, stop_on_first_crash=True)
    outcomes = execute(tasks(fail, succeed), settings, tmp_path / "scratch", lambda _: None)
    assert outcomes[0].message == "run 0: the file is empty."
    assert outcomes[1].status == "failed"
    assert "without a result" in outcomes[1].message


def test_a_killed_worker_loses_its_own_run_only(tmp_path):
    settings = settings_for(tmp_path, nprocs=2, omp_nthreads=1)
    outcomes = execute(tasks(succeed, die, succeed), settings, tmp_path / "scratch", lambda _: None)
    assert [outcome.status for outcome in outcomes] == ["done", "failed", "done"]
    assert "sub-01_task-rest: the worker ended without a result. It was killed (out of memory?)" in outcomes[1].message


def test_the_graph_is_written_with_or_without_graphviz(tmp_path):
    settings = settings_for(tmp_path, write_graph=True)
    (outcome,) = execute(tasks(succeed), settings, tmp_path / "scratch", lambda _: None)
    assert outcome.status == "done"
    assert list((tmp_path / "scratch").glob("graph*.dot"))


@pytest.mark.parametrize(("text", "fault"), [("plugin_args: {}", "names no plugin"), ("[", "cannot be read")])
def test_a_plugin_file_without_a_plugin_is_named(tmp_path, text, fault):
    file = tmp_path / "plugin.yml"
    file.write_text(text)
    with pytest.raises(PluginUnusable, match=fault) as caught:
        execute(tasks(succeed), settings_for(tmp_path, nipype_plugin_file=file), tmp_path / "scratch", lambda _: None)
    assert str(file) in str(caught.value)
