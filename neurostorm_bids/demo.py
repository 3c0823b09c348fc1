"""``neurostorm-demo DIR``: simulate a small dataset, run participant and group level on it, say where to look."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from neurostorm_bids.errors import NeurostormError, OutputNotWritable, UsageError

# four participants, every second one with two sessions, in both of the usual template spaces; TR and voxel size differ
# from the model's, so that resampling in space and time is part of what is shown. None of them was trained on
PLAN = {
    "n_subjects": 4,
    "sessions": (1, 2),
    "spaces": ("MNI152NLin6Asym", "MNI152NLin2009cAsym"),
    "zoom_mm": 4.0,
    "n_volumes": 60,
    "t_r_s": 2.0,
    "n_dummies": 2,
    "seed": 1,
}
TARGETS = ("age", "sex", "diagnosis")  # a bundled pack each
MARK = "code/simulation.json"  # written by the simulation: tells a demo folder from somebody's data


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``neurostorm-demo``; returns the exit code of the level that failed, or 0."""
    parser = argparse.ArgumentParser(
        prog="neurostorm-demo",
        description="Simulate a small fMRIPrep dataset in DIR/fmriprep and run neurostorm on it with the bundled demo "
        "model. Needs no network and no data; takes about a minute.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="a new folder, or one that the demo made before")
    try:
        return run_demo(parser.parse_args(argv).folder.absolute())
    except NeurostormError as error:
        print(f"neurostorm-demo: {error}", file=sys.stderr)
        return error.exit_code


def run_demo(folder: Path) -> int:
    """Simulate, run both levels, print where the results are; returns the exit code.

    Raises
    ------
    UsageError
        The folder holds something that the demo did not make.
    OutputNotWritable
        The folder cannot be created.
    """
    started = time.monotonic()
    simulate_dataset(folder)
    _say(f"Simulated in {time.monotonic() - started:.0f} s. What runs now is what you would type for your own data:")
    for command in commands(folder):
        _say(f"\n$ {shlex.join(command)}")
        code = subprocess.run([sys.executable, "-m", "neurostorm_bids", *command[1:]], check=False).returncode
        if code:
            return code
    _say(_where_to_look(folder, time.monotonic() - started))
    return 0


def simulate_dataset(folder: Path) -> None:
    """Simulate the demo's input in ``folder/fmriprep``."""
    root = folder / "fmriprep"
    if folder.exists() and not (folder.is_dir() and (_is_empty(folder) or (root / MARK).is_file())):
        raise UsageError(
            "is not empty, and the demo did not make it",
            file=folder,
            expected="a new folder, or one that neurostorm-demo made",
            remedy="name another folder",
        )
    _say(f"Simulating an fMRIPrep dataset of {PLAN['n_subjects']} participants in {root} ...")
    from neurostorm_bids import simulate  # heavy: not before the arguments were checked

    try:
        simulate.write_dataset(root, effects=simulate.DEMO_EFFECTS, **PLAN)
    except OSError as error:
        raise OutputNotWritable(
            f"cannot be written ({error.strerror or error})", file=folder, remedy="name a folder that you may write"
        ) from error


def _is_empty(folder: Path) -> bool:
    return next(folder.iterdir(), None) is None


def commands(folder: Path) -> list[list[str]]:
    """The calls of ``neurostorm`` that the demo makes."""
    places = [str(folder / "fmriprep"), str(folder / "neurostorm")]
    work = ["--work-dir", str(folder / "work")]
    packs = [f"demo-{target}" for target in TARGETS]
    return [
        ["neurostorm", *places, "participant", "--model", "demo", "--packs", *packs, "--offline", *work],
        ["neurostorm", *places, "group", "--group-workflow", "aggregate", *work],
    ]


def _where_to_look(folder: Path, seconds: float) -> str:
    results = folder / "neurostorm"
    table = min(results.glob("sub-*/**/*_embedding.tsv"))
    report = results / f"{table.relative_to(results).parts[0]}.html"
    lines = [
        f"\nDone in {seconds:.0f} s. Where to look:",
        f"  {report}\n      the report of one participant: open it in a browser. group.html beside it is that of all",
        f"  {table}\n      the embedding of one run, a row per clip; the .json beside it says how it was made",
        f"  {results / 'phenotype' / 'neurostorm_predictions.tsv'}\n      a row per participant and session",
        "\nPredicted from the images (and, in brackets, what was simulated):",
        *beside_the_truth(folder),
        "The demo model was trained on simulated people alone: of real ones its numbers say nothing.",
    ]
    return "\n".join(lines)


def beside_the_truth(folder: Path) -> list[str]:
    """Lines of a table: what the group level predicts of each participant and session, and what was simulated."""
    from neurostorm_bids.outputs import read_tsv

    truth = {row["participant_id"]: row for row in read_tsv(folder / "fmriprep" / "participants.tsv")}
    lines: list[tuple[str, ...]] = [("participant", "session", *TARGETS)]
    for row in read_tsv(folder / "neurostorm" / "phenotype" / "neurostorm_predictions.tsv"):
        person = row["participant_id"]
        cells = [f"{_short(row[f'demo_{target}'])} ({_short(truth[person][target])})" for target in TARGETS]
        lines.append((str(person), str(row["session_id"]), *cells))
    return ["  " + "".join(f"{cell:<18}" for cell in line).rstrip() for line in lines]


def _short(cell: str | None) -> str:
    """A class as it is, a number to the unit."""
    try:
        return f"{float(str(cell)):.0f}"
    except ValueError:
        return str(cell)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
