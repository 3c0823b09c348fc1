"""Mutation testing: what of the package can be changed without a test that notices.

mutmut (``pip install mutmut``) changes one thing at a time in the functions of a group and runs, in a fork, the tests
that call the function, the nearest to it first; ``--tests`` bounds their number, so that fewer mutants are noticed.
``--folder`` keeps what was found: a later call goes on from there, and with ``--again`` tries what survived once more,
say after tests were added, or with all of them. ``--share`` takes a part: of each function the mutants whose
numbers end with digits that a seed draws; a larger share with the same seed holds the smaller one. Every survivor is
written to ``FOLDER/GROUP.survivors`` with what was changed. Counted apart is *wording*: a change in nothing but the
letters of an error's message.

Functions with decorators (properties, caches, context managers) and what runs on import have no mutants.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from campaigns.mutation_tests import LIMIT
from campaigns.outcome import Outcome

ROOT = Path(__file__).resolve().parents[1]
LEAST_PERCENT = 80
COPIED = ("tests", "campaigns", "benchmarks", "docs", "data", "README.md")  # what tests read beside the package
SURVIVED, UNTRIED = (0, 5, 33), (None, 2, 34)  # exit codes, as mutmut keeps them; 33: no test calls the function
TIMES_OUT = (24, -24, 36, 152, 255)


@dataclass(frozen=True)
class Group:
    """What is changed, and the tests that should notice."""

    name: str
    sources: tuple[str, ...]
    tests: tuple[str, ...]


GROUPS = (
    Group("splits", ("training/splits.py",), ("test_splits.py",)),
    Group("space", ("space/*",), ("test_space_*.py", "test_quality.py")),
    Group("clips", ("clips/*",), ("test_clips*.py",)),
    Group("inputs", ("inputs/*",), ("test_inputs_*.py", "test_motion.py")),
    Group("outputs", ("outputs/*",), ("test_outputs.py",)),
)


@dataclass(frozen=True)
class Mutant:
    """One change, and how the tests ended with it."""

    name: str
    file: str
    code: int | None
    before: str
    after: str

    @property
    def survived(self) -> bool:
        """Whether no test noticed."""
        return self.code in SURVIVED

    @property
    def tried(self) -> bool:
        """Whether the tests were run, or none calls the function."""
        return self.code not in UNTRIED

    @property
    def wording(self) -> bool:
        """Whether nothing but the letters of an error's message, or the case of an encoding's name, changed."""
        return silenced(self.before) == silenced(self.after)

    def shown(self) -> str:
        """The change, with a line around it."""
        lines = difflib.unified_diff(self.before.splitlines(), self.after.splitlines(), n=1, lineterm="")
        kept = [line for line in lines if not line.startswith(("---", "+++", "@@"))]
        untested = "; no test calls the function" if self.code == 33 else ""
        return "\n".join([f"# {self.name}{untested}", *kept])


def main(arguments: Sequence[str] = ()) -> Outcome:
    """Run the campaign; fails where fewer than the least were noticed."""
    options = _parser().parse_args(list(arguments))
    if importlib.util.find_spec("mutmut") is None:
        return Outcome(failures=("mutmut is not installed: pip install mutmut",))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that mutmut is ended as well
    groups = [group for group in GROUPS if group.name in options.group]
    with tempfile.TemporaryDirectory(prefix="neurostorm-mutation-") as name:
        kept = (options.folder or Path(name)).resolve()
        told = [_tried(group, kept, options) for group in groups]
    return Outcome(
        {f"{group.name}: {key}": value for group, (counts, _) in zip(groups, told, strict=True)
         for key, value in counts.items()},
        tuple(failure for _, failures in told for failure in failures),
    )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    names = [group.name for group in GROUPS]
    parser = argparse.ArgumentParser(prog="mutation", description=__doc__)
    parser.add_argument("--group", nargs="+", choices=names, default=names)
    parser.add_argument("--folder", type=Path, help="where results are kept, for the next call to go on")
    parser.add_argument("--minutes", type=float, default=60, help="at most for a group (default 60)")
    parser.add_argument("--processes", type=int, default=1, help="mutants that are tried at the same time (default 1)")
    parser.add_argument("--share", type=float, default=1.0, help="of the mutants, in tenths (default 1.0)")
    parser.add_argument("--seed", type=int, default=1, help="that draws the share (default 1)")
    parser.add_argument("--tests", type=int, help="at most for a mutant, the nearest to it (default all that call it)")
    parser.add_argument("--again", action="store_true", help="try what survived or took too long once more")
    parser.add_argument("--least", type=float, default=LEAST_PERCENT, help=f"percent (default {LEAST_PERCENT})")
    return parser


def _tried(group: Group, kept: Path, options: argparse.Namespace) -> tuple[dict[str, int], list[str]]:
    folder = kept / group.name
    _lay_out(group, folder)
    names = _names(folder, options)
    if names is not None:
        _mutmut(folder, names, options)
    found = list(mutants(folder))
    survivors = [mutant for mutant in found if mutant.survived]
    listed = [mutant.shown() for mutant in sorted(survivors, key=lambda one: (one.wording, one.file, one.name))]
    (kept / f"{group.name}.survivors").write_text("\n\n".join(listed) + "\n")
    counts = _counts(found)
    _print(group, found, counts)
    if not counts["tried"]:
        return counts, [f"{group.name}: mutmut tried nothing; see {folder / 'said'}"]
    percent = 100 * counts["noticed"] / counts["tried"]
    low = [f"{group.name}: {percent:.1f} % noticed, {options.least} % are promised"] if percent < options.least else []
    return counts, low


def _names(folder: Path, options: argparse.Namespace) -> list[str] | None:
    """What mutmut is to try, as names or patterns: an empty list for all that was not tried, None for nothing."""
    known = list(mutants(folder))
    if options.again:
        return [mutant.name for mutant in known if mutant.survived or mutant.code in TIMES_OUT] or None
    digits = random.Random(options.seed).sample("0123456789", 10)[: round(10 * options.share)]
    if len(digits) == 10:
        return []
    print(f"  numbers that end with {', '.join(sorted(digits))} (seed {options.seed})", flush=True)
    if not known:
        return [f"*__mutmut_*{digit}" for digit in digits]
    return [mutant.name for mutant in known if mutant.name[-1] in digits and not mutant.tried] or None


def _lay_out(group: Group, folder: Path) -> None:
    """A copy of the checkout that mutmut may work in."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("neurostorm_bids", *COPIED):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy2(source, folder / name)
    tests = sorted(path for pattern in group.tests for path in (ROOT / "tests").glob(pattern))
    settings = {
        "source_paths": ["neurostorm_bids"],
        "only_mutate": [f"neurostorm_bids/{source}" for source in group.sources],
        "pytest_add_cli_args_test_selection": [f"tests/{path.name}" for path in tests],
        "pytest_add_cli_args": ["-p", "no:cacheprovider", "-p", "no:xdist", "-p", "campaigns.mutation_tests"],
        "also_copy": [name for name in COPIED if (ROOT / name).exists()],
        # forks come from a process in which no test ran: nothing that the sound code computed is kept in them
        "process_isolation": "forkserver",
        "use_git_change_detection": False,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    own = (ROOT / "pyproject.toml").read_text()
    (folder / "pyproject.toml").write_text("\n".join([own, "[tool.mutmut]", *lines]) + "\n")


def _mutmut(folder: Path, names: Sequence[str], options: argparse.Namespace) -> None:
    """Let it run, at most for the minutes that were given; results are kept as they come."""
    environment = {
        **os.environ,
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
        "NEUROSTORM_SHARED": os.environ.get("NEUROSTORM_SHARED", str(ROOT.parent / "shared")),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(folder / "hypothesis"),
        LIMIT: str(options.tests or ""),
    }
    environment.pop("PYTHONPATH", None)  # the package is to be imported from the copy
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(options.processes), *names]
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=said, stderr=said, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(60 * options.minutes)
        except subprocess.TimeoutExpired:
            print(f"  stopped after {options.minutes:g} minutes; a later call goes on", flush=True)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


# --- what came of it ------------------------------------------------------------------------------------------------


def mutants(folder: Path) -> Iterator[Mutant]:
    """What mutmut made and tried below a folder."""
    for path in sorted((folder / "mutants").rglob("*.py.meta")):
        codes = json.loads(path.read_text())["exit_code_by_key"]
        source = path.with_suffix("")
        functions = _functions(source) if codes else {}
        for name, code in codes.items():
            changed = name.rsplit(".", 1)[-1]
            whole = changed.rsplit("__mutmut_", 1)[0] + "__mutmut_orig"
            file = source.relative_to(folder / "mutants").as_posix()
            yield Mutant(name, file, code, _text(functions[whole]), _text(functions[changed]))


def _functions(path: Path) -> dict[str, ast.FunctionDef]:
    tree = ast.parse(path.read_text())
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def _text(function: ast.FunctionDef) -> str:
    """The source of a function, whatever its name."""
    function.name, function.decorator_list = "f", []
    return ast.unparse(function)


class _Silence(ast.NodeTransformer):
    """Takes the letters out of messages of errors."""

    def __init__(self) -> None:
        import neurostorm_bids.errors

        self._errors = {name for name, value in vars(neurostorm_bids.errors).items() if isinstance(value, type)}

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """A call of an error's class."""
        return _blank(node) if getattr(node.func, "id", None) in self._errors else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        """What is raised, by whatever function it is made."""
        return _blank(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        """Python's names of encodings have no case."""
        if isinstance(node.value, str) and node.value.lower() in ("utf-8", "ascii", "latin-1"):
            return ast.Constant(node.value.lower())
        return node


def _blank(node: ast.AST) -> ast.AST:
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            part.value = ""
    return node


def silenced(source: str) -> str:
    """A function's source without the letters of its errors' messages.

    >>> one, other = "raise A('no', file=path)", "raise A('NO', file=path)"
    >>> silenced(one) == silenced(other), silenced(one) == silenced("raise A('no', file=None)")
    (True, False)
    """
    return ast.unparse(_Silence().visit(ast.parse(source)))


def _counts(found: Sequence[Mutant]) -> dict[str, int]:
    tried = [mutant for mutant in found if mutant.tried]
    behaviour = [mutant for mutant in tried if not mutant.wording]
    return {
        "mutants": len(found),
        "tried": len(behaviour),
        "noticed": sum(not mutant.survived for mutant in behaviour),
        "too long": sum(mutant.code in TIMES_OUT for mutant in behaviour),
        "wording": len(tried) - len(behaviour),
        "wording noticed": sum(not mutant.survived for mutant in tried if mutant.wording),
    }


def _print(group: Group, found: Sequence[Mutant], counts: dict[str, int]) -> None:
    print(f"{group.name}: " + ", ".join(f"{value} {key}" for key, value in counts.items()))
    behaviour = [mutant for mutant in found if mutant.tried and not mutant.wording]
    tried = Counter(mutant.file for mutant in behaviour)
    survived = Counter(mutant.file for mutant in behaviour if mutant.survived)
    for file, n in tried.items():
        print(f"  {100 * (n - survived[file]) / n:5.1f} % of {n:4}  {file}", flush=True)
