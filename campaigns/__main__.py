"""Campaigns: python -m campaigns NAME [ARGUMENTS]; without a name they are listed.

A campaign is a module with ``main(arguments) -> int | Outcome``. It prints its seeds and what failed. Here it is
bounded in time, and its counts are written as JSON where ``--counts FILE`` (before the name) asks for them.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import importlib
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from campaigns.outcome import Outcome, TooLong

GRACE_S = 60  # from the limit to the end of a campaign that does not let itself be interrupted

# name: module, limit in seconds, what it is
CAMPAIGNS = {
    "bad-input": ("bad_input", 900, "defective datasets, models and options through the command line"),
    "fuzz": ("fuzz", 6000, "damaged and invented files through every reader"),
    "coverage": ("coverage", 7200, "lines and branches of the package that the tests run"),
    "mutation": ("mutation", 21600, "changes of the package that no test notices"),
    "faults": ("faults", 14400, "killed, full and broken disks at every write"),
    "kills": ("kills", 3600, "signals, killed workers and ranks, full disks, company, clocks"),
    "soak": ("soak", 3600, "many runs through one process; --mem beside what is taken"),
    "determinism": ("determinism", 1800, "the same bytes and embeddings whatever the workers, batches, threads"),
}


def main(words: Sequence[str] | None = None) -> int:
    """Run one campaign; returns 0 when nothing failed."""
    options = _parser().parse_args(words)
    if options.name is None:
        print("\n".join(f"{name:14}{text} (at most {limit} s)" for name, (_, limit, text) in CAMPAIGNS.items()))
        return 0
    module, limit_s, _ = CAMPAIGNS[options.name]
    limit_s = options.limit or limit_s
    start = time.monotonic()
    with bounded(limit_s):
        answer = importlib.import_module(f"campaigns.{module}").main(options.arguments)
    outcome = answer if isinstance(answer, Outcome) else Outcome.of_code(options.name, answer)
    for text in outcome.failures:
        print(f"FAILED {text}", flush=True)
    seconds = round(time.monotonic() - start, 1)
    print(f"{options.name}: {outcome.summary()}, {seconds} s", flush=True)
    if options.counts:
        options.counts.write_text(
            json.dumps({"campaign": options.name, "seconds": seconds, **asdict(outcome)}, indent=2)
        )
    return 1 if outcome.failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="campaigns", description=__doc__)
    parser.add_argument("--limit", type=int, metavar="SECONDS", help="instead of the campaign's own limit of time")
    parser.add_argument("--counts", type=Path, metavar="FILE", help="write the counts there, as JSON")
    parser.add_argument("name", nargs="?", choices=sorted(CAMPAIGNS))
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    return parser


@contextlib.contextmanager
def bounded(limit_s: int) -> Iterator[None]:
    """Raise TooLong after the limit; end the process where even that is not heard."""

    def stop(*_: object) -> None:
        raise TooLong(f"stopped after {limit_s} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(limit_s)
    faulthandler.dump_traceback_later(limit_s + GRACE_S, exit=True)
    try:
        yield
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    sys.exit(main())
