"""What a user sees while runs are processed and at the end: a bar or plain lines, then a summary."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from neurostorm_bids.errors import NeurostormError
from neurostorm_bids.workflow import Outcome

MOST_NAMED = 3  # files of one kind that the summary names


class Progress(AbstractContextManager["Progress"]):
    """One line a run as it ends, with the estimated end; on a terminal also one bar for the dataset.

    Parameters
    ----------
    total : int
        Runs to process.
    quiet : bool
        Say nothing.
    stream : TextIO
        Where lines and bar go.
    """

    def __init__(self, total: int, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._total, self._quiet, self._stream = total, quiet, stream or sys.stderr
        self._started, self._number = time.monotonic(), 0
        self._bar: tqdm | None = None
        if not quiet and self._stream.isatty():
            self._bar = tqdm(total=total, unit="run", file=self._stream, dynamic_ncols=True, leave=False)

    def say(self, line: str) -> None:
        """A line of its own, above the bar where there is one."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            print(line, file=self._stream, flush=True)

    def ended(self, outcome: Outcome) -> None:
        """Tell how a run ended."""
        self._number += 1
        self.say(progress_line(outcome, self._number, self._total, time.monotonic() - self._started))
        if self._bar is not None:
            self._bar.update()

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def progress_line(outcome: Outcome, number: int, total: int, elapsed_s: float, now: datetime | None = None) -> str:
    """One line a run: place, name, how it ended, and when the rest will be done."""
    left_s = elapsed_s / number * (total - number)
    end = (now or datetime.now()) + timedelta(seconds=left_s)
    tail = f"; about {duration(left_s)} left, until {end:%H:%M}" if number < total else ""
    if outcome.status == "failed":
        return f"[{number}/{total}] {outcome.run}: FAILED: {outcome.message}{tail}"
    warnings = "".join(f"\n    warning: {warning}" for warning in outcome.warnings)
    return f"[{number}/{total}] {outcome.run}: {outcome.n_clips} clips in {outcome.seconds:.1f} s{tail}{warnings}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, as one would say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# --- the end ----------------------------------------------------------------------------------------------------


def summary(
    outcomes: Sequence[Outcome],
    rejected: Sequence[NeurostormError],
    output_dir: Path,
    seconds: float,
    faults: Sequence[str] = (),
) -> str:
    """The last lines of a call: counts, a table with times and places to look, then every fault by name.

    Parameters
    ----------
    outcomes : sequence of Outcome
    rejected : sequence of NeurostormError
        Inputs that no run could be made of.
    output_dir : Path
    seconds : float
        Of the whole call.
    faults : sequence of str
        Reports that could not be written, or tell of damaged results.
    """
    of = {status: [one for one in outcomes if one.status == status] for status in ("done", "skipped", "failed")}
    lines = [
        f"{len(of['done'])} runs done, {len(of['skipped'])} were there already, {len(of['failed'])} failed, "
        f"{len(rejected)} rejected. Results: {output_dir}"
    ]
    lines += _table(of, rejected, output_dir, seconds)
    lines += [f"rejected: {error}" for error in rejected]
    lines += [f"report: {fault}" for fault in faults]
    for outcome in of["failed"]:
        where = f" (details: {outcome.crash_file})" if outcome.crash_file else ""
        lines.append(f"failed: {outcome.message}{where}")
    return "\n".join(lines)


def _table(
    of: dict[str, list[Outcome]], rejected: Sequence[NeurostormError], output_dir: Path, seconds: float
) -> list[str]:
    rows = [("", "runs", "seconds", "where to look")]
    for status in ("done", "skipped"):
        rows.append((status, str(len(of[status])), _seconds(of[status]), _named(_reports(of[status], output_dir))))
    crashes = [outcome.crash_file for outcome in of["failed"] if outcome.crash_file]
    rows.append(("failed", str(len(of["failed"])), _seconds(of["failed"]), _named(crashes)))
    rows.append(("rejected", str(len(rejected)), "", "below" if rejected else ""))
    n_all = sum(map(len, of.values())) + len(rejected)
    rows.append(("all", str(n_all), f"{seconds:.1f}", str(output_dir / "README.md")))
    return [f"{name:<8} {n:>6} {time_s:>8}  {where}".rstrip() for name, n, time_s, where in rows]


def _seconds(outcomes: Sequence[Outcome]) -> str:
    total = sum(outcome.seconds for outcome in outcomes)
    return f"{total:.1f}" if total else ""


def _reports(outcomes: Sequence[Outcome], output_dir: Path) -> list[str]:
    labels = dict.fromkeys(outcome.run.split("_")[0] for outcome in outcomes)
    return [str(path) for label in labels if (path := output_dir / f"{label}.html").is_file()]


def _named(files: Sequence[str]) -> str:
    more = f" and {len(files) - MOST_NAMED} more" if len(files) > MOST_NAMED else ""
    return ", ".join(files[:MOST_NAMED]) + more
