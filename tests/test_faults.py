"""Full and broken disks: what is told, what is left, and what the next call does; see campaigns/faults.py too."""

from __future__ import annotations

import errno
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from test_workflow import settings_for, succeed, tasks

from neurostorm_bids import cli, learn, workflow
from neurostorm_bids.errors import OutputNotWritable, OutputWriteFailed, ResumeImpossible, Stopped
from neurostorm_bids.inputs.runs import BoldRun
from neurostorm_bids.model.config import InputSpec
from neurostorm_bids.replacing import replacing
from neurostorm_bids.stored import store_runs
from neurostorm_bids.training import course
from neurostorm_bids.training.checkpoints import AtomicCheckpoints


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def failing(code: int, *, name: str | None = None):
    def fail(*_arguments, **_named):
        raise OSError(code, os.strerror(code), name)

    return fail


@pytest.mark.parametrize(
    ("code", "kind", "exit_code"),
    [(errno.ENOSPC, OutputWriteFailed, 74), (errno.EIO, OutputWriteFailed, 74), (errno.EACCES, OutputNotWritable, 73)],
)
def test_a_full_disk_is_told_from_a_folder_of_others(tmp_path, monkeypatch, code, kind, exit_code):
    monkeypatch.setattr(Path, "mkdir", failing(code))
    with pytest.raises(kind, match=os.strerror(code)) as caught, replacing(tmp_path / "new" / "file"):
        pass
    assert caught.value.exit_code == exit_code and caught.value.remedy


def test_a_partial_file_that_cannot_be_removed_does_not_spoil_the_whole_one(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "unlink", failing(errno.EIO))
    with replacing(tmp_path / "file") as handle:
        handle.write(b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole"


def test_a_work_folder_that_is_full_fails_the_runs_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(workflow, "_configure_nipype", failing(errno.ENOSPC, name=str(tmp_path / "crash")))
    said = []
    outcomes = workflow.execute(tasks(succeed, succeed), settings_for(tmp_path), tmp_path / "call", said.append)
    assert [outcome.status for outcome in outcomes] == ["failed", "failed"] and said == outcomes
    for outcome in outcomes:
        assert outcome.message.startswith(f"{outcome.run}: {tmp_path / 'call'}: the work folder cannot be used")
        assert "No space left on device" in outcome.message and "--work-dir" in outcome.message


def test_an_outcome_that_cannot_be_stored_is_not_taken_for_a_killed_worker(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "replace", failing(errno.EIO))
    (outcome,) = workflow.execute(
        tasks(succeed), settings_for(tmp_path, stop_on_first_crash=True), tmp_path / "call", lambda outcome: None
    )
    assert outcome.status == "failed"
    assert "Input/output error" in outcome.message and "killed" not in outcome.message


def test_no_traceback_of_a_disk_reaches_a_user(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("neurostorm_bids.participant.run_participant", failing(errno.EIO))
    words = [str(tmp_path / "in"), str(tmp_path / "out"), "participant", "-w", str(tmp_path / "work")]
    assert cli.main(words) == 74
    said = capsys.readouterr().err
    assert said.startswith(f"neurostorm: {tmp_path / 'out'} or {tmp_path / 'work'}: cannot be read or written (Input/")
    assert "run again" in said


def test_a_point_of_resume_that_torch_cannot_write_names_the_file(tmp_path, monkeypatch):
    def full(_content, handle):
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            raise RuntimeError("unexpected pos 64 vs 0")  # as torch's writer does on its way out

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputWriteFailed, match=r"last\.ckpt: cannot be written \(No space left on device\)"):
        AtomicCheckpoints().save_checkpoint({}, tmp_path / "last.ckpt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OutputWriteFailed("cannot be written"), OutputNotWritable("cannot be written")])
def test_nothing_is_trained_without_a_run_that_only_the_disk_refused(tmp_path, monkeypatch, error):
    def refuse(*_arguments):
        raise error.__class__("cannot be written")

    monkeypatch.setattr("neurostorm_bids.stored.key_of", refuse)
    run = object.__new__(BoldRun)
    with pytest.raises(type(error)):
        store_runs([run], "set", InputSpec(), settings_for(tmp_path))


def test_what_a_fold_was_tested_on_is_kept_for_this_training_alone(tmp_path):
    place = learn.Place(state=tmp_path / "state", logs=tmp_path / "logs", identity="one")
    assert learn._Tested.kept(place) is None
    target = learn.Target("sex", "classification", classes=("F", "M"), temperature=1.5)
    clips = (learn.ClipOutput("01", "run", 3, "F", np.array([0.5], np.float32)),)
    learn._Tested(target, clips).keep(place)
    kept = learn._Tested.kept(place)
    assert kept is not None and kept.target == target
    assert (kept.test[0].run, kept.test[0].first_frame, kept.test[0].truth) == ("run", 3, "F")
    assert np.array_equal(kept.test[0].outputs, clips[0].outputs) and kept.test[0].outputs.dtype == np.float32
    assert learn._Tested.kept(learn.replace(place, identity="another")) is None


@pytest.mark.parametrize("content", [b"", b"no archive", "half"])
def test_a_damaged_record_of_what_a_fold_was_tested_on_is_named(tmp_path, content):
    place = learn.Place(state=tmp_path / "state", logs=tmp_path / "logs", identity="one")
    learn._Tested(learn.Target("age", "regression"), ()).keep(place)
    path = place.logs / learn.TESTED
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(ResumeImpossible, match=r"(?s)tested\.pt: .*cannot be read.*Remove the model of that fold"):
        learn._Tested.kept(place)


@pytest.mark.parametrize(
    ("number", "word", "code"), [(signal.SIGTERM, "terminated", 143), (signal.SIGINT, "interrupted", 130)]
)
def test_signals_end_the_program_in_order(tmp_path, monkeypatch, capsys, number, word, code):
    monkeypatch.setattr("neurostorm_bids.participant.run_participant", lambda *_: signal.raise_signal(number))
    before = signal.getsignal(number)
    words = [str(tmp_path / "in"), str(tmp_path / "out"), "participant", "-w", str(tmp_path / "work")]
    assert cli.main(words) == code
    assert capsys.readouterr().err == f"neurostorm: {word}; the same command resumes where it stopped.\n"
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["participant"], "the same command resumes where it stopped"),
        (["group", "--group-workflow", "pretrain"], "the same command with --resume resumes where it stopped"),
        (["group", "--group-workflow", "finetune", "--resume"], "the same command resumes where it stopped"),
        (["group", "--group-workflow", "evaluate"], "the same command does it again from its start"),
    ],
)
def test_an_interrupted_command_says_how_to_go_on(words, said):
    assert cli._how_to_go_on(words) == said


def test_workers_end_with_the_program(tmp_path, monkeypatch):
    from nipype.pipeline.engine import Workflow

    stopped = []
    monkeypatch.setattr(Workflow, "run", lambda *_, **__: (_ for _ in ()).throw(Stopped("terminated", 143)))
    monkeypatch.setattr("neurostorm_bids.multiproc.SurvivingMultiProc.stop", lambda self: stopped.append(self))
    with pytest.raises(Stopped):
        workflow.execute(tasks(succeed, succeed), settings_for(tmp_path), tmp_path / "call", lambda outcome: None)
    assert len(stopped) == 1


def test_a_logger_whose_disk_is_full_prints_no_traceback(monkeypatch):
    said = []
    monkeypatch.setattr(threading, "excepthook", lambda fault: said.append(str(fault.exc_value)))
    with course._disk_faults_told_once():
        for error in (OSError(errno.ENOSPC, "full"), ValueError("another")):
            thread = threading.Thread(target=lambda error=error: (_ for _ in ()).throw(error))
            thread.start()
            thread.join()
    assert said == ["another"]
