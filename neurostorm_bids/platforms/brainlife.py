"""Brainlife: bare files named in ``config.json`` become an fMRIPrep-like tree, results a folder and a ``product.json``.

The root's ``main`` runs this module in the folder that holds ``config.json``.

Brainlife hands over single files of known datatypes, without BIDS names. Who they belong to stands in ``_inputs`` of
the configuration; in which template they lie must be stated there too, since no file says it. Inputs are linked, not
copied.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neurostorm_bids.errors import ConfigUnreadable, DatasetMissing, NeurostormError, UsageError

CONFIG = Path("config.json")
PRODUCT = Path("product.json")
TREE, RESULTS, WORK = Path("work/fmriprep"), Path("neurostorm"), Path("work/neurostorm")
PRODUCT_LIMIT = 8192  # bytes; the platform's documentation asks for "a few kilobytes"
MESSAGE_LIMIT = 600  # characters of one message
FLAGS = ("model", "clip_stride", "fd_threshold", "normalization", "denoise", "dummy_scans", "target_scaler")
SWITCHES = ("output_bold",)
# key of the configuration -> what follows the run's name in the tree
FILES = {
    "bold": "_space-{space}_desc-preproc_bold.nii.gz",
    "mask": "_space-{space}_desc-brain_mask.nii.gz",
    "regressors": "_desc-confounds_timeseries.tsv",
}


def main() -> int:
    """Entry point: returns the exit code of the program and leaves ``product.json`` in any case."""
    try:
        config = read_config(CONFIG)
        name = build_tree(config, TREE)
        code, said = run_program(arguments(config))
    except NeurostormError as error:
        print(f"neurostorm: {error}", file=sys.stderr)
        write_product(PRODUCT, [_message("error", str(error))])
        return error.exit_code
    messages = [_message("error", line) for line in said] if code else [_message("success", f"{name}: done")]
    write_product(PRODUCT, messages + ([] if code else described(RESULTS)))
    return code


# --- in -----------------------------------------------------------------------------------------------------------


def read_config(path: Path) -> dict[str, Any]:
    """The configuration, with what this app cannot do without.

    Raises
    ------
    ConfigUnreadable
        When the file is missing, is no JSON object, or lacks ``bold`` or ``space``.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigUnreadable(f"cannot be read as JSON: {error}", file=path) from None
    if not isinstance(config, dict):
        raise ConfigUnreadable("is no JSON object", file=path, expected="keys and values as in config.json.sample")
    for key, example in (("bold", "../input/bold.nii.gz"), ("space", "MNI152NLin2009cAsym")):
        if not isinstance(config.get(key), str) or not config[key]:
            raise ConfigUnreadable(
                f"{key} is not stated",
                file=path,
                expected=f'"{key}": "{example}"',
                remedy="See config.json.sample",
            )
    for key in ("mask", "regressors", "json"):
        if not isinstance(config.get(key) or "", str):
            raise ConfigUnreadable(f"{key} is {config[key]!r}", file=path, expected="the path of a file, or nothing")
    return config


def build_tree(config: Mapping[str, Any], root: Path) -> str:
    """Link the files of a configuration under ``root`` as fMRIPrep names them; returns the run's name.

    Raises
    ------
    DatasetMissing
        When a file that the configuration names is not there.
    ConfigUnreadable
        When it does not say whose the files are.
    """
    name, entities = run_name(config)
    folder = root.joinpath(*(f"{key}-{entities[key]}" for key in ("sub", "ses") if key in entities), "func")
    folder.mkdir(parents=True, exist_ok=True)
    for key, suffix in FILES.items():
        if config.get(key):
            link(Path(config[key]), folder / (name + suffix.format(space=_label(config["space"]))))
    _write_sidecar(config, entities, folder / (name + f"_space-{_label(config['space'])}_desc-preproc_bold.json"))
    description = {
        "Name": "Files of a Brainlife project, laid out as fMRIPrep does",
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "fMRIPrep", "Description": "Assumed from the file types; its version is not known."}],
    }
    (root / "dataset_description.json").write_text(json.dumps(description, indent=2), encoding="utf-8")
    return name


def run_name(config: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """Name and entities of the run, from the metadata of the BOLD input."""
    meta = _metadata(config.get("_inputs"))
    stated: dict[str, object] = {
        "sub": meta.get("subject"),
        "ses": meta.get("session"),
        "task": config.get("task") or meta.get("task"),
    }
    stated |= {"run": meta.get("run")}
    entities = {key: _label(value) for key, value in stated.items() if value not in (None, "") and _label(value)}
    if "sub" not in entities:
        raise ConfigUnreadable(
            "does not say whose the BOLD is", file=CONFIG, expected='"_inputs": [{"meta": {"subject": "01"}, ...}]'
        )
    entities.setdefault("task", "unknown")
    ordered: dict[str, str] = {key: entities[key] for key in ("sub", "ses", "task", "run") if key in entities}
    return "_".join(f"{key}-{label}" for key, label in ordered.items()), ordered


def _metadata(inputs: object) -> Mapping[str, Any]:
    """Metadata of the BOLD input, else of the first one, as far as they are what they should be."""
    entries = [entry for entry in inputs if isinstance(entry, dict)] if isinstance(inputs, list) else []
    named = [entry for entry in entries if isinstance(entry.get("keys"), list) and "bold" in entry["keys"]]
    meta = [*named, *entries, {}][0].get("meta")
    return meta if isinstance(meta, dict) else {}


def _label(value: object) -> str:
    text = str(value)
    for prefix in ("sub-", "ses-", "task-", "run-", "space-"):
        text = text.removeprefix(prefix)
    return re.sub(r"[^0-9a-zA-Z]", "", text)


def link(source: Path, place: Path) -> None:
    """A link at ``place`` to an input, made anew where an earlier call left one."""
    if not source.is_file():
        raise DatasetMissing("is named in config.json and does not exist", file=source)
    place.unlink(missing_ok=True)
    place.symlink_to(source.resolve())


def _write_sidecar(config: Mapping[str, Any], entities: Mapping[str, str], path: Path) -> None:
    """What Brainlife knows of the acquisition; without a repetition time the image's header has to say it."""
    bold = Path(config["bold"])
    beside = Path(config.get("json") or bold.with_name(bold.name.removesuffix(".nii.gz") + ".json"))
    known = {}
    if beside.is_file():
        try:
            known = json.loads(beside.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigUnreadable(f"cannot be read as JSON: {error}", file=beside) from None
    if not isinstance(known, dict):
        raise ConfigUnreadable("is no JSON object", file=beside, remedy="Mend it, or leave it out of the inputs")
    kept = {key: known[key] for key in ("RepetitionTime", "StartTime", "SkullStripped") if key in known}
    path.write_text(json.dumps({"TaskName": entities["task"], **kept}), encoding="utf-8")


def arguments(config: Mapping[str, Any]) -> list[str]:
    """The command line that a configuration asks for.

    Raises
    ------
    UsageError
        When a parameter is a list or an object.
    """
    words = [str(TREE), str(RESULTS), "participant", "--offline", "--work-dir", str(WORK)]
    for key in FLAGS:
        value = config.get(key)
        if isinstance(value, list | dict):
            raise UsageError(f"{key}: {value!r} is not a single value", file=CONFIG)
        if value not in (None, ""):
            words += ["--" + key.replace("_", "-"), str(value)]
    return words + ["--" + key.replace("_", "-") for key in SWITCHES if config.get(key)]


# --- run ----------------------------------------------------------------------------------------------------------


def run_program(words: Sequence[str]) -> tuple[int, list[str]]:
    """Run the program; returns its exit code and the last lines it wrote to standard error, which go there too."""
    command = [sys.executable, "-m", "neurostorm_bids", *words]
    print("$ neurostorm " + " ".join(words), flush=True)
    lines: list[str] = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace") as process:
        assert process.stderr is not None
        for line in process.stderr:
            sys.stderr.write(line)
            lines = [*lines, line.strip()][-3:]
    return process.returncode, [line for line in lines if line]


# --- out ----------------------------------------------------------------------------------------------------------


def _message(kind: str, text: str) -> dict[str, Any]:
    return {"type": kind, "msg": text if len(text) <= MESSAGE_LIMIT else text[: MESSAGE_LIMIT - 1] + "…"}


def described(results: Path) -> list[dict[str, Any]]:
    """Messages and plots of the results: warnings, placement, motion of each clip, predictions."""
    from neurostorm_bids.outputs import read_sidecar
    from neurostorm_bids.outputs.tables import read_tsv

    entries: list[dict[str, Any]] = []
    for table in sorted(results.glob("sub-*/**/*_embedding.tsv")):
        sidecar, rows = read_sidecar(table), read_tsv(table)
        entries += [_message("warning", text) for text in sidecar.get("Warnings", [])]
        entries.append(_message("info", f"{len(rows)} clips; route: {sidecar.get('Route', {}).get('Kind')}"))
        entries += _motion_plot(rows)
    for table in sorted(results.glob("sub-*/**/*_predictions.tsv")):
        for row in read_tsv(table):
            value = f"{row['target']}: {row['value']} {row.get('unit') or ''}".strip()
            entries.append(_message("info", f"{value} (spread over clips {row.get('clip_sd')}; not for clinical use)"))
    return entries


def _motion_plot(rows: Sequence[Mapping[str, str | None]]) -> list[dict[str, Any]]:
    moved = [(float(row["onset"] or 0), float(fd)) for row in rows if (fd := row.get("mean_fd")) is not None]
    if not moved:
        return []
    step = -(-len(moved) // 60)  # at most 60 points: the file must stay small
    return [
        {
            "type": "plotly",
            "name": "Head motion of each clip",
            "layout": {"xaxis": {"title": "onset (s)"}, "yaxis": {"title": "mean framewise displacement (mm)"}},
            "data": [
                {
                    "type": "scatter",
                    "x": [round(onset, 1) for onset, _ in moved[::step]],
                    "y": [round(fd, 3) for _, fd in moved[::step]],
                }
            ],
        }
    ]


def write_product(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """``product.json`` below its size limit: plots go first, then the last messages."""
    kept = list(entries)
    while len(text := json.dumps({"brainlife": kept, "tags": ["neurostorm"]})) > PRODUCT_LIMIT:
        plots = [number for number, entry in enumerate(kept) if entry["type"] == "plotly"]
        del kept[plots[-1] if plots else -1]
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
