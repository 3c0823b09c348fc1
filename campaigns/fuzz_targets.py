"""The readers under test: whole files to damage, and what the program does with the damaged ones."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from campaigns.fuzz_mutations import Field, damaged, other_json, tables


@dataclass(frozen=True)
class Target:
    """A reader: ``cases`` makes bytes over whole files and kept ones, ``read`` reads a file of them."""

    name: str
    cases: Callable[[Sequence[bytes]], st.SearchStrategy[bytes]]
    read: Callable[[Path], object]


# --- NIfTI ----------------------------------------------------------------------------------------------------------

NIFTI_FIELDS: tuple[Field, ...] = (
    (0, "i"),
    *((40 + 2 * n, "h") for n in range(8)),
    (68, "h"),
    (70, "h"),
    (72, "h"),
    *((76 + 4 * n, "f") for n in range(8)),
    (108, "f"),
    (112, "f"),
    (116, "f"),
    (123, "B"),
    (252, "h"),
    (254, "h"),
    *((256 + 4 * n, "f") for n in range(18)),
    (344, "i"),
    (4, "q"),
    *((16 + 8 * n, "q") for n in range(8)),
)


@cache
def nifti_bases() -> tuple[bytes, ...]:
    """A series, a mask, a NIfTI-2, a FNIRT field."""
    import nibabel

    matrix = np.diag([12.0, 12, 12, 1])
    noise = np.random.default_rng(0).normal(100, 10, (4, 5, 3, 6)).astype("f4")
    images = [nibabel.Nifti1Image(noise, matrix), nibabel.Nifti1Image((noise[..., 0] > 100).astype("u1"), matrix)]
    images += [nibabel.Nifti2Image(noise.astype("i2"), matrix), nibabel.Nifti1Image(noise[..., :3], matrix)]
    images[0].header.set_xyzt_units("mm", "sec")
    images[3].header["intent_code"] = 2006
    return tuple(image.to_bytes() for image in images)


def nifti_cases(kept: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Damaged headers and voxels, and damaged gzip streams."""
    whole = damaged([*nifti_bases(), *kept], NIFTI_FIELDS)
    streams = tuple(gzip.compress(raw, 1, mtime=0) for raw in nifti_bases())
    return whole | whole.map(lambda raw: gzip.compress(raw, 1, mtime=0)) | damaged(streams)


def read_nifti(path: Path) -> object:
    """Header, place, time, every volume; as a mask and as a warp too."""
    from neurostorm_bids.space.fnirt import is_nifti, read_warp
    from neurostorm_bids.space.grid import Grid
    from neurostorm_bids.space.header import judged_affine, judged_t_r_s
    from neurostorm_bids.space.masks import open_mask, read_mask
    from neurostorm_bids.space.nifti import open_nifti

    def place() -> object:
        image = open_nifti(path)
        geometry = Grid.of(image.shape[:3], judged_affine(image, in_template=True), "MNI152NLin6Asym")
        judged_t_r_s(image.header, None, path)
        return sum(float(np.isfinite(volume).sum()) for volume in image.volumes()), geometry

    def mask() -> object:
        image = open_nifti(path)
        geometry = Grid.of(image.shape[:3], judged_affine(image, in_template=False), "boldref")
        return read_mask(open_mask(path, geometry, in_template=False)).sum()

    def warp() -> object:
        grid = Grid.of((4, 5, 3), np.diag([12.0, 12, 12, 1]), "boldref")
        return read_warp(path, grid).map(np.zeros((2, 3))) if is_nifti(path) else None

    return each(place, mask, warp)


def each(*steps: Callable[[], object]) -> object:
    """All steps, whatever error of the program's own another one ends with; the errors are raised as one."""
    from neurostorm_bids.errors import NeurostormError

    errors: list[NeurostormError] = []
    for step in steps:
        try:
            step()
        except NeurostormError as error:
            errors.append(error)
    if errors:
        raise NeurostormError(" | ".join(f"{type(error).__name__}: {error.fault}" for error in errors))
    return None


# --- JSON and tables ------------------------------------------------------------------------------------------------

SIDECARS: tuple[dict[str, Any], ...] = (
    {"RepetitionTime": 2.0, "StartTime": 0.5, "TaskName": "rest", "SkullStripped": True},
    {"VolumeTiming": [0, 2, 4, 6], "StartTime": 0},
    {
        "Name": "x",
        "BIDSVersion": "1.8.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "fMRIPrep", "Version": "23.2.1"}],
    },
    {"Name": "x", "PipelineDescription": {"Name": "fMRIPrep", "Version": "1.5"}, "DatasetLinks": {"raw": "../raw"}},
    {"age": {"Description": "Age", "Units": "year"}, "sex": {"Levels": {"F": "female"}}},
    {"a_comp_cor_00": {"Mask": "combined", "Method": "aCompCor", "Retained": True, "VarianceExplained": 0.1}},
)
ENTRIES = (
    "RepetitionTime",
    "StartTime",
    "VolumeTiming",
    "GeneratedBy",
    "Name",
    "Version",
    "DatasetType",
    "Levels",
    "Mask",
)


def json_cases(kept: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Other entries, and damaged texts."""
    texts = [json.dumps(one).encode() for one in SIDECARS]
    deep = st.integers(1, 200_000).map(lambda n: b'{"a": ' + b"[" * n)
    return other_json(SIDECARS, ENTRIES) | damaged([*texts, *kept]) | deep


def read_json_file(path: Path) -> object:
    """As a sidecar, as a dataset's description, as columns of participants."""
    from neurostorm_bids.inputs.datasets import describe
    from neurostorm_bids.inputs.participants import describe_columns
    from neurostorm_bids.inputs.runs import Source
    from neurostorm_bids.inputs.sidecars import mean_removed, merged, repetition_time, start_time
    from neurostorm_bids.outputs.dataset import write_dataset_files

    described = path.parent / "dataset_description.json"
    shutil.copy(path, described)
    metadata, _ = merged([path])

    def dataset() -> object:
        found = describe(path.parent)
        with tempfile.TemporaryDirectory() as out:
            write_dataset_files(Path(out) / "out", [found.source, Source(path.parent, "x")], [])
        return found.role

    return each(
        dataset,
        lambda: repetition_time(metadata, path),
        lambda: start_time(metadata, path),
        lambda: mean_removed(metadata, "denoised"),
        lambda: describe_columns(path),
    )


COLUMNS = (
    "framewise_displacement",
    "trans_x",
    "trans_y",
    "trans_z",
    "rot_x",
    "rot_y",
    "rot_z",
    "csf",
    "participant_id",
    "age",
    "non_steady_state_outlier00",
    "session_id",
    "onset",
    "duration",
    "trial_type",
    "a_comp_cor_00",
)
CELLS = ("0.1", "-1", "n/a", "sub-01", "01", "1e5", "inf", "a")


def table_cases(kept: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Invented tables and damaged ones."""
    confounds = b"framewise_displacement\ttrans_x\nn/a\t0\n0.1\t0.2\n0.2\t0.1\n"
    people = b"participant_id\tage\tsex\nsub-01\t33\tF\nsub-02\tn/a\tM\n"
    motion = b"0 0 0 0 0 0\n0.1 0 0 0 0.01 0\n"
    events = b"onset\tduration\ttrial_type\n0\t10\ta\n12.5\t3\tb\n"
    return tables(COLUMNS, CELLS) | damaged([confounds, people, motion, events, *kept])


def read_table(path: Path) -> object:
    """As confounds, participants, motion parameters, events, and as a table of our own."""
    from neurostorm_bids.clips.denoise import confound_regressors
    from neurostorm_bids.errors import ConfoundsUnusable
    from neurostorm_bids.inputs.motion import read_motion, read_parameters
    from neurostorm_bids.inputs.participants import read_participants
    from neurostorm_bids.inputs.runs import BoldRun, MotionFile, Source
    from neurostorm_bids.inputs.tables import read_columns
    from neurostorm_bids.outputs import read_tsv
    from neurostorm_bids.training.targets import read_labels

    run = BoldRun(Source(path.parent, "x"), {"sub": "01"}, (), confounds=path, events=path)

    def motion() -> object:
        columns = read_columns(path, ConfoundsUnusable, "mend it")
        return read_motion(run, len(next(iter(columns.values()))))

    return each(
        motion,
        lambda: read_participants(path),
        lambda: read_parameters(MotionFile(path, "hcp")),
        lambda: read_parameters(MotionFile(path, "mcflirt")),
        lambda: confound_regressors(path, None, "24P"),
        lambda: read_tsv(path),
        lambda: read_labels("events:trial_type", [run], [path.parent]),
    )


FILTERS: tuple[dict[str, Any], ...] = (
    {"bold": {"task": "rest", "run": [1, 2], "acquisition": None, "session": "ses-a"}, "t1w": {"suffix": "T1w"}},
    {"mask": {"desc": "*"}, "confounds": {"echo": None}, "events": {"task": ["a", "b"]}},
)
ENTITIES = ("subject", "session", "task", "run", "echo", "desc", "space", "res", "bold", "mask", "nothing")


def filter_cases(kept: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Other filters, damaged texts, and the same words as TOML."""
    texts = [json.dumps(one).encode() for one in FILTERS]
    toml = [b'participant_label = ["01"]\nclip_stride = 10\noffline = true\nderivatives = ["a=b"]\n[x]\ny = 1\n']
    return other_json(FILTERS, ENTITIES) | damaged([*texts, *toml, *kept])


def read_filter(path: Path) -> object:
    """The filter asked of names; the same file as a configuration."""
    from neurostorm_bids.inputs.names import parse_name
    from neurostorm_bids.inputs.queries import make_queries
    from neurostorm_bids.settings import read_config

    def queries() -> object:
        found = make_queries("preproc", path)
        entities = parse_name("sub-01_ses-a_task-rest_run-01_echo-1_desc-preproc_bold.nii.gz", "func")
        return [query.matches(entities) for role in found.wanted.values() for query in role], found.runs.matches(
            entities
        )

    return each(queries, lambda: read_config(path))


# --- models ---------------------------------------------------------------------------------------------------------


@cache
def model_files() -> dict[str, bytes]:
    """A tiny model's files, and a tiny checkpoint in both of PyTorch's formats."""
    import torch

    from campaigns.scenarios import write_tiny_model
    from neurostorm_bids.model import Encoder, EncoderConfig

    with tempfile.TemporaryDirectory() as name:
        write_tiny_model(Path(name))
        files = {path.name: path.read_bytes() for path in (Path(name) / "tiny").iterdir()}
        config = EncoderConfig(img_size=(12, 12, 12, 4), embed_dim=8, depths=(1,), last_layer_full_MSA=False)
        state = {f"model.{key}": tensor for key, tensor in Encoder(config).state_dict().items()}
        parameters = {
            "img_size": [12, 12, 12, 4], "patch_size": [6, 6, 6, 1], "embed_dim": 8, "depths": [1],
            "first_window_size": [2, 2, 2, 2], "window_size": [2, 2, 2, 2], "last_layer_full_MSA": False,
        }  # fmt: skip
        for key, is_zip in {"zip.ckpt": True, "legacy.ckpt": False}.items():
            content = {"state_dict": state, "hyper_parameters": parameters, "epoch": 3}
            torch.save(content, Path(name) / key, _use_new_zipfile_serialization=is_zip)
            files[key] = (Path(name) / key).read_bytes()
    return files


PICKLES = (
    b"cos\nsystem\n(S'touch hacked'\ntR.",
    pickle.dumps({"state_dict": {}, "hyper_parameters": [1]}),
    b"\x80\x02}q\x00.",
)


def checkpoint_cases(kept: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Damaged archives, damaged pickles in whole archives, the old format, bare pickles."""
    files = model_files()
    with zipfile.ZipFile(io.BytesIO(files["zip.ckpt"])) as archive:
        inner = next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    return (
        damaged([inner, *PICKLES]).map(_with_pickle)
        | damaged([files["zip.ckpt"]])
        | damaged([files["legacy.ckpt"], *PICKLES, *kept])
    )


def _with_pickle(content: bytes) -> bytes:
    """The whole archive with another pickle in it, checksums right."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(model_files()["zip.ckpt"])) as old, zipfile.ZipFile(out, "w") as new:
        for item in old.infolist():
            new.writestr(item.filename, content if item.filename.endswith("data.pkl") else old.read(item))
    return out.getvalue()


def read_checkpoint_file(path: Path) -> object:
    """As `--model FILE.ckpt` reads it."""
    from neurostorm_bids.model.registry import ModelSource
    from neurostorm_bids.model.weights import read_parts

    return read_parts(ModelSource(path, path.stem, "path"))


def model_cases(kept: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Other descriptions, damaged ones, damaged weights, and headers of weights that say something else."""
    files = model_files()
    weights = files["weights.safetensors"]
    length = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + length])

    def with_header(text: bytes) -> bytes:
        return len(text).to_bytes(8, "little") + text + weights[8 + length :]

    described = json.loads(files["model.json"])
    return (
        other_json([described], tuple(described))
        | damaged([files["model.json"]])
        | damaged([weights, *(one for one in kept if one[:1] != b"{")], [(0, "Q")])
        | other_json([header], ("dtype", "shape", "data_offsets")).map(with_header)
    )


def read_model(path: Path) -> object:
    """As a model folder's description with whole weights, or as its weights with a whole description."""
    from neurostorm_bids.model.description import Entries, description_from_json, read_json, self_test_from_json
    from neurostorm_bids.model.folder import read_model_folder, read_safetensors
    from neurostorm_bids.model.weights import check_weights

    folder = path.parent / "folder"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    files = model_files()
    is_text = path.read_bytes()[:1] == b"{"
    (folder / "model.json").write_bytes(path.read_bytes() if is_text else files["model.json"])
    (folder / "weights.safetensors").write_bytes(files["weights.safetensors"] if is_text else path.read_bytes())

    def past_the_hashes() -> object:
        values = read_json(folder / "model.json")
        description = description_from_json(values, folder / "model.json")
        self_test_from_json(Entries(values, "", folder / "model.json"))
        return check_weights(description, read_safetensors(folder / "weights.safetensors"), folder)

    return each(lambda: read_model_folder(folder), past_the_hashes)


# --- transforms -----------------------------------------------------------------------------------------------------


@cache
def transform_bases() -> tuple[bytes, ...]:
    """An affine and a displacement field as HDF5, and a text."""
    from campaigns.bad_tree import write_h5

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "xfm.h5"
        write_h5(path)
        affine = path.read_bytes()
        import h5py

        write_h5(path, np.zeros(3 * 24), "DisplacementFieldTransform_float_3_3")
        with h5py.File(path, "r+") as file:
            del file["TransformGroup/1/TransformFixedParameters"]
            file["TransformGroup/1/TransformFixedParameters"] = [2.0, 3, 4, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 1]
        field = path.read_bytes()
    text = b"#Insight Transform File V1.0\n#Transform 0\nTransform: Euler3DTransform_double_3_3\n"
    return affine, field, text + b"Parameters: 0.1 0 0 1 2 3\nFixedParameters: 0 0 0 0\n"


def transform_cases(kept: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Damaged HDF5, damaged texts, composites of invented parts."""
    affine, field, text = transform_bases()
    kinds = (
        "AffineTransform_double_3_3",
        "Euler3DTransform_double_3_3",
        "VersorRigid3DTransform_double_3_3",
        "CompositeTransform_double_3_3",
        "TranslationTransform_double_3_3",
        "Nothing",
        "AffineTransform_double_2_9",
    )
    numbers = st.lists(st.floats().map(str) | st.sampled_from(["x", "1e999", "0", "1"]), max_size=14).map(" ".join)
    part = st.tuples(st.sampled_from(kinds), numbers, numbers).map(
        lambda one: f"Transform: {one[0]}\nParameters: {one[1]}\nFixedParameters: {one[2]}\n"
    )
    invented = st.lists(part, max_size=3).map(
        lambda parts: ("#Insight Transform File V1.0\n" + "".join(parts)).encode()
    )
    return damaged([affine, field]) | damaged([text, *kept]) | invented


def read_transform_file(path: Path) -> object:
    """Read, and a few points taken through it."""
    from neurostorm_bids.space.grid import Grid
    from neurostorm_bids.space.transforms import points_through

    return points_through(Grid.of((2, 2, 2), np.diag([50.0, 50, 50, 1]), "MNI152NLin6Asym"), (path,))


TARGETS = (
    Target("nifti", nifti_cases, read_nifti),
    Target("json", json_cases, read_json_file),
    Target("tables", table_cases, read_table),
    Target("filters", filter_cases, read_filter),
    Target("checkpoints", checkpoint_cases, read_checkpoint_file),
    Target("models", model_cases, read_model),
    Target("transforms", transform_cases, read_transform_file),
)
