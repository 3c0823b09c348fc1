"""The command line: argv in, exit code out. Nothing heavy is imported before the arguments are checked."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from neurostorm_bids.errors import NeurostormError, OutputWriteFailed, Stopped
from neurostorm_bids.settings import COMPARISONS, Settings, settings_from_namespace


class Parser(argparse.ArgumentParser):
    """argparse with both spellings of every flag: ``--participant-label`` and ``--participant_label``."""

    def parse_known_args(self, args=None, namespace=None):
        given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args([_hyphenated(token) for token in given], namespace)


def _hyphenated(token: str) -> str:
    if not token.startswith("--"):
        return token
    flag, equals, value = token.partition("=")
    return flag.replace("_", "-") + equals + value


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``neurostorm``; documentation and descriptors are generated from it."""
    parser = Parser(
        prog="neurostorm",
        description="Run the NeuroSTORM fMRI foundation model on fMRIPrep derivatives.",
        parents=[build_options()],
    )
    parser.add_argument("bids_dir", type=Path, help="fMRIPrep derivatives, or the raw dataset that has them")
    parser.add_argument("output_dir", type=Path, help="folder for the results; never the input")
    parser.add_argument("level", metavar="{participant,group}", help="analysis level")
    return parser


def build_options() -> argparse.ArgumentParser:
    """Every option, without the positional arguments: configuration files are checked by the same rules."""
    parser = Parser(add_help=False, allow_abbrev=False, argument_default=None)
    for add_group in (
        *(_selection, _inputs, _space, _clips, _model, _outputs, _attribution),
        *(_group_level, _training_task, _training_splits, _training_course),
        *(_evaluation, _resources, _workflow),
    ):
        add_group(parser)
    return parser


def _label(prefix: str):
    def strip(text: str) -> str:
        return text.removeprefix(prefix)

    return strip


def _selection(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which runs")
    group.add_argument(
        "--participant-label",
        nargs="+",
        type=_label("sub-"),
        default=[],
        metavar="LABEL",
        help="participants, with or without sub-",
    )
    group.add_argument(
        "--session-label",
        "--session-id",
        nargs="+",
        type=_label("ses-"),
        default=[],
        metavar="LABEL",
        help="sessions, with or without ses-",
    )
    group.add_argument(
        "-t", "--task-id", nargs="+", type=_label("task-"), default=[], metavar="LABEL", help="tasks to process"
    )
    group.add_argument(
        "--bids-filter-file",
        type=Path,
        metavar="FILE",
        help="JSON {query: {entity: value}}; null = entity absent, '*' = any, lists allowed",
    )


def _inputs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("inputs")
    group.add_argument(
        "-d",
        "--derivatives",
        nargs="+",
        type=_named_path,
        default=[],
        metavar="NAME=PATH",
        help="derivative datasets to read when BIDS_DIR is raw; a bare PATH takes its folder's name",
    )
    group.add_argument(
        "--input-type",
        choices=("auto", "fmriprep", "nibabies", "hcp", "dcan", "ukb"),
        default="auto",
        help="pipeline that wrote the input (default: told by its folders)",
    )
    group.add_argument(
        "--dataset-preset",
        metavar="NAME",
        help="a public dataset (neurostorm-models datasets): fills targets and grouping where none are stated",
    )
    group.add_argument("--desc", default="preproc", metavar="LABEL", help="desc- label of the BOLD files to read")
    group.add_argument(
        "--bids-database-dir", type=Path, metavar="PATH", help="PyBIDS database; created if absent, else reused"
    )
    group.add_argument("--skip-bids-validation", action="store_true", help="do not validate a raw dataset first")


def _space(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("space and intensity")
    group.add_argument(
        "--normalization",
        choices=("auto", "lattice", "affine", "transform"),
        default="auto",
        help="route to the model's grid (default: the best one there is)",
    )
    group.add_argument(
        "--interpolation", choices=("linear", "nearest", "lanczos"), default="linear", help="of voxels, default linear"
    )
    group.add_argument(
        "--intensity",
        choices=("none", "hcp"),
        default="none",
        help="hcp: bias correction, mask and grand mean 10,000, as in HCP volumes",
    )
    group.add_argument(
        "--denoise",
        choices=("none", "24P", "36P", "acompcor"),
        default="none",
        help="confound regression (nilearn), the mean image added back",
    )
    group.add_argument(
        "--min-coverage",
        type=_share,
        default=0.05,
        metavar="SHARE",
        help="refuse a run that covers less of the template brain (default 0.05: hardly any; more is warned about)",
    )


def _clips(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("clips")
    group.add_argument(
        "--preprocessing",
        choices=("affine", "reference"),
        default="affine",
        help="reference: array-space route with int8 rounding of the published code; ignores the affine",
    )
    group.add_argument(
        "--clip-stride",
        type=_positive,
        default=20,
        metavar="FRAMES",
        help="frames (of the model's TR) from one clip to the next (default 20)",
    )
    group.add_argument("--anti-alias", action="store_true", help="low-pass before down-sampling a TR below the model's")
    group.add_argument(
        "--dummy-scans",
        type=_auto_or_count,
        default=None,
        metavar="{auto,N}",
        help="volumes to drop at the start (auto: as many as the confounds flag)",
    )
    group.add_argument(
        "--fd-threshold",
        dest="fd_threshold_mm",
        type=_positive_float,
        metavar="MM",
        help="leave out clips with a higher mean framewise displacement",
    )


def _model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        nargs="+",
        default=[],
        metavar="NAME|PATH",
        help="registry name, model folder, or reference checkpoint; several run side by side",
    )
    group.add_argument("--packs", nargs="+", default=[], metavar="PATH", help="prompt packs over the first model")
    group.add_argument(
        "--target-scaler",
        nargs="+",
        type=_scaler,
        default=[],
        metavar="TARGET=MEAN,SD",
        help="mean and SD, in natural units, of a regression target whose checkpoint lacks them",
    )
    group.add_argument(
        "--device", default="auto", metavar="{auto,cpu,cuda,0,1,...}", help="auto takes a GPU where PyTorch can use one"
    )
    group.add_argument("--scan-backend", default="auto", metavar="NAME", help="auto, cpu, torch, torch-reference, ...")
    group.add_argument(
        "--precision",
        choices=("32", "tf32", "bf16", "16"),
        default="32",
        help="of matrix products on a GPU, and of training anywhere (default 32)",
    )
    group.add_argument("--batch-size", type=_positive, metavar="N", help="clips a forward pass (default: by memory)")
    group.add_argument("--offline", action="store_true", help="never touch the network")


def _outputs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("outputs")
    group.add_argument("--output-bold", action="store_true", help="also write the normalised run on the model's grid")
    group.add_argument("--reports-only", action="store_true", help="only write the reports of results that are there")
    group.add_argument("--boilerplate-only", action="store_true", help="only write the methods text and citations")
    group.add_argument("--dry-run", action="store_true", help="list runs, routes, clips and costs; write no results")


def _attribution(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("attribution: where predictions come from")
    group.add_argument(
        "--attribution",
        nargs="+",
        choices=("integrated-gradients", "occlusion"),
        default=[],
        help="write a map of what each voxel adds to a prediction, for every run; occlusion (parcel by parcel) is the "
        "check",
    )
    group.add_argument(
        "--attribution-targets",
        nargs="+",
        default=[],
        metavar="TARGET[:CLASS]",
        help="predictions to explain (default: all); of several classes each, or the one that is named",
    )
    group.add_argument(
        "--attribution-baseline",
        choices=("flat", "static"),
        default="flat",
        help="what a clip is compared with: the brain at its mean intensity (flat), or the clip without its changes "
        "over time (static)",
    )


def _group_level(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("group level")
    group.add_argument(
        "--group-workflow",
        choices=("aggregate", "pretrain", "finetune", "evaluate"),
        default="aggregate",
        help="aggregate: pool the participants' tables; pretrain, finetune: train on BIDS_DIR; evaluate: compare what "
        "embeddings tell of a --target with simpler things",
    )


def _training_task(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training: what is learnt")
    group.add_argument(
        "--preset",
        choices=("age", "sex", "phenotype", "diagnosis", "retrieval", "state"),
        help="protocol of one of the benchmark tasks (docs/tasks.md); what is stated beside it has precedence",
    )
    group.add_argument(
        "--target",
        nargs="+",
        default=[],
        metavar="TARGET",
        help="column of participants.tsv, phenotype/FILE.tsv:COLUMN, sessions:, entity:, events:COLUMN, or identity",
    )
    group.add_argument(
        "--target-kind",
        choices=("auto", "regression", "classification", "retrieval"),
        help="what a target is (default: found from the data)",
    )
    group.add_argument("--method", choices=("prompt", "linear", "full"), help="what is trained (default prompt)")
    group.add_argument("--prompt-length", type=_positive, default=50, metavar="N", help="prompt tokens a block")
    group.add_argument("--objective", choices=("mae", "contrastive"), default="mae", help="of pretraining")
    group.add_argument(
        "--spatial-mask", choices=("random", "window", "atlas"), default="window", help="which patches are hidden"
    )
    group.add_argument(
        "--temporal-mask",
        choices=("random", "tube"),
        default="random",
        help="patches hidden in each frame anew, or in all frames alike (tube)",
    )
    group.add_argument("--mask-ratio", type=_share, default=0.5, metavar="SHARE", help="hidden share (default 0.5)")
    group.add_argument(
        "--atlas",
        type=Path,
        metavar="FILE",
        help="label image in the template, for atlas masks and for the networks of --attribution",
    )
    group.add_argument("--strd", action="store_true", help="spatiotemporal redundancy dropout in pretraining")
    group.add_argument("--strd-exclude-padding", action="store_true", help="padding is no neighbour of any token")
    group.add_argument("--no-augmentation", action="store_true", help="train on clips as they are")
    group.add_argument(
        "--datasets",
        nargs="+",
        type=_named_path,
        default=[],
        metavar="NAME=PATH",
        help="more fMRIPrep datasets to pretrain on, beside BIDS_DIR",
    )
    group.add_argument(
        "--dataset-sampling",
        choices=("uniform", "loss"),
        default="uniform",
        help="subjects of all datasets alike, or datasets by their loss of the last epoch",
    )
    group.add_argument("--from-scratch", action="store_true", help="take --model's architecture, not its weights")
    group.add_argument("--name", metavar="NAME", help="name of the model that is made")


def _training_splits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training: who is trained on, who is tested")
    group.add_argument("--folds", type=_positive, default=5, metavar="N", help="folds of the participants (default 5)")
    group.add_argument(
        "--fold", nargs="+", default=["1"], metavar="N|all", help="which of them to train and test (default 1)"
    )
    group.add_argument(
        "--validation-share",
        type=_share,
        default=0.15,
        metavar="SHARE",
        help="share of the others that decides when to stop (default 0.15)",
    )
    group.add_argument("--group-by", metavar="COLUMN", help="participants.tsv column of families, kept together")
    group.add_argument("--leave-out", metavar="COLUMN", help="participants.tsv column of sites, each tested in turn")
    group.add_argument("--splits", type=Path, metavar="FILE", help="a splits.tsv to follow")


def _training_course(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training: how")
    group.add_argument("--epochs", type=_positive, metavar="N", help="passes over the participants")
    group.add_argument("--accumulate", type=_positive, default=1, metavar="N", help="batches a step")
    group.add_argument("--learning-rate", type=_positive_float, metavar="RATE", help="of AdamW, at its highest")
    group.add_argument("--weight-decay", type=_share, default=0.01, metavar="DECAY", help="of AdamW (default 0.01)")
    group.add_argument("--warmup", type=_share, default=0.1, metavar="SHARE", help="share of the steps (default 0.1)")
    group.add_argument(
        "--gradient-clip",
        type=_positive_float,
        default=1.0,
        metavar="NORM",
        help="largest norm of a gradient (default 1)",
    )
    group.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more time")
    group.add_argument(
        "--patience", type=_positive, metavar="N", help="epochs without a better validation loss before it stops"
    )
    group.add_argument("--devices", type=_positive, metavar="N", help="GPUs (or processes) of each node")
    group.add_argument("--num-nodes", type=_positive, default=1, metavar="N", help="machines (default 1)")
    group.add_argument("--workers", type=_count, default=0, metavar="N", help="processes that read clips (default 0)")
    group.add_argument(
        "--checkpoint-every", type=_positive, default=50, metavar="STEPS", help="steps between points of resume"
    )
    group.add_argument("--store-precision", choices=("int8", "float16"), default="int8", help="of the stored runs")
    group.add_argument("--resume", action="store_true", help="go on where the same command was interrupted")


def _evaluation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--repeats", type=_positive, default=5, metavar="N", help="times the folds are drawn (default 5)"
    )
    group.add_argument(
        "--n-permutations", type=_count, default=1000, metavar="N", help="permuted labellings (default 1000)"
    )
    group.add_argument(
        "--n-bootstrap", type=_positive, default=1000, metavar="N", help="resamples of the participants (default 1000)"
    )
    group.add_argument(
        "--classifier",
        choices=("ridge", "logistic"),
        default="ridge",
        help="logistic fits every permutation anew: state a smaller --n-permutations",
    )
    group.add_argument(
        "--compare",
        nargs="+",
        choices=(*COMPARISONS, "none"),
        default=list(COMPARISONS),
        help="what stands beside the models and chance (default: all). fc, mean-image, static and shuffled read the "
        "images of BIDS_DIR; static and shuffled need --model",
    )
    group.add_argument(
        "--tuned",
        metavar="NAME",
        help="a model that finetune made in OUTPUT_DIR: its recorded splits become the folds, its predictions stand "
        "beside the rest",
    )
    group.add_argument(
        "--allow-leakage", action="store_true", help="evaluate although leakage was found; the report will say so"
    )


def _resources(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("resources")
    group.add_argument("--nprocs", "--nthreads", "--n-cpus", type=_positive, metavar="N", help="CPU cores in all")
    group.add_argument("--omp-nthreads", type=_positive, metavar="N", help="threads of one run")
    group.add_argument("--mem", "--mem-mb", dest="mem_mb", type=_megabytes, metavar="MB", help="MB, or with K/M/G/T")
    group.add_argument("--low-mem", action="store_true", help="one clip and one run at a time")


def _workflow(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("workflow")
    group.add_argument("-w", "--work-dir", type=Path, default=Path("work"), help="scratch folder (default ./work)")
    group.add_argument("--clean-workdir", action="store_true", help="empty the scratch folder first")
    group.add_argument("--config-file", type=Path, metavar="FILE", help="TOML of options; the command line overrides")
    group.add_argument(
        "--use-plugin",
        "--nipype-plugin-file",
        dest="nipype_plugin_file",
        type=Path,
        metavar="FILE",
        help="nipype plugin (YAML or JSON: plugin, plugin_args)",
    )
    group.add_argument("--stop-on-first-crash", action="store_true", help="start no further run after a failed one")
    group.add_argument("--write-graph", action="store_true", help="write the nipype graph to the work folder")
    group.add_argument("--resource-monitor", action="store_true", help="record CPU and memory of every node")
    group.add_argument("--random-seed", type=int, default=0, metavar="N", help="of every random draw (default 0)")
    group.add_argument("--notrack", action="store_true", help="accepted; nothing is ever tracked")
    group.add_argument("--quiet", action="store_true", help="only errors and the summary")
    group.add_argument("--debug", action="store_true", help="show tracebacks")
    group.add_argument("-v", "--verbose", action="count", default=0, help="say more; with --version: libraries")
    group.add_argument("--version", action="store_true", help="version; with -v also backends and libraries")


# --- values -----------------------------------------------------------------------------------------------------


def _named_path(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals:
        name, path = Path(text).resolve().name, text
    if not name or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH")
    return name, Path(path)


def _number(text: str, convert):
    try:
        return convert(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _positive(text: str) -> int:
    value = _number(text, int)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _count(text: str) -> int:
    value = _number(text, int)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 on")
    return value


def _positive_float(text: str) -> float:
    value = _number(text, float)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _share(text: str) -> float:
    value = _number(text, float)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _auto_or_count(text: str) -> int | None:
    if text == "auto":
        return None
    value = _number(text, int)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is neither auto nor a number of volumes")
    return value


def _scaler(text: str) -> tuple[str, float, float]:
    target, _, numbers = text.partition("=")
    parts = numbers.split(",")
    if not target or len(parts) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not TARGET=MEAN,SD (as in age=54.2,7.6)")
    mean, std = _number(parts[0], float), _number(parts[1], float)
    if not (abs(mean) < float("inf") and 0 < std < float("inf")):
        raise argparse.ArgumentTypeError(f"{text!r}: the mean must be finite and the SD positive")
    return target, mean, std


def _megabytes(text: str) -> int:
    units = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2}
    suffix = text.strip().upper().removesuffix("B")[-1:]
    number = text.strip().upper().removesuffix("B").removesuffix(suffix) if suffix in units else text
    value = _number(number, float) * units.get(suffix, 1)
    if not 1 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount of memory (MB, or with K/M/G/T)")
    return int(value)


# --- the program ------------------------------------------------------------------------------------------------


def parse_settings(argv: Sequence[str] | None = None) -> Settings:
    """Arguments (and the configuration file they name) as ``Settings``.

    Raises
    ------
    UsageError
        For combinations that make no sense, and for a broken configuration file.
    SystemExit
        As argparse does, with code 2.
    """
    from neurostorm_bids.settings import read_config

    parser = build_parser()
    namespace = parser.parse_args(argv)
    if namespace.config_file is not None:
        options = build_options()
        options.prog = f"{parser.prog}: {namespace.config_file}"  # so that its errors name the file
        stated = options.parse_args(read_config(namespace.config_file))
        namespace = parser.parse_args(argv, namespace=stated)
    if namespace.dataset_preset is not None:
        from neurostorm_bids import presets

        presets.apply(namespace, presets.load(namespace.dataset_preset))
    return settings_from_namespace(namespace)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``neurostorm`` and ``run.py``; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--version" in arguments:
        return _print_version(verbose=any(token in arguments for token in ("-v", "-vv", "--verbose")))
    try:
        with _stoppable():
            settings = parse_settings(arguments)
            return _run(settings, arguments)
    except NeurostormError as error:
        print(f"neurostorm: {error}", file=sys.stderr)
        if "--debug" in arguments:
            raise
        return error.exit_code
    except (Stopped, KeyboardInterrupt) as error:
        what, code = error.args if isinstance(error, Stopped) else ("interrupted", 130)
        print(f"neurostorm: {what}; {_how_to_go_on(arguments)}.", file=sys.stderr)
        return code


def _how_to_go_on(arguments: Sequence[str]) -> str:
    if {"evaluate", "aggregate"} & set(arguments):
        return "the same command does it again from its start"
    again = " with --resume" if {"pretrain", "finetune"} & set(arguments) and "--resume" not in arguments else ""
    return f"the same command{again} resumes where it stopped"


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the program in order; a second one ends it at once."""
    told = {signal.SIGINT: ("interrupted", 130), signal.SIGTERM: ("terminated", 143)}

    def stop(number: int, _frame: object) -> None:
        for each in told:
            signal.signal(each, signal.SIG_DFL)
        raise Stopped(*told[signal.Signals(number)])

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in told}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(settings: Settings, arguments: Sequence[str]) -> int:
    from neurostorm_bids.environment import import_for_good, prepare

    prepare(settings)
    try:
        if settings.level == "group":
            return int(import_for_good("neurostorm_bids.group").run_group(settings))
        participant = import_for_good("neurostorm_bids.participant")
        return int(participant.run_participant(settings, ["neurostorm", *arguments]))
    except BrokenPipeError:
        raise  # whoever read our output has gone
    except OSError as error:
        raise OutputWriteFailed(
            f"cannot be read or written ({error.strerror or error})",
            file=os.fsdecode(error.filename) if error.filename else f"{settings.output_dir} or {settings.work_dir}",
            remedy="check permissions, free space or quota, then run again; --debug shows where it happened",
        ) from error


def _print_version(*, verbose: bool) -> int:
    import neurostorm_bids

    print(f"neurostorm {neurostorm_bids.__version__}")
    if verbose:
        from neurostorm_bids.environment import describe

        print("\n".join(describe()))
    return 0
