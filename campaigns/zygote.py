"""A process that has imported the program already, and makes of itself one call after another, each with a fault.

``Zygote`` is what a campaign holds; ``python -m campaigns.zygote`` is the other end, which runs under the shim.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
IMPORTS = (
    "neurostorm_bids.participant",
    "neurostorm_bids.group",
    "neurostorm_bids.aggregate",
    "neurostorm_bids.learn",
    "neurostorm_bids.models_cli",
    "neurostorm_bids.report.participant",
    "nipype.pipeline.engine",
    "nipype.pipeline.plugins.linear",
)

PIPE = 60_000  # bytes that a pipe takes before anybody reads


@dataclass(frozen=True)
class Ended:
    """How a call ended; ``code`` is the exit code, or the negative number of the signal that killed it."""

    code: int
    said: str
    passed: int
    seconds: float


class Zygote:
    """Runs command lines of the program, each in a fork of one process that did the imports."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        shim = compile_shim(scratch)
        environment = {
            **os.environ,
            "LD_PRELOAD": str(shim),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{HERE.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            # caches of libraries are the user's, and out of the folders that are watched
            **{name: str(scratch / "caches" / name) for name in ("MPLCONFIGDIR", "NIPYPE_CONFIG_DIR", "TORCH_HOME")},
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "campaigns.zygote", str(shim)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=scratch,
        )  # fmt: skip

    def call(
        self, argv: Sequence[str], *, how: str = "count", at: int = 0, roots: Sequence[Path] = (),
        log: Path | None = None, limit_s: float = 180,
    ) -> Ended:  # fmt: skip
        """Run ``neurostorm ARGV``, with the fault ``how`` at the boundary ``at`` below ``roots``."""
        said = self.scratch / "said"
        order = {
            "argv": list(argv), "how": how, "at": at, "roots": ":".join(map(str, roots)), "log": str(log or ""),
            "said": str(said), "limit_s": limit_s,
        }  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return Ended(answer["code"], said.read_text(errors="replace"), answer["passed"], answer["seconds"])

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()


def compile_shim(scratch: Path) -> Path:
    """The shim as a library below ``scratch``."""
    library = scratch / "fault_shim.so"
    command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O1", "-o", str(library), str(HERE / "fault_shim.c")]
    subprocess.run([*command, "-ldl"], check=True)
    return library


# --- the other end --------------------------------------------------------------------------------------------------


def serve(shim: str) -> None:
    """Answer orders, a line each, until there are no more."""
    library = ctypes.CDLL(shim)
    os.environ.pop("LD_PRELOAD", None)  # not for what the calls start
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for module in IMPORTS:
        importlib.import_module(module)
    _read_what_never_changes()
    for line in sys.stdin:
        answers.write(json.dumps(_obey(json.loads(line), library)) + "\n")
        answers.flush()


def _read_what_never_changes() -> None:
    """The grammar of names and the templates of pages: half of what a small call costs, no part of what is tried."""
    from neurostorm_bids.inputs.names import grammar
    from neurostorm_bids.report.page import _environment

    grammar()
    for template in ("participant.html", "group.html"):
        _environment().get_template(template)


def _obey(order: dict, library: ctypes.CDLL) -> dict:
    started = time.monotonic()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setpgid(0, 0)
        _call(order, library, writing)
    os.close(writing)
    code = _waited(child, order["limit_s"])
    with os.fdopen(reading) as told:
        passed, *modules = told.read().split() or ["-1"]
    for module in modules:  # what this call imported, the next ones find imported
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    return {"code": code, "passed": int(passed), "seconds": round(time.monotonic() - started, 3)}


def _waited(child: int, limit_s: float) -> int:
    descriptor = os.pidfd_open(child)
    if not select.select([descriptor], [], [], limit_s)[0]:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    os.close(descriptor)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _call(order: dict, library: ctypes.CDLL, counts: int) -> None:
    """In the fork: never returns."""
    said = os.open(order["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(said, 1)
    os.dup2(said, 2)
    code, known = 70, set(sys.modules)
    try:
        from neurostorm_bids.cli import main

        library.fault_arm(
            order["how"].encode(), ctypes.c_long(order["at"]), order["roots"].encode(), order["log"].encode()
        )
        code = main(order["argv"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    library.fault_passed.restype = ctypes.c_long
    sys.stdout.flush()
    sys.stderr.flush()
    new = sorted(sys.modules.keys() - known) if order["how"] == "count" else []
    os.write(counts, " ".join([str(library.fault_passed()), *new]).encode()[:PIPE])
    os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
