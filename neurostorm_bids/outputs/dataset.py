"""Files that make the output folder a BIDS derivative dataset; the same content whichever process writes them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from neurostorm_bids import __version__
from neurostorm_bids.errors import OutputNotWritable
from neurostorm_bids.inputs.runs import Source
from neurostorm_bids.outputs.atomic import write_json, write_text
from neurostorm_bids.outputs.names import APP_DESC, BIDSIGNORE, SESSIONS_AS_ROWS, desc_label
from neurostorm_bids.outputs.records import ModelRecord
from neurostorm_bids.outputs.sidecars import TEMPLATEFLOW
from neurostorm_bids.outputs.tables import Column, read_tsv, tsv_text
from neurostorm_bids.outputs.writers import model_description

BIDS_VERSION = "1.11.1"
APP_NAME = "neurostorm"


def write_dataset_files(output_dir: Path, sources: Sequence[Source], models: Iterable[ModelRecord]) -> None:
    """Write dataset_description.json, descriptions.tsv, .bidsignore, README.md and logs/CITATION.*.

    Safe to call from any number of processes at once, and again on a folder with results. ``sources`` are all
    input datasets of the call, whether or not a run was selected from each.

    Raises
    ------
    OutputNotWritable
        The folder cannot be written, or belongs to another program.
    """
    write_dataset_description(output_dir, sources)
    write_bidsignore(output_dir)
    write_descriptions(output_dir, {desc_label(model.name): model_description(model) for model in models})
    write_citation(output_dir)
    readme = output_dir / "README.md"
    if not readme.exists():  # users may have written their own
        write_text(readme, _template("README.md"))


def _template(name: str) -> str:
    return files("neurostorm_bids").joinpath("data", "outputs", name).read_text(encoding="utf-8")


# --- dataset_description.json -----------------------------------------------------------------------------------


def write_dataset_description(output_dir: Path, sources: Sequence[Source]) -> None:
    """Write dataset_description.json: this app first, then what produced the input.

    Raises
    ------
    OutputNotWritable
        The folder is a dataset of another program.
    """
    path = output_dir / "dataset_description.json"
    check_own_folder(path)
    write_json(path, dataset_description(output_dir, sources))


def dataset_description(output_dir: Path, sources: Sequence[Source]) -> dict[str, Any]:
    """Content of dataset_description.json; links to the inputs are relative, so that both may move together."""
    links = {name: _link(root, output_dir) for name, root in name_datasets(sources).items()}
    inputs = [_description_of(source.root) for source in _ordered(sources)]
    return {
        "Name": "NeuroSTORM embeddings and predictions",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [_this_app(), *_generators(sources, inputs)],
        "SourceDatasets": [_source_dataset(link, given) for link, given in zip(links.values(), inputs, strict=True)],
        "DatasetLinks": {**links, "templateflow": TEMPLATEFLOW},
    }


def name_datasets(sources: Sequence[Source]) -> dict[str, Path]:
    """A short distinct name for each input dataset, for BIDS URIs: ``fmriprep``, a second one ``fmriprep-2``."""
    named: dict[str, Path] = {}
    for source in _ordered(sources):
        stem = re.sub(r"[^0-9a-z]", "", source.pipeline.lower()) or "input"
        number = sum(name == stem or name.startswith(f"{stem}-") for name in named) + 1
        named[stem if number == 1 else f"{stem}-{number}"] = source.root
    return named


def _ordered(sources: Sequence[Source]) -> list[Source]:
    """Each dataset once, in an order that does not depend on who asks."""
    return sorted({source.root: source for source in sources}.values(), key=lambda source: str(source.root))


def _link(root: Path, output_dir: Path) -> str:
    return quote(Path(os.path.relpath(root.resolve(), output_dir.resolve())).as_posix())


def _this_app() -> dict[str, Any]:
    entry: dict[str, Any] = {"Name": APP_NAME, "Version": __version__}
    container = container_tag(os.environ)
    return {**entry, "Container": container} if container else entry


def container_tag(environment: Mapping[str, str]) -> dict[str, str] | None:
    """Type and tag of the container that runs this process, as its image and runtime announce them."""
    apptainer = environment.get("APPTAINER_NAME") or environment.get("SINGULARITY_NAME")
    image = environment.get("NEUROSTORM_CONTAINER")
    if apptainer:
        return {"Type": "apptainer", "Tag": image or Path(apptainer).name}
    return {"Type": "docker", "Tag": image} if image else None


def _description_of(root: Path) -> dict[str, Any]:
    try:
        content = json.loads((root / "dataset_description.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}  # the inputs stage has warned already
    return content if isinstance(content, dict) else {}


def _generators(sources: Sequence[Source], inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """GeneratedBy entries of the inputs, each once; old datasets have one PipelineDescription instead."""
    entries: list[dict[str, Any]] = []
    for source, given in zip(_ordered(sources), inputs, strict=True):
        stated = given.get("GeneratedBy")
        stated = stated if isinstance(stated, list) else [given.get("PipelineDescription")]
        known = [entry for entry in stated if isinstance(entry, dict) and entry.get("Name")]
        entries += known or [_without_none({"Name": source.pipeline, "Version": source.version})]
    return [entry for index, entry in enumerate(entries) if entry not in entries[:index]]


def _source_dataset(link: str, given: Mapping[str, Any]) -> dict[str, Any]:
    return _without_none({"URL": link, "DOI": given.get("DatasetDOI")})


def _without_none(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entries.items() if value is not None}


def check_own_folder(path: Path) -> None:
    """Refuse to overwrite the dataset_description.json of another program.

    Raises
    ------
    OutputNotWritable
        ``path`` exists and does not name this app first in GeneratedBy.
    """
    if not (path.exists() or path.is_symlink()):
        return
    generators = _description_of(path.parent).get("GeneratedBy") or [{}]
    first = generators[0].get("Name") if isinstance(generators[0], dict) else None
    if first != APP_NAME:
        raise OutputNotWritable(
            f"the output folder is a dataset of {first or 'another program'}",
            file=path,
            expected=f"an empty folder, or one that {APP_NAME} wrote",
            remedy="name another output folder",
        )


# --- descriptions.tsv -------------------------------------------------------------------------------------------

_APP_DESCRIPTION = "Quality figures and normalised run on the model grid, whatever the model."


def write_descriptions(output_dir: Path, descriptions: Mapping[str, str]) -> None:
    """Add desc- labels to descriptions.tsv, whoever else adds some at the same time.

    Each label first gets a file of its own, then the table is made of all those files, until none was added
    meanwhile. So the last process to write the table has seen every label, without a lock.
    """
    folder = output_dir / "logs" / "descriptions"
    for label, text in descriptions.items():
        write_text(folder / f"{label}.tsv", tsv_text(_description_columns({label: text})))
    composed: dict[str, str] | None = None
    while (present := _read_descriptions(folder)) != composed:
        write_text(output_dir / "descriptions.tsv", tsv_text(_description_columns(present)))
        composed = present


def _read_descriptions(folder: Path) -> dict[str, str]:
    rows = [row for path in sorted(folder.glob("*.tsv")) for row in read_tsv(path)]
    found = {str(row["desc_id"]).removeprefix("desc-"): str(row["description"]) for row in rows}
    shared = found.get(APP_DESC)  # a model may bear the name of the app
    found[APP_DESC] = f"{_APP_DESCRIPTION} {shared}" if shared else _APP_DESCRIPTION
    return dict(sorted(found.items()))


def _description_columns(descriptions: Mapping[str, str]) -> list[Column]:
    return [
        Column("desc_id", [f"desc-{label}" for label in descriptions], "Label of the desc- entity."),
        Column("description", list(descriptions.values()), "What the label stands for."),
    ]


# --- .bidsignore and citations ----------------------------------------------------------------------------------


def write_bidsignore(output_dir: Path, *, sessions_as_rows: bool | None = None) -> None:
    """Write the patterns of our own suffixes into .bidsignore, keeping lines that users added.

    BIDS 1.11 wants each participant once in a phenotype table. Where sessions are rows the group tables cannot be
    that, and are ignored; None leaves that as it stands.
    """
    path = output_dir / ".bidsignore"
    present = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    if sessions_as_rows is not None:
        present = [line for line in present if line != SESSIONS_AS_ROWS] + [SESSIONS_AS_ROWS] * sessions_as_rows
    write_text(path, "\n".join([*BIDSIGNORE, *(line for line in present if line not in BIDSIGNORE)]) + "\n")


def write_citation(output_dir: Path) -> None:
    """Write the methods text and its references into ``logs/``."""
    write_text(output_dir / "logs" / "CITATION.md", citation_text())
    write_text(output_dir / "logs" / "CITATION.bib", _template("CITATION.bib"))


def citation_text() -> str:
    """Methods text with citation keys, for ``--boilerplate-only`` and ``logs/CITATION.md``."""
    return _template("CITATION.md").format(version=__version__)


# --- links ------------------------------------------------------------------------------------------------------


def check_no_way_out(output_dir: Path, labels: Iterable[str] = ()) -> None:
    """Refuse an output folder in which a link leads a folder of ours elsewhere: nothing is written through it.

    Links of files are harmless, since every file is replaced and not written into. The folders of the participants
    ``labels`` are looked at, and those that belong to nobody.

    Raises
    ------
    OutputNotWritable
        Naming the link.
    """
    root = output_dir.resolve()
    heads = [output_dir / f"sub-{label}" for label in labels]
    heads += [path for path in _folders_in(output_dir) if not path.name.startswith("sub-")]
    for folder in (found for head in heads for found in _with_folders_below(head, depth=3)):
        if folder.is_symlink() and not folder.resolve().is_relative_to(root):
            raise OutputNotWritable(
                "is a link that leads out of the output folder",
                file=folder,
                expected="folders, and links within it",
                remedy="remove the link; to have results elsewhere name that place as OUTPUT_DIR",
            )


def _with_folders_below(folder: Path, depth: int) -> Iterable[Path]:
    yield folder
    if depth and not folder.is_symlink():
        for below in _folders_in(folder):
            yield from _with_folders_below(below, depth - 1)


def _folders_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return [folder / entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
