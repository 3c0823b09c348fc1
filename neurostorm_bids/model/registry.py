"""From what ``--model`` says to a folder or checkpoint on this machine.

A name is looked for in the folders of ``NEUROSTORM_MODELS``, in the image, among the bundled models, in the hub's
cache, and last on the hub itself, which is announced with its size and never done with ``offline``.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from neurostorm_bids.errors import (
    ModelError,
    ModelFileTooLarge,
    ModelFolderEdited,
    ModelNotFound,
    ModelUnreachable,
    NoModelGiven,
)

log = logging.getLogger(__name__)

IMAGE_MODELS = Path("/opt/neurostorm/models")
CHECKPOINT_SUFFIXES = (".ckpt", ".pth", ".pt")
MAX_DOWNLOAD_BYTES = 8 * 2**30


@dataclass(frozen=True)
class HubFile:
    """A file on the Hugging Face hub, pinned where its revision and hash are known."""

    repo: str
    file: str
    revision: str | None
    bytes: int | None
    sha256: str | None

    @property
    def basename(self) -> str:
        """The file's name without its folder on the hub."""
        return self.file.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class RegistryEntry:
    """A model known by name. ``verified`` is False while nobody has loaded the file with this program."""

    name: str
    summary: str
    licence: str
    verified: bool
    bundled: str | None = None
    hub: HubFile | None = None


@dataclass(frozen=True)
class ModelSource:
    """Where a model was found: its folder or checkpoint, the name it goes by, and its registry entry if any."""

    path: Path
    name: str
    origin: str
    entry: RegistryEntry | None = None


def registry() -> tuple[RegistryEntry, ...]:
    """The registered models, in the order of ``data/models.json``."""
    values = json.loads((_data() / "models.json").read_text(encoding="utf-8"))["models"]
    return tuple(
        RegistryEntry(**value | {"hub": HubFile(**value["hub"]) if "hub" in value else None}) for value in values
    )


def _data() -> Path:
    return Path(str(files("neurostorm_bids"))) / "data"


def model_folders() -> tuple[Path, ...]:
    """Folders in which installed models lie: those of ``NEUROSTORM_MODELS``, then the image's."""
    stated = [Path(part) for part in os.environ.get("NEUROSTORM_MODELS", "").split(os.pathsep) if part]
    return (*stated, IMAGE_MODELS)


def installed_models() -> dict[str, Path]:
    """Models in the model folders by name (folder name, or file name without suffix); the first of a name counts."""
    found: dict[str, Path] = {}
    for path in (path for folder in model_folders() for path in _children(folder)):
        if (path / "model.json").is_file():
            found.setdefault(path.name, path)
        elif path.suffix in CHECKPOINT_SUFFIXES and path.is_file():
            found.setdefault(path.stem, path)
    return found


def _children(folder: Path) -> Iterator[Path]:
    if (folder / "model.json").is_file():  # the variable names a model, not a folder of models
        yield folder
    elif folder.is_dir():
        yield from sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def find_model(source: str | Path, *, offline: bool = False, cache_dir: Path | None = None) -> ModelSource:
    """A folder or checkpoint on this machine for a path or a name.

    Parameters
    ----------
    source : str or path
        Anything with a path separator or a checkpoint suffix is a path; else a registered or installed name; else a
        path after all.
    offline : bool
        Never ask the hub.
    cache_dir : path, optional
        The hub's cache, if not its own default.

    Raises
    ------
    ModelNotFound, ModelUnreachable
    """
    text = str(source)
    if isinstance(source, Path) or _looks_like_path(text):
        return _from_path(Path(source))
    entry = next((entry for entry in registry() if entry.name == text), None)
    found = _installed(text, entry)
    if found is not None:
        return found
    if entry is not None:
        return _from_hub(entry, offline, cache_dir)
    if Path(text).exists():
        return _from_path(Path(text))
    raise ModelNotFound(
        f"no model {text!r}", expected="a model folder, a checkpoint, or one of: " + _names(), remedy=_HOW_TO_INSTALL
    )


def default_model() -> str:
    """The name of the one installed model.

    Raises
    ------
    NoModelGiven
        When none or several are installed. The bundled demo model is never a default: it is untrained.
    """
    names = [name for name, path in installed_models().items() if not _is_pack(path)]
    if len(names) == 1:
        return names[0]
    found = f"several are installed ({', '.join(names)})" if names else "none is installed"
    expected = "--model with a folder, a checkpoint or one of: " + _names()
    raise NoModelGiven(f"no model was named and {found}", expected=expected, remedy=_HOW_TO_INSTALL)


def _is_pack(path: Path) -> bool:
    from neurostorm_bids.model.description import read_json

    try:
        values = read_json(path / "model.json") if path.is_dir() else {}
    except ModelError:
        return False  # whoever names it is told what is wrong with it
    return isinstance(values, dict) and values.get("backbone") is not None


_HOW_TO_INSTALL = (
    "Name a registered model to download it, give the path of a model folder or of a NeuroSTORM .ckpt, or put either "
    "into a folder that NEUROSTORM_MODELS names; neurostorm-models list shows what there is"
)


def _names() -> str:
    return ", ".join(dict.fromkeys([*installed_models(), *(entry.name for entry in registry())]))


def _looks_like_path(text: str) -> bool:
    separators = [os.sep, *([os.altsep] if os.altsep else [])]
    return any(s in text for s in separators) or text in (".", "..") or Path(text).suffix in CHECKPOINT_SUFFIXES


def _from_path(path: Path) -> ModelSource:
    if (path / "model.json").is_file():
        return ModelSource(path, path.resolve().name, "path")
    if path.is_file():
        return ModelSource(path, path.stem, "path")
    if path.is_symlink():
        raise ModelNotFound("a link to nothing", file=path, remedy="not fetched: run `datalad get`")
    fault = "a folder without model.json" if path.is_dir() else "does not exist"
    raise ModelNotFound(fault, file=path, expected="a model folder or a checkpoint", remedy=_HOW_TO_INSTALL)


def _installed(name: str, entry: RegistryEntry | None) -> ModelSource | None:
    found = installed_models()
    if name in found:
        if entry is not None and entry.hub is not None and found[name].name == entry.hub.basename:
            check_pinned(found[name], entry.hub)
        return ModelSource(found[name], name, "installed", entry)
    if entry is not None and entry.hub is not None:
        for folder in model_folders():
            if (folder / entry.hub.basename).is_file():
                check_pinned(folder / entry.hub.basename, entry.hub)
                return ModelSource(folder / entry.hub.basename, name, "installed", entry)
    if entry is not None and entry.bundled is not None:
        return ModelSource(_data() / entry.bundled, name, "bundled", entry)
    return None


# --- hub --------------------------------------------------------------------------------------------------------


def cached_file(hub: HubFile, cache_dir: Path | None = None) -> Path | None:
    """The file in the hub's cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub.repo, hub.file, cache_dir=cache_dir, revision=hub.revision)
    return Path(found) if isinstance(found, str) else None


def _from_hub(entry: RegistryEntry, offline: bool, cache_dir: Path | None) -> ModelSource:
    hub = entry.hub
    if hub is None:
        raise ModelNotFound(f"the registered model {entry.name} has no file", remedy="report this")
    path = cached_file(hub, cache_dir)
    origin = "hub cache"
    if path is None:
        if offline:
            raise _unreachable(entry, hub, "--offline forbids the download")
        path, origin = _download(entry, hub, cache_dir), "hub"
    check_pinned(path, hub)
    return ModelSource(path, entry.name, origin, entry)


def _download(entry: RegistryEntry, hub: HubFile, cache_dir: Path | None) -> Path:
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url

    # the client library's own base class (httpx or requests, by version), under the name the hub imports it by
    transport: type[Exception] = vars(errors)["HTTPError"]
    try:
        size = get_hf_file_metadata(hf_hub_url(hub.repo, hub.file, revision=hub.revision)).size
        _announce(entry, hub, size)
        return Path(hf_hub_download(hub.repo, hub.file, revision=hub.revision, cache_dir=cache_dir))
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, transport, OSError) as error:
        raise _unreachable(entry, hub, f"the hub cannot be reached or lacks it ({type(error).__name__})") from error


def _announce(entry: RegistryEntry, hub: HubFile, size: int | None) -> None:
    if size is not None and size > MAX_DOWNLOAD_BYTES:
        raise ModelFileTooLarge(
            f"{size} bytes", file=f"{hub.repo}/{hub.file}", expected=f"at most {MAX_DOWNLOAD_BYTES}"
        )
    shown = f"{size / 1e6:.0f} MB" if size is not None else "size unknown"
    log.warning("downloading %s: %s/%s, revision %s, %s", entry.name, hub.repo, hub.file, hub.revision or "main", shown)


def check_pinned(path: Path, hub: HubFile) -> None:
    """Refuse a file of another size or hash than the registry's, where these are known."""
    from neurostorm_bids.model.folder import file_hash

    size = path.stat().st_size
    if hub.bytes is not None and size != hub.bytes:
        raise ModelFolderEdited(
            f"holds {size} bytes", file=path, expected=f"{hub.bytes}", remedy="remove it and fetch it again"
        )
    if hub.sha256 is not None and file_hash(path) != hub.sha256:
        raise ModelFolderEdited(
            "is not the registered file", file=path, expected=f"SHA-256 {hub.sha256}", remedy="fetch it again"
        )


def _unreachable(entry: RegistryEntry, hub: HubFile, why: str) -> ModelUnreachable:
    place = next(iter(model_folders()))
    return ModelUnreachable(
        f"the model {entry.name} is not on this machine and {why}",
        remedy=(
            f"On a machine with a network fetch https://huggingface.co/{hub.repo}/resolve/{hub.revision or 'main'}/"
            f"{hub.file} and put it here as {place / hub.basename} (a folder that NEUROSTORM_MODELS names)"
        ),
    )


# --- listing ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Listed:
    """A row of ``neurostorm-models list``."""

    name: str
    status: str
    summary: str


def listing(cache_dir: Path | None = None) -> list[Listed]:
    """Registered models with where they are, then installed ones that no entry names."""
    entries = registry()
    rows = [Listed(entry.name, _status(entry, cache_dir), entry.summary) for entry in entries]
    known = {entry.name for entry in entries}
    return rows + [
        Listed(name, "installed, a pack" if _is_pack(path) else "installed", str(path))
        for name, path in installed_models().items()
        if name not in known
    ]


def _status(entry: RegistryEntry, cache_dir: Path | None) -> str:
    found = _installed(entry.name, entry)
    if found is not None:
        where = found.origin
    elif entry.hub is not None and cached_file(entry.hub, cache_dir) is not None:
        where = "hub cache"
    else:
        size = entry.hub.bytes if entry.hub is not None else None
        where = "on the hub" + (f", {size / 1e6:.0f} MB" if size else "")
    return where if entry.verified else where + ", unverified"
