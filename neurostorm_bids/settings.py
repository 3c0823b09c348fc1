"""What the user asked for: one frozen dataclass, TOML out and in."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Literal

from neurostorm_bids.errors import ConfigUnreadable, UnknownLevel, UsageError

Level = Literal["participant", "group"]
Normalization = Literal["auto", "lattice", "affine", "transform"]
Interpolation = Literal["linear", "nearest", "lanczos"]
Preprocessing = Literal["affine", "reference"]
Intensity = Literal["none", "hcp"]
Denoising = Literal["none", "24P", "36P", "acompcor"]
GroupWorkflow = Literal["aggregate", "pretrain", "finetune", "evaluate"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of one call, as the command line and the TOML file state them.

    Paths are absolute. Tuples stand for options that take several values; empty means "all".
    """

    bids_dir: Path
    output_dir: Path
    level: Level

    # which runs
    participant_label: tuple[str, ...] = ()
    session_label: tuple[str, ...] = ()
    task_id: tuple[str, ...] = ()
    bids_filter_file: Path | None = None
    derivatives: tuple[tuple[str, Path], ...] = ()
    desc: str = "preproc"
    input_type: str = "auto"
    bids_database_dir: Path | None = None
    skip_bids_validation: bool = False

    # space and intensity
    normalization: Normalization = "auto"
    interpolation: Interpolation = "linear"
    intensity: Intensity = "none"
    denoise: Denoising = "none"
    min_coverage: float = 0.5

    # clips
    preprocessing: Preprocessing = "affine"
    clip_stride: int = 20
    anti_alias: bool = False
    dummy_scans: int | None = None  # None: as many as the confounds flag ("auto")
    fd_threshold_mm: float | None = None

    # model
    model: tuple[str, ...] = ()
    packs: tuple[str, ...] = ()
    target_scaler: tuple[tuple[str, float, float], ...] = ()  # (target, mean, SD) in natural units
    device: str = "auto"
    scan_backend: str = "auto"
    batch_size: int | None = None
    offline: bool = False

    # outputs
    output_bold: bool = False

    # group level
    group_workflow: GroupWorkflow = "aggregate"

    # resources and workflow
    nprocs: int | None = None
    omp_nthreads: int | None = None
    mem_mb: int | None = None
    low_mem: bool = False
    nipype_plugin_file: Path | None = None
    write_graph: bool = False
    resource_monitor: bool = False
    work_dir: Path = Path("work")
    clean_workdir: bool = False
    stop_on_first_crash: bool = False

    # the rest
    dry_run: bool = False
    reports_only: bool = False
    boilerplate_only: bool = False
    random_seed: int = 0
    debug: bool = False
    quiet: bool = False
    verbose: int = 0


# --- from the command line and back -----------------------------------------------------------------------------


def settings_from_namespace(namespace: Namespace) -> Settings:
    """Checked ``Settings`` of parsed arguments.

    Raises
    ------
    UsageError, UnknownLevel
        For combinations that make no sense.
    """
    values = {field.name: getattr(namespace, field.name) for field in fields(Settings)}
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = tuple(value)
        if isinstance(value, Path):
            values[name] = value.expanduser().absolute()
    values["derivatives"] = tuple((name, path.expanduser().absolute()) for name, path in namespace.derivatives)
    settings = Settings(**values)
    _check(settings)
    return settings


def _check(settings: Settings) -> None:
    if settings.level not in ("participant", "group"):
        raise UnknownLevel(
            f"unknown analysis level {settings.level!r}", expected="participant or group", remedy="State one of the two"
        )
    if settings.output_dir.resolve() == settings.bids_dir.resolve():
        raise UsageError(
            "the output folder is the input folder", file=settings.output_dir, remedy="Name another OUTPUT_DIR"
        )
    if settings.work_dir.resolve().is_relative_to(settings.bids_dir.resolve()):
        raise UsageError(
            "the work folder lies inside the input",
            file=settings.work_dir,
            expected="a folder outside BIDS_DIR, which is never written to",
            remedy="Name another one with --work-dir",
        )
    if settings.preprocessing == "reference" and settings.output_bold:
        raise UsageError(
            "--output-bold with --preprocessing reference: array space has no affine to write",
            remedy="Leave out one of the two",
        )
    names = [name for name, _ in settings.derivatives]
    for name in sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"--derivatives names {name!r} twice", remedy="Give each dataset its own NAME=PATH")


def to_toml(settings: Settings) -> str:
    """The settings as TOML that ``--config-file`` reads back."""
    import tomli_w

    return tomli_w.dumps(
        {field.name: _plain(field.name, settings) for field in fields(settings) if _is_set(field, settings)}
    )


def _is_set(field: Field, settings: Settings) -> bool:
    return getattr(settings, field.name) not in (None, ())


def _plain(name: str, settings: Settings):
    value = getattr(settings, name)
    if name == "derivatives":
        return [f"{label}={path}" for label, path in value]
    if name == "target_scaler":
        return [f"{target}={mean!r},{std!r}" for target, mean, std in value]
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


POSITIONAL = ("bids_dir", "output_dir", "level")
FLAGS = {"fd_threshold_mm": "fd-threshold", "mem_mb": "mem", "nipype_plugin_file": "use-plugin"}


def read_config(path: Path) -> list[str]:
    """A TOML file of settings as command-line words, so that both are checked by one parser.

    Raises
    ------
    ConfigUnreadable
        When the file is missing, is no TOML, or names a setting that does not exist.
    """
    import tomllib

    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigUnreadable(
            f"cannot be read as TOML: {error}", file=path, remedy="Mend it or leave out --config-file"
        ) from None
    known = {field.name for field in fields(Settings)}
    values = {key.replace("-", "_"): value for key, value in values.items()}
    for key in values:
        if key not in known:
            raise ConfigUnreadable(f"{key!r} is no setting", file=path, remedy="See neurostorm --help for the options")
    return [word for key, value in values.items() if key not in POSITIONAL for word in _words(key, value)]


def _words(key: str, value) -> list[str]:
    if isinstance(value, bool):
        return [_flag(key)] if value else []
    if key == "verbose":
        return ["-v"] * value
    values = value if isinstance(value, list) else [value]
    return [_flag(key), *(str(item) for item in values)] if values else []


def _flag(key: str) -> str:
    return "--" + FLAGS.get(key, key).replace("_", "-")
