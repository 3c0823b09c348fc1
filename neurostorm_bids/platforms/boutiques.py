"""The Boutiques descriptor, made of the parser, so that every option is described once.

python -m neurostorm_bids.platforms.boutiques > boutiques.json
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neurostorm_bids import cli

SCHEMA_VERSION = "0.5"
TOOL_VERSION = "0.1.0"  # of the release; a development version would change the file with every commit
LEVELS = ("participant", "group")
MADE_BY_THE_TOOL = ("output_dir", "work_dir", "bids_database_dir")  # paths that need not exist: text, not files
NOT_OPTIONS = ("help", "version")

# what a value is, by the function that reads it
TYPES: dict[Any, dict[str, Any]] = {
    None: {"type": "String"},
    Path: {"type": "File"},
    int: {"type": "Number", "integer": True},
    cli._positive: {"type": "Number", "integer": True, "minimum": 1},
    cli._count: {"type": "Number", "integer": True, "minimum": 0},
    cli._positive_float: {"type": "Number", "minimum": 0, "exclusive-minimum": True},
    cli._share: {"type": "Number", "minimum": 0, "maximum": 1},
    cli._auto_or_count: {"type": "String"},
    cli._named_path: {"type": "String"},
    cli._scaler: {"type": "String"},
    cli._megabytes: {"type": "String"},
}
EXIT_CODES = {
    1: "some runs failed or were rejected, others succeeded",
    2: "the command line or a configuration file makes no sense",
    16: "the raw dataset is not valid BIDS",
    17: "unknown analysis level",
    18: "the filters selected nothing",
    65: "no run was usable",
    66: "an input is missing: dataset, model, or tables to aggregate",
    73: "the output or work folder cannot be created or written, or belongs to another program",
    74: "reading or writing failed half-way",
    75: "a temporary failure: try again",
}


def descriptor(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """The descriptor of the program that ``parser`` reads the arguments of."""
    actions = list(_actions(parser))
    return {
        "name": "neurostorm",
        "description": parser.description,
        "tool-version": TOOL_VERSION,
        "schema-version": SCHEMA_VERSION,
        "command-line": " ".join(["neurostorm", *(_value_key(action) for action in actions)]),
        "inputs": [_input(action) for action in actions],
        "groups": [group for group in map(_group, parser._action_groups) if group["members"]],
        "output-files": [
            {
                "id": "results",
                "name": "results",
                "description": "BIDS derivatives: embeddings, predictions and quality tables, each with its sidecar",
                "path-template": "[OUTPUT_DIR]",
            }
        ],
        "error-codes": [{"code": code, "description": text} for code, text in EXIT_CODES.items()],
        "tags": {"domain": ["neuroinformatics", "mri", "fmri", "bids-app"]},
    }


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Positional arguments first: an option that takes several values would swallow them."""
    known = [action for action in parser._actions if action.dest not in NOT_OPTIONS]
    yield from (action for action in known if not action.option_strings)
    yield from (action for action in known if action.option_strings)


def _value_key(action: argparse.Action) -> str:
    return f"[{action.dest.upper()}]"


def _input(action: argparse.Action) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "id": action.dest,
        "name": action.dest.replace("_", " "),
        "description": action.help or action.dest.replace("_", " "),
        "optional": bool(action.option_strings),
        "value-key": _value_key(action),
        **_type(action),
    }
    if action.option_strings:
        entry["command-line-flag"] = max(action.option_strings, key=lambda flag: flag.startswith("--"))
    if action.nargs == "+":
        entry["list"] = True
    choices = LEVELS if action.dest == "level" else action.choices
    return {**entry, "value-choices": list(choices)} if choices else entry


def _type(action: argparse.Action) -> dict[str, Any]:
    if action.nargs == 0:
        return {"type": "Flag"}
    if action.dest in MADE_BY_THE_TOOL or getattr(action.type, "__name__", "") == "strip":  # labels
        return {"type": "String"}
    return TYPES[action.type]


def _group(group: argparse._ArgumentGroup) -> dict[str, Any]:
    title = group.title or ""
    members = [action.dest for action in group._group_actions if action.dest not in NOT_OPTIONS]
    # an input may bear the same name, and ids are unique
    return {"id": "about_" + re.sub(r"\W+", "_", title), "name": title, "members": members}


def main() -> None:
    """Print the descriptor."""
    print(json.dumps(descriptor(cli.build_parser()), indent=2))


if __name__ == "__main__":
    main()
