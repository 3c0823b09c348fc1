"""Lay out what an image carries beside the program: weights in DEST/models, template transforms in DEST/templateflow.

    python scripts/image_content.py DEST --context CONTEXT --model NAME_OR_PATH --templates FROM:TO ...

Run while an image is built, with a network; both options may be empty. A model is a registered name, or a path in the
build context. A model folder is verified before it is taken.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from neurostorm_bids.errors import NeurostormError
from neurostorm_bids.model.registry import find_model
from neurostorm_bids.model.weights import verify_model
from neurostorm_bids.space.templateflow import template_transform


def main(argv: list[str] | None = None) -> int:
    """Entry point; an image without what was asked for is not built."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dest", type=Path)
    parser.add_argument("--context", type=Path, default=Path())
    parser.add_argument("--model", default="")
    parser.add_argument("--templates", default="")
    arguments = parser.parse_args(argv)
    for name in ("models", "templateflow"):
        (arguments.dest / name).mkdir(parents=True, exist_ok=True)
    try:
        if arguments.model:
            install_model(arguments.model, arguments.context, arguments.dest / "models")
        for pair in arguments.templates.split():
            install_transform(*pair.split(":"), arguments.dest / "templateflow")
    except NeurostormError as error:
        print(f"image_content: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def install_model(source: str, context: Path, folder: Path) -> None:
    """Copy a model folder or checkpoint into ``folder`` under the name by which it will be asked for."""
    local = context / source
    found = find_model(local if local.exists() else source)
    if found.path.is_dir():
        print(f"{found.name}: {verify_model(found.path)}")
        shutil.copytree(found.path, folder / found.name, dirs_exist_ok=True)
    else:
        shutil.copy(found.path, folder / f"{found.name}{found.path.suffix}")
    print(f"{found.name} -> {folder}")


def install_transform(source: str, target: str, folder: Path) -> None:
    """Fetch the transform between two templates and copy it to its place in a TemplateFlow cache."""
    path = template_transform(source, target, offline=False)
    place = folder / path.parent.name / path.name
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, place)
    print(f"{path.name} -> {place}")


if __name__ == "__main__":
    sys.exit(main())
