"""Line and branch coverage of the package by the default tests; fails below the least that is promised."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from campaigns.outcome import Outcome

LEAST_PERCENT = 92
SHOWN = 15


def main(arguments: Sequence[str] = ()) -> Outcome:
    """Run the tests under coverage; words that are no options go to pytest."""
    options, words = _parser().parse_known_args(list(arguments))
    with tempfile.TemporaryDirectory(prefix="neurostorm-coverage-") as name:
        measured = _measured(Path(name), words)
    if measured is None:
        return Outcome(failures=("the tests failed; nothing was measured",))
    percent = measured["totals"]["percent_covered"]
    files = sorted(measured["files"].items(), key=lambda one: -_missing(one[1]["summary"]))
    for path, content in files[:SHOWN]:
        summary = content["summary"]
        print(f"{summary['percent_covered']:6.1f} %  {_missing(summary):4} lines and branches not run  {path}")
    counts = {"percent": round(percent, 2), "files": len(files), "least": options.least}
    low = (
        () if percent >= options.least else (f"{percent:.2f} % of lines and branches, {options.least} % are promised",)
    )
    print(f"coverage: {percent:.2f} % of lines and branches", flush=True)
    return Outcome(dict(counts), low)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="coverage", description=__doc__)
    parser.add_argument("--least", type=float, default=LEAST_PERCENT, help=f"percent (default {LEAST_PERCENT})")
    return parser


def _missing(summary: dict[str, int]) -> int:
    return summary["missing_lines"] + summary["missing_branches"]


def _measured(folder: Path, words: Sequence[str]) -> dict | None:
    """What coverage.py reports of the package; processes that the tests start are measured too."""
    environment = {**os.environ, "COVERAGE_FILE": str(folder / "data"), "COVERAGE_PROCESS_START": str(folder / "rc")}
    (folder / "rc").write_text("[run]\nbranch = True\nparallel = True\nsource = neurostorm_bids\nsigterm = True\n")

    def run(*command: str) -> int:
        return subprocess.run([sys.executable, "-m", "coverage", *command], env=environment, check=False).returncode

    ended = run("run", f"--rcfile={folder / 'rc'}", "-m", "pytest", "-q", "-p", "no:cacheprovider", *words)
    if ended:
        return None
    run("combine", "-q")
    run("json", "-q", "-o", str(folder / "report.json"))
    return json.loads((folder / "report.json").read_text())
