"""Names lead to installed, bundled, cached or downloadable models, in that order, and never to a silent download."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from neurostorm_bids.errors import (
    ModelFileTooLarge,
    ModelFolderEdited,
    ModelNotFound,
    ModelUnreachable,
    NoModelGiven,
)
from neurostorm_bids.model import registry as registry_module
from neurostorm_bids.model.description import model_label
from neurostorm_bids.model.registry import (
    HubFile,
    RegistryEntry,
    default_model,
    find_model,
    installed_models,
    listing,
    registry,
)

HUB = HubFile("someone/models", "folder/brain.ckpt", "0" * 40, 5, None)
ENTRY = RegistryEntry("brain", "A model.", "MIT", verified=False, hub=HUB)


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of models, no image, one registered hub model besides the bundled one, an empty hub cache."""
    (tmp_path / "models").mkdir()
    monkeypatch.setenv("NEUROSTORM_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(registry_module, "IMAGE_MODELS", tmp_path / "image")
    monkeypatch.setattr(registry_module, "registry", lambda: (bundled(), ENTRY))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "models"


def bundled() -> RegistryEntry:
    return next(entry for entry in registry() if entry.name == "demo")


def make_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "model.json").write_text("{}")
    return path


def cached(tmp_path: Path, hub: HubFile = HUB, content: bytes = b"12345") -> Path:
    """The hub's cache with one file, laid out as huggingface_hub does."""
    folder = tmp_path / "cache" / ("models--" + hub.repo.replace("/", "--"))
    file = folder / "snapshots" / str(hub.revision) / hub.file
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    return tmp_path / "cache"


# --- the file ---------------------------------------------------------------------------------------------------


def test_registered_models_have_different_labels_and_pinned_files():
    entries = registry()
    assert len({model_label(entry.name) for entry in entries}) == len(entries)
    for entry in entries:
        assert (entry.hub is None) != (entry.bundled is None)
        assert entry.hub is None or (entry.hub.revision is not None and len(entry.hub.revision) == 40)


def test_models_that_nobody_has_loaded_are_marked():
    assert all(not entry.verified for entry in registry() if entry.hub is not None and entry.hub.sha256 is None)


# --- order ------------------------------------------------------------------------------------------------------


def test_the_stated_folders_come_before_the_image_the_image_before_the_cache(models: Path, tmp_path: Path):
    cache = cached(tmp_path)
    found = find_model("brain", cache_dir=cache)
    assert (found.origin, found.path.read_bytes(), found.entry) == ("hub cache", b"12345", ENTRY)
    image = make_folder(tmp_path / "image" / "brain")
    assert find_model("brain", cache_dir=cache).path == image
    stated = make_folder(models / "brain")
    assert find_model("brain", cache_dir=cache).path == stated


def test_several_stated_folders(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    other = make_folder(tmp_path / "more" / "b")
    monkeypatch.setenv("NEUROSTORM_MODELS", f"{models}:{tmp_path / 'more'}:{tmp_path / 'absent'}")
    make_folder(models / "a")
    (models / "c.ckpt").write_bytes(b"x")
    (models / "notes.txt").write_text("x")
    assert installed_models() == {"a": models / "a", "c": models / "c.ckpt", "b": other}


def test_a_registered_file_in_a_model_folder_under_its_own_name(models: Path):
    (models / "brain.ckpt").write_bytes(b"12345")
    assert find_model("brain").path == models / "brain.ckpt"


def test_the_bundled_model_goes_by_its_name():
    found = find_model("demo")
    assert (found.origin, found.path.name) == ("bundled", "demo-model")


@pytest.mark.parametrize("given", ["./brain", "{tmp}/brain", "brain/"])
def test_what_looks_like_a_path_is_a_path(given: str, models: Path, tmp_path: Path):
    make_folder(models / "brain")
    here = make_folder(tmp_path / "brain")
    assert find_model(given.replace("{tmp}", str(tmp_path))).path.resolve() == here


def test_a_name_of_nothing_registered_is_a_path_after_all(tmp_path: Path):
    make_folder(tmp_path / "mine")
    assert find_model("mine").path == Path("mine")
    assert find_model(tmp_path / "mine").name == "mine"


# --- nothing there ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("nobody", r"no model 'nobody'. expected a model folder, a checkpoint, or one of: demo, brain"),
        ("./nobody", "nobody: does not exist. expected a model folder or a checkpoint"),
        ("nobody.ckpt", r"nobody\.ckpt: does not exist"),
        ("..", r"a folder without model\.json"),
    ],
)
def test_unknown_models(given: str, fault: str):
    with pytest.raises(ModelNotFound, match=fault) as caught:
        find_model(given)
    assert "neurostorm-models list" in str(caught.value) and caught.value.exit_code == 66


def test_a_dangling_link_is_not_called_missing(tmp_path: Path):
    (tmp_path / "a.ckpt").symlink_to(".git/annex/x")
    with pytest.raises(ModelNotFound, match="datalad get"):
        find_model("a.ckpt")


def test_no_default_among_none_or_several_and_never_the_demo_model(models: Path):
    with pytest.raises(NoModelGiven, match=r"none is installed.*one of: demo, brain.*NEUROSTORM_MODELS") as caught:
        default_model()
    assert caught.value.exit_code == 66
    make_folder(models / "a")
    assert default_model() == "a"
    make_folder(models / "b")
    with pytest.raises(NoModelGiven, match=r"several are installed \(a, b\)"):
        default_model()


def test_a_pack_is_no_default(models: Path):
    (make_folder(models / "age") / "model.json").write_text('{"backbone": {"name": "a"}}')
    with pytest.raises(NoModelGiven, match="none is installed"):
        default_model()
    (make_folder(models / "broken") / "model.json").write_text("[")
    assert default_model() == "broken"  # and loading it says what is wrong
    assert {row.name: row.status for row in listing()}["age"] == "installed, a pack"


def test_the_variable_may_name_a_model_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = make_folder(tmp_path / "mine")
    monkeypatch.setenv("NEUROSTORM_MODELS", str(folder))
    assert installed_models() == {"mine": folder} and default_model() == "mine"


# --- hub --------------------------------------------------------------------------------------------------------


def test_offline_says_which_file_to_put_where(models: Path, tmp_path: Path):
    with pytest.raises(ModelUnreachable) as caught:
        find_model("brain", offline=True, cache_dir=tmp_path / "cache")
    message = str(caught.value)
    assert "--offline forbids the download" in message
    assert f"https://huggingface.co/someone/models/resolve/{'0' * 40}/folder/brain.ckpt" in message
    assert str(models / "brain.ckpt") in message
    assert caught.value.exit_code == 66


def test_a_cached_model_needs_no_network(tmp_path: Path):
    assert find_model("brain", offline=True, cache_dir=cached(tmp_path)).origin == "hub cache"


def test_without_a_network_the_message_is_the_same(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub
    from huggingface_hub import errors

    class ConnectError(vars(errors)["HTTPError"]):
        """What the hub's client raises without a route to the host."""

    def refuse(*_args: object, **_options: object) -> None:
        raise ConnectError("no route to host")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    with pytest.raises(ModelUnreachable, match=r"cannot be reached or lacks it \(ConnectError\)") as caught:
        find_model("brain", cache_dir=tmp_path / "cache")
    assert str(models / "brain.ckpt") in str(caught.value)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A hub that serves five bytes; counts its downloads."""
    import huggingface_hub

    calls = {"size": 5, "downloads": 0}

    class Metadata:
        size = property(lambda self: calls["size"])

    def download(repo: str, file: str, *, revision: str | None, cache_dir: Path | None) -> str:
        calls["downloads"] += 1
        assert (repo, file, revision) == (HUB.repo, HUB.file, HUB.revision)
        (tmp_path / "downloaded.ckpt").write_bytes(b"12345")
        return str(tmp_path / "downloaded.ckpt")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url: Metadata())
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return calls


def test_a_download_is_announced_with_its_size(hub: dict[str, int], tmp_path: Path, caplog: pytest.LogCaptureFixture):
    hub["size"] = 93_000_000
    with caplog.at_level(logging.WARNING):
        assert find_model("brain", cache_dir=tmp_path / "cache").origin == "hub"
    assert "downloading brain: someone/models/folder/brain.ckpt" in caplog.text and "93 MB" in caplog.text


def test_an_absurd_size_is_not_downloaded(hub: dict[str, int], tmp_path: Path):
    hub["size"] = 10**12
    with pytest.raises(ModelFileTooLarge, match=f"{10**12} bytes"):
        find_model("brain", cache_dir=tmp_path / "cache")
    assert hub["downloads"] == 0


@pytest.mark.parametrize(
    ("pinned", "fault"),
    [
        (replace(HUB, bytes=6), "holds 5 bytes. expected 6"),
        (replace(HUB, sha256="a" * 64), "is not the registered file. expected SHA-256 aaaa"),
    ],
)
def test_a_file_that_is_not_the_registered_one_is_refused(
    pinned: HubFile, fault: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(registry_module, "registry", lambda: (replace(ENTRY, hub=pinned),))
    with pytest.raises(ModelFolderEdited, match=fault):
        find_model("brain", cache_dir=cached(tmp_path, pinned))
    (models / "brain.ckpt").write_bytes(b"12345")
    with pytest.raises(ModelFolderEdited, match=fault):  # wherever the file lies
        find_model("brain")


# --- listing ----------------------------------------------------------------------------------------------------


def test_the_list_says_where_each_model_is(models: Path, tmp_path: Path):
    make_folder(models / "mine")
    rows = {row.name: row.status for row in listing(tmp_path / "cache")}
    assert rows == {"demo": "bundled", "brain": "on the hub, 0 MB, unverified", "mine": "installed"}
    assert {row.name: row.status for row in listing(cached(tmp_path))}["brain"] == "hub cache, unverified"
