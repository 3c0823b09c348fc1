"""What faults are put into: small calls of the program, each with everything it needs below one folder."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

AFFINE = [[-16, 0, 0, 89], [0, 16, 0, -107], [0, 0, 16, -71], [0, 0, 0, 1]]


@dataclass(frozen=True)
class Scenario:
    """One command line; ``first`` are words that the first call alone has, the others resume."""

    name: str
    make: Callable[[Path], None]
    words: tuple[str, ...]

    def argv(self, folder: Path) -> list[str]:
        """The command line, with everything below ``folder``."""
        level = "participant" if "--group-workflow" not in self.words else "group"
        start = [str(folder / "fmriprep"), str(folder / "out"), level, "-w", str(folder / "work"), "--nprocs", "1"]
        return [*start, *(word.replace("{}", str(folder)) for word in self.words)]

    def clear(self, folder: Path) -> None:
        """Remove what a call left; what `make` put into ``before`` is there again."""
        for name in ("out", "work"):
            shutil.rmtree(folder / name, ignore_errors=True)
        if (folder / "before").is_dir():
            shutil.copytree(folder / "before", folder / "out")


def write_runs(folder: Path, n_subjects: int, n_volumes: int, zoom_mm: float) -> None:
    """A simulated dataset in the model's template."""
    from neurostorm_bids.simulate import write_dataset

    write_dataset(
        folder / "fmriprep", n_subjects=n_subjects, n_volumes=n_volumes, zoom_mm=zoom_mm, seed=1,
        spaces=("MNI152NLin6Asym",),
    )  # fmt: skip
    (folder / "linear.yml").write_text("plugin: Linear\n")


def write_tiny_model(folder: Path, name: str = "tiny") -> None:
    """A model of a few thousand weights on a grid of 12 x 12 x 12."""
    import torch

    from neurostorm_bids.model import Encoder, EncoderConfig, InputSpec
    from neurostorm_bids.model.description import INPUT_FIELDS, ModelDescription
    from neurostorm_bids.model.folder import weights_of, write_model_folder
    from neurostorm_bids.space.grid import Grid

    config = EncoderConfig(img_size=(12, 12, 12, 20), embed_dim=8, patch_size=(4, 4, 4, 1), depths=(1, 1))
    grid = Grid.of((12, 12, 12), AFFINE, "MNI152NLin6Asym")
    spec = InputSpec(grid=grid, provenance=dict.fromkeys(INPUT_FIELDS, "stated"))
    encoder = Encoder(config, generator=torch.Generator().manual_seed(0))
    description = ModelDescription(name=name, config=config, input=spec, trained=True)
    write_model_folder(folder / name, description, weights_of(encoder, {}))


def _participants(folder: Path) -> None:
    write_runs(folder, n_subjects=2, n_volumes=30, zoom_mm=12.0)
    write_tiny_model(folder)


def _aggregated(folder: Path) -> None:
    from neurostorm_bids.cli import main

    _participants(folder)
    assert main(PARTICIPANT.argv(folder)) == 0
    shutil.move(folder / "out", folder / "before")


def _trainable(folder: Path) -> None:
    write_runs(folder, n_subjects=6, n_volumes=30, zoom_mm=12.0)
    write_tiny_model(folder)


_TRAINING = ("--quiet", "--device", "cpu", "--epochs", "2", "--batch-size", "2", "--checkpoint-every", "1", "--resume")
PARTICIPANT = Scenario(
    "participant", _participants,
    ("--model", "{}/tiny", "--offline", "--use-plugin", "{}/linear.yml", "--output-bold"),
)  # fmt: skip
SCENARIOS = (
    PARTICIPANT,
    Scenario("aggregate", _aggregated, ("--group-workflow", "aggregate")),
    Scenario(
        "pretrain", _trainable,
        ("--group-workflow", "pretrain", "--model", "{}/tiny", "--name", "base", "--validation-share", "0.4",
         *_TRAINING),
    ),
    Scenario(
        "finetune", _trainable,
        ("--group-workflow", "finetune", "--model", "{}/tiny", "--name", "aged", "--target", "age", "--folds", "2",
         "--fold", "all", "--method", "prompt", "--prompt-length", "2", *_TRAINING),
    ),
)  # fmt: skip


# --- trees ----------------------------------------------------------------------------------------------------------


def tree_of(folder: Path) -> dict[str, str]:
    """Hash of every file of an output folder; logs, and how many seconds a training took, aside."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_symlink() or path.is_file())
    named = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: _hash(path) for name, path in named.items() if not _is_log(name)}


def _is_log(name: str) -> bool:
    """Logs, and a crash file's folder; the list of models below ``logs/`` is no log."""
    return "/log/" in name or name.startswith("logs/training/")


def _hash(path: Path) -> str:
    content = path.read_bytes()
    if path.name == "training.json":
        content = re.sub(rb'"seconds": [0-9.e+-]+', b'"seconds": 0', content)
    return hashlib.sha256(content).hexdigest()


def is_partial(name: str) -> bool:
    """Whether a file bears the name of one that is not yet whole."""
    return any(re.fullmatch(r"\..+\.(tmp|partial)", part) for part in name.split("/"))


def differences(found: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """In words, how two trees differ."""
    missing = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    more = [f"{name} should not be there" for name in found.keys() - wanted.keys()]
    other = [f"{name} differs" for name in found.keys() & wanted.keys() if found[name] != wanted[name]]
    return sorted(missing + more + other)


def half_files(folder: Path, found: dict[str, str], versions: dict[str, set[str]]) -> list[str]:
    """Files that stand under a final name and are none of the whole versions that an undisturbed call writes.

    Pages and the figures of an evaluation tell of what is there, and so differ where a run failed: they must be whole.
    """
    odd = [name for name, content in found.items() if not is_partial(name) and content not in versions.get(name, ())]
    return [name for name in odd if not (name.endswith(".html") and _ends_with(folder / name, b"</html>"))]


def _ends_with(path: Path, end: bytes) -> bool:
    return path.read_bytes().rstrip().endswith(end)


def dump(folder: Path, values: dict) -> None:
    """Keep figures of a campaign as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "figures.json").write_text(json.dumps(values, indent=2) + "\n")
