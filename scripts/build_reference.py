"""Write docs/reference.md from the parsers and the error classes; ``--check`` only compares.

python scripts/build_reference.py
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from neurostorm_bids import cli, errors, models_cli

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference.md"
CODES = {
    errors.OK: "everything asked for is there",
    errors.SOME_RUNS_FAILED: "some runs failed or were rejected, others succeeded; or a report could not be written",
    errors.USAGE: "the command line or a configuration file makes no sense",
    errors.INVALID_BIDS: "the raw dataset is not valid BIDS",
    errors.UNKNOWN_LEVEL: "unknown analysis level",
    errors.NOTHING_SELECTED: "the filters selected nothing",
    errors.NO_USABLE_RUN: "no run was usable",
    errors.NO_INPUT: "an input is missing: dataset, model, or tables to aggregate",
    errors.CANNOT_CREATE_OUTPUT: "output or work folder cannot be created or written, or belong to another program",
    errors.IO_ERROR: "reading or writing failed half-way",
    errors.TRY_AGAIN: "a temporary failure: try again",
}
INTRODUCTION = """# Reference of the command line

<!-- written by scripts/build_reference.py from the parsers: change those, then run it again -->

`-` and `_` are the same in the name of a flag: `--participant-label`, `--participant_label`. Every flag may stand in a
TOML file instead (`--config-file`), under its long name without the first dashes; the command line has precedence. Each
call leaves its settings in such a file, `sub-*/log/<call>/neurostorm.toml`.
"""

FILES = """## Files that options name

| option | file |
|---|---|
| `--splits` | a table as `evaluation/<name>/splits.tsv`: `fold` (may be missing), `participant_id`, `split` (`train`, `validation`, `test`) |
| `--atlas` | a 3D NIfTI image of whole numbers in the model's template, any resolution; beside it a `.tsv` of the same name with `index`, `name` and, if known, `network` |
| `--bids-filter-file` | JSON `{"bold": {"acquisition": "mb", "run": [1, 2], "echo": null}}`: `null` means absent, `"*"` any |
| `--use-plugin` | YAML or JSON: `plugin: NAME`, `plugin_args: {...}` of nipype |
| `--config-file` | TOML of long option names |

What the program writes: [outputs](outputs.md).
"""  # noqa: E501


def page() -> str:
    """The text of the page."""
    parts = [INTRODUCTION, "## neurostorm", "", "`neurostorm BIDS_DIR OUTPUT_DIR {participant,group} [options]`", ""]
    parser = cli.build_parser()
    parts += list(_groups(parser))
    parts += [FILES, "## neurostorm-models", ""]
    for name, command in _commands(models_cli.build_parser()):
        parts += [f"### neurostorm-models {name}", "", *_table(_own(command)), ""]
    parts += ["## neurostorm-demo", "", "`neurostorm-demo DIR`: simulates a small dataset in `DIR/fmriprep` and runs"]
    parts += ["both levels on it. `DIR` is a new folder, or one that the demo made.", ""]
    return "\n".join([*parts, *_exit_codes()])


def _groups(parser: argparse.ArgumentParser) -> Iterator[str]:
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
        actions = [action for action in actions if "--help" not in action.option_strings]
        if actions:
            yield f"### {(group.title or '').capitalize()}"
            yield ""
            yield from _table(actions)
            yield ""


def _own(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if "--help" not in action.option_strings]


def _commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def _table(actions: list[argparse.Action]) -> Iterator[str]:
    if not actions:
        yield "Takes nothing."
        return
    yield "| flag | value | default | does |"
    yield "|---|---|---|---|"
    for action in actions:
        names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.dest}`"
        yield f"| {names} | {_value(action)} | {_default(action)} | {_cell(action.help or '')} |"


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.choices:
        shown = ", ".join(f"`{choice}`" for choice in action.choices)
    elif isinstance(action.metavar, tuple):
        shown = f"`{' '.join(action.metavar)}`"
    else:
        shown = f"`{_cell(str(action.metavar or action.dest.upper()))}`"
    return f"{shown}, one or more" if action.nargs in ("+", "*") else shown


def _default(action: argparse.Action) -> str:
    default = action.default
    if action.nargs == 0 or default in (None, [], "", argparse.SUPPRESS) or not action.option_strings:
        return ""
    shown = " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
    return f"`{_cell(shown)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("%%", "%")


def _exit_codes() -> Iterator[str]:
    causes: dict[int, list[str]] = defaultdict(list)
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.NeurostormError):
            causes[kind.exit_code].append(name)
    yield "## Exit codes"
    yield ""
    yield "One error class a cause, in `neurostorm_bids.errors`; each names file, fault, expectation and remedy."
    yield ""
    yield "| code | means | errors |"
    yield "|---|---|---|"
    for code, meaning in CODES.items():
        yield f"| {code} | {meaning} | {', '.join(f'`{name}`' for name in sorted(causes[code]))} |"
    yield ""


def main(argv: list[str]) -> int:
    """Write the page, or with ``--check`` say whether it is as written; returns the exit code."""
    text = page()
    if "--check" in argv:
        return 0 if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
