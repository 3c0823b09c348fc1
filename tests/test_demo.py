"""The demo: a simulated dataset through both levels, as a newcomer runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from neurostorm_bids import demo
from neurostorm_bids.outputs import read_tsv


def test_the_demo_runs_both_levels_and_says_where_to_look(tmp_path: Path, monkeypatch, capfd):
    monkeypatch.setattr(demo, "PLAN", demo.PLAN | {"n_subjects": 2, "n_volumes": 30})
    folder = tmp_path / "demo"
    assert demo.main([str(folder)]) == 0
    said = capfd.readouterr().out
    assert "3 runs done, 0 were there already, 0 failed, 0 rejected" in said
    table = said[said.index("Predicted from the images") :].splitlines()[1:5]
    scans = [("sub-01", "ses-1"), ("sub-02", "ses-1"), ("sub-02", "ses-2")]
    assert [tuple(line.split()[:2]) for line in table] == [("participant", "session"), *scans]
    assert "trained on simulated people alone" in said
    places = [line.strip() for line in said.splitlines() if line.startswith("  ") and str(folder) in line]
    assert len(places) == 3 and all(Path(place).is_file() for place in places)
    rows = read_tsv(folder / "neurostorm" / "phenotype" / "neurostorm_embeddings.tsv")
    assert [(row["participant_id"], row["session_id"]) for row in rows] == [
        ("sub-01", "ses-1"),
        ("sub-02", "ses-1"),
        ("sub-02", "ses-2"),
    ]
    assert len({row["demo_d000"] for row in rows}) == 3


def test_somebodys_folder_is_left_alone(tmp_path: Path, capsys):
    (tmp_path / "thesis.txt").write_text("x")
    assert demo.main([str(tmp_path)]) == 2
    assert "is not empty, and the demo did not make it" in capsys.readouterr().err
    assert demo.main([str(tmp_path / "thesis.txt")]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_failing_level_ends_the_demo_with_its_code(tmp_path: Path, monkeypatch, capfd):
    monkeypatch.setattr(demo, "simulate_dataset", lambda folder: None)
    monkeypatch.setattr(demo, "commands", lambda folder: [["neurostorm", "--nonsense"], ["neurostorm", "--version"]])
    assert demo.main([str(tmp_path / "nothing")]) == 2
    assert "--version" not in capfd.readouterr().out


def test_a_folder_that_the_demo_made_may_be_used_again(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(demo, "PLAN", demo.PLAN | {"n_subjects": 1, "n_volumes": 4, "spaces": ("MNI152NLin6Asym",)})
    demo.simulate_dataset(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    demo.simulate_dataset(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("argument", ["--help", "/proc/none"])
def test_arguments_are_read_before_anything_heavy_is_imported(argument: str):
    code = (
        "import sys\nfrom neurostorm_bids import demo\n"
        "demo.simulate_dataset = lambda folder: sys.exit(0)\n"
        f"try:\n    demo.main([{argument!r}])\nexcept SystemExit:\n    pass\n"
        "print('HEAVY', [name for name in ('torch', 'numpy', 'nibabel', 'nipype', 'bids') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("HEAVY []")
