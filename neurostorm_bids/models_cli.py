"""``neurostorm-models``: list models, convert a reference checkpoint, verify a model folder, show its card."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurostorm_bids.cli import Parser
from neurostorm_bids.errors import OK, SOME_RUNS_FAILED, NeurostormError, UsageError

if TYPE_CHECKING:
    from neurostorm_bids.model.checkpoint import Statements
    from neurostorm_bids.model.config import Target
    from neurostorm_bids.space.grid import Grid


@dataclass(frozen=True)
class StatedTarget:
    """What ``--target`` says: NAME:KIND[:UNIT[:MEAN,SD]] or NAME:classification[:CLASS,CLASS,...]."""

    name: str
    kind: str
    unit: str | None = None
    classes: tuple[str, ...] = ()
    scaler: tuple[float, float] | None = None


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``neurostorm-models``."""
    parser = Parser(prog="neurostorm-models", description="The models that neurostorm can run.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    _list_command(commands)
    _convert_command(commands)
    _verify_command(commands)
    _card_command(commands)
    _datasets_command(commands)
    return parser


def _list_command(commands: Any) -> None:
    commands.add_parser("list", help="registered and installed models").set_defaults(run=run_list)


def _convert_command(commands: Any) -> None:
    command = commands.add_parser("convert", help="reference Lightning checkpoint -> model folder")
    command.set_defaults(run=run_convert)
    command.add_argument("checkpoint", type=Path, help="a NeuroSTORM .ckpt or .pth")
    command.add_argument("folder", type=Path, help="the model folder to make")
    command.add_argument("--name", help="name of the model (default: that of the folder)")
    command.add_argument("--licence", default="", help="licence of the weights, for the card")
    _convert_input(command.add_argument_group("input it was trained on, as far as you know (else marked assumed)"))
    _convert_architecture(command.add_argument_group("architecture, where the file does not say it"))
    command.add_argument(
        "--target",
        type=_target,
        metavar="NAME:KIND[:...]",
        help="what the head predicts: age:regression:years:54.2,7.6 or sex:classification:female,male",
    )
    command.add_argument(
        "--ignore", nargs="+", default=[], metavar="KEY", help="beginnings of unexpected keys to leave out"
    )


def _convert_input(group: Any) -> None:
    group.add_argument("--orientation", choices=("LAS", "RAS"), help="of the 2 mm arrays: LAS (FSL) or RAS (fMRIPrep)")
    group.add_argument("--grid", type=Path, metavar="FILE.nii.gz", help="an image on that grid, not --orientation")
    group.add_argument("--template", default="MNI152NLin6Asym", help="template of --grid, as TemplateFlow spells it")
    group.add_argument("--tr", type=_positive, metavar="SECONDS", help="seconds between the frames of a clip")


def _convert_architecture(group: Any) -> None:
    four = {"nargs": 4, "type": int, "metavar": ("X", "Y", "Z", "T")}
    sizes = {
        "--window-size": "tokens of a window",
        "--first-window-size": "tokens of a window of the first stage",
        "--img-size": "voxels and frames of a clip",
        "--patch-size": "voxels and frames of a patch",
    }
    for flag, meaning in sizes.items():
        group.add_argument(flag, **four, help=meaning)
    group.add_argument("--last-layer-full-msa", choices=("true", "false"), help="last stage is one whole-grid window")
    group.add_argument("--embed-dim", type=int, metavar="N", help="channels of the first stage")
    group.add_argument("--depths", type=int, nargs="+", metavar="N", help="blocks of each stage")


def _verify_command(commands: Any) -> None:
    command = commands.add_parser("verify", help="check hashes and recompute the recorded test embedding")
    command.set_defaults(run=run_verify)
    command.add_argument("models", nargs="+", metavar="MODEL", help="folders, names, or 'all' for the installed ones")
    command.add_argument("--device", default="cpu", help="device of the test (default cpu)")
    command.add_argument("--backbone", metavar="MODEL", help="the backbone of the packs given")


def _card_command(commands: Any) -> None:
    command = commands.add_parser("card", help="print a model's card")
    command.set_defaults(run=run_card)
    command.add_argument("model", help="folder, checkpoint or name")
    command.add_argument("--offline", action="store_true", help="never download")


def _datasets_command(commands: Any) -> None:
    command = commands.add_parser("datasets", help="public datasets that --dataset-preset knows")
    command.set_defaults(run=run_datasets)
    command.add_argument("names", nargs="*", metavar="NAME", help="datasets to show with everything that is known")


def _positive(text: str) -> float:
    value = _finite(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def _target(text: str) -> StatedTarget:
    name, _, rest = text.partition(":")
    kind, _, detail = rest.partition(":")
    if not name or kind not in ("regression", "classification", "retrieval"):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME:regression|classification|retrieval[:...]")
    if kind == "classification":
        return StatedTarget(name, kind, classes=tuple(detail.split(",")) if detail else ())
    unit, _, numbers = detail.partition(":")
    if not numbers:
        return StatedTarget(name, kind, unit or None)
    parts = numbers.split(",")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"{text!r}: the scaler is MEAN,SD (as in age:regression:years:54.2,7.6)")
    return StatedTarget(name, kind, unit or None, scaler=(_finite(parts[0]), _finite(parts[1])))


# --- commands ---------------------------------------------------------------------------------------------------


def run_list(_arguments: argparse.Namespace) -> int:
    """Print a table of registered and installed models."""
    from neurostorm_bids.model.registry import listing

    _print_table([("NAME", "STATUS", "WHAT"), *((row.name, row.status, row.summary) for row in listing())])
    return OK


def _print_table(rows: Sequence[tuple[str, str, str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for first, second, third in rows:
        print(f"{first:<{widths[0]}}  {second:<{widths[1]}}  {third}".rstrip())


def run_datasets(arguments: argparse.Namespace) -> int:
    """Print the dataset presets, or all that some of them say."""
    from neurostorm_bids import presets

    if not arguments.names:
        _print_table([("NAME", "INPUT", "WHAT"), *presets.listing()])
    for name in arguments.names:
        print(presets.described(presets.load(name)))
    return OK


def run_convert(arguments: argparse.Namespace) -> int:
    """Convert a checkpoint and say what was found, left out and assumed."""
    from neurostorm_bids.model.weights import convert_checkpoint

    notes = convert_checkpoint(arguments.checkpoint, arguments.folder, _statements(arguments), arguments.licence)
    print(f"{arguments.checkpoint} -> {arguments.folder}")
    print("\n".join(f"  {note}" for note in notes))
    return OK


def run_verify(arguments: argparse.Namespace) -> int:
    """Verify each model; one that fails does not hide the others."""
    from neurostorm_bids.model.registry import installed_models
    from neurostorm_bids.model.weights import verify_model

    wanted = [name for name in arguments.models if name != "all"]
    if "all" in arguments.models:
        wanted += ["demo", *map(str, installed_models().values())]
    failed = 0
    for model in wanted:
        try:
            print(f"{model}: ok, {verify_model(model, device=arguments.device, backbone=arguments.backbone)}")
        except NeurostormError as error:
            failed += 1
            print(f"{model}: FAILED. {error}", file=sys.stderr)
    return SOME_RUNS_FAILED if failed else OK


def run_card(arguments: argparse.Namespace) -> int:
    """Print MODEL_CARD.md, or a card made of a checkpoint's description."""
    from neurostorm_bids.model.weights import card_of

    print(card_of(arguments.model, offline=arguments.offline))
    return OK


def _statements(arguments: argparse.Namespace) -> Statements:
    from neurostorm_bids.model.checkpoint import Statements

    if arguments.grid is not None and arguments.orientation is not None:
        raise UsageError("--grid and --orientation both state the grid", remedy="give one of them")
    named = {name: getattr(arguments, name) for name in ("window_size", "first_window_size", "img_size", "patch_size")}
    named |= {"embed_dim": arguments.embed_dim, "depths": arguments.depths}
    if arguments.last_layer_full_msa is not None:
        named["last_layer_full_MSA"] = arguments.last_layer_full_msa == "true"
    return Statements(
        architecture={name: value for name, value in named.items() if value is not None},
        grid=None if arguments.grid is None else _grid(arguments.grid, arguments.template),
        orientation=arguments.orientation,
        t_r_s=arguments.tr,
        target=None if arguments.target is None else _as_target(arguments.target),
        ignore=tuple(arguments.ignore),
        name=arguments.name or arguments.folder.name,
    )


def _as_target(stated: StatedTarget) -> Target:
    from neurostorm_bids.model.config import Target

    mean, std = stated.scaler or (None, None)
    return Target(stated.name, stated.kind, unit=stated.unit, classes=stated.classes, mean=mean, std=std)  # type: ignore[arg-type]


def _grid(image: Path, template: str) -> Grid:
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    from neurostorm_bids.space.grid import Grid

    try:
        loaded: Any = nibabel.load(image)
        return Grid.of(loaded.shape[:3], loaded.affine, template)
    except (OSError, ImageFileError, AttributeError) as error:
        raise UsageError(f"--grid cannot be read ({error})", file=image, expected="a NIfTI image") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``neurostorm-models``; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except NeurostormError as error:
        print(f"neurostorm-models: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # "neurostorm-models list | head"
        sys.stderr.close()
        return OK
