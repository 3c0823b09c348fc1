"""Defects of folders, names and datasets."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from campaigns.bad_tree import DESCRIPTION, TEMPLATE, VICTIM, Case, write_run
from campaigns.defect import Defect, End

RUN = "sub-02_task-rest"
JSON = r"\.json$"
PREP = r"(?i)run fmriprep (again|without)|choose|--desc"
LOOK = r"(?i)check|give|name|expected"


def described(content: Any) -> Callable[[Case], object]:
    """Another dataset_description.json."""
    text = content if isinstance(content, str) else json.dumps({**DESCRIPTION, **content})
    return lambda case: (case.dataset / "dataset_description.json").write_text(text, encoding="utf-8")


def judged(name: str, content: Any, fault: str) -> Defect:
    """A description that says too little: what wrote the dataset is judged from file names."""
    where = r"{}/fmriprep/dataset_description\.json"
    return Defect(name, described(content), where, fault, "judged from file names", End.WARNED, 0, other=JSON)


def renamed(name: str) -> Callable[[Case], None]:
    """The spoilt run's files under another name."""

    def plant(case: Case) -> None:
        for path in sorted(case.func.glob(f"{VICTIM}_*")):
            path.rename(path.with_name(path.name.replace(VICTIM, name)))

    return plant


def without_run(then: Callable[[Case], object]) -> Callable[[Case], None]:
    """The spoilt run's files are gone, and something else is there."""

    def plant(case: Case) -> None:
        for path in case.func.glob(f"{VICTIM}_*"):
            path.unlink()
        then(case)

    return plant


def copied(old: str, new: str) -> Callable[[Case], None]:
    """Some of the run's files once more, under another name."""

    def plant(case: Case) -> None:
        for path in sorted(case.func.glob(f"{VICTIM}*{old}*")):
            shutil.copy(path, path.with_name(path.name.replace(old, new)))

    return plant


def touched(*names: str) -> Callable[[Case], None]:
    """Files that hold something, of these names."""

    def plant(case: Case) -> None:
        for name in names:
            (case.func / name).write_bytes(b"something")

    return plant


def foreign_bytes(case: Case) -> None:
    """A name that is no text in any encoding that is in use."""
    folder = os.fsencode(case.func)
    old = os.fsencode(case.bold.name)
    Path(os.fsdecode(folder + b"/" + old)).rename(os.fsdecode(folder + b"/" + old.replace(b"rest", b"re\xff\xfet")))


def crowd(case: Case) -> None:
    """Ten thousand files that nobody asks for."""
    for number in range(10_000):
        (case.func / f"sub-02_task-rest_part-{number:05d}_sbref.txt").touch()


def beside(name: str) -> Callable[[Case], None]:
    """Another participant, a copy of the good one."""

    def plant(case: Case) -> None:
        write_run(case.dataset, f"{name}_task-rest", 5)

    return plant


def versions(case: Case) -> None:
    """Two versions' output in a raw dataset's derivatives."""
    raw = case.folder / "raw"
    for version in ("20.2.7", "23.2.1"):
        shutil.copytree(case.dataset, raw / f"derivatives/fmriprep-{version}")
    (raw / "dataset_description.json").write_text('{"Name": "raw", "BIDSVersion": "1.9.0", "DatasetType": "raw"}')


def base(
    bids: str = "{}/fmriprep", out: str = "{}/out", work: str = "{}/work", level: str = "participant"
) -> tuple[str, ...]:
    """A whole command line."""
    return (bids, out, level, "-w", work, "--offline", "--use-plugin", "{}/linear.yml", "--model", "{}/tiny")


def nothing(_: Case) -> None:
    """The command line alone is at fault."""


def foreign_output(case: Case) -> None:
    (case.folder / "out").mkdir()
    (case.folder / "out/dataset_description.json").write_text(json.dumps(DESCRIPTION))


FOLDERS = (
    Defect(
        "a dataset under a name with spaces and umlauts",
        lambda case: case.dataset.rename(case.folder / "Daten für später (2)"),
        end=End.WARNED,
        code=0,
        base=base("{}/Daten für später (2)"),
    ),
    Defect(
        "a dataset behind a link",
        lambda case: (case.folder / "link").symlink_to("fmriprep"),
        end=End.SAME,
        code=0,
        base=base("{}/link"),
    ),
    Defect(
        "a link back into the folder above", lambda case: (case.func / "loop").symlink_to("../.."), end=End.SAME, code=0
    ),
    Defect(
        "a session that is a link to its own participant",
        lambda case: (case.dataset / "sub-02/ses-a").symlink_to("."),
        end=End.SAME,
        code=0,
    ),
    Defect(
        "a participant that is a link to itself",
        lambda case: (case.dataset / "sub-03").symlink_to("sub-03"),
        end=End.SAME,
        code=0,
    ),
    Defect(
        "a participant that is a file", lambda case: (case.dataset / "sub-03").write_text("x"), end=End.SAME, code=0
    ),
    Defect(
        "a participant without files",
        lambda case: (case.dataset / "sub-03").mkdir(),
        "{}/fmriprep/sub-03",
        "no functional files",
        PREP,
        End.OTHERS,
    ),
    Defect(
        "a folder of images that is a file",
        lambda case: ((case.dataset / "sub-03").mkdir(), (case.dataset / "sub-03/func").write_text("x")),
        "{}/fmriprep/sub-03",
        "no functional files|cannot be read",
        PREP,
        End.OTHERS,
    ),
    Defect(
        "a participant whose label has a space",
        beside("sub-0 3"),
        "sub-0 3",
        "is no BIDS name",
        "Rename the files",
        End.OTHERS,
    ),
    Defect(
        "a participant whose label is no ASCII",
        beside("sub-é3"),
        "sub-é3",
        "is no BIDS name",
        "Rename the files",
        End.OTHERS,
    ),
    Defect(
        "two participants whose labels differ in case alone",
        lambda case: (beside("sub-ab")(case), beside("sub-AB")(case)),
        "sub-AB",
        "differ in case alone",
        "Rename one of them",
        End.WARNED,
        0,
    ),
    Defect("ten thousand other files beside a run", crowd, end=End.SAME, code=0),
    Defect(
        "an output of the program within the input",
        lambda case: shutil.copytree(case.dataset, case.dataset / "derivatives/fmriprep"),
        end=End.SAME,
        code=0,
    ),
)

NAMES = (
    Defect(
        "two volumes of one run: run-1 and run-01",
        lambda case: (renamed(f"{VICTIM}_run-1")(case), copied("run-1", "run-01")(case)),
        r"run-0?1_space",
        "2 volumes in one space",
        "Remove what an earlier call",
    ),
    Defect(
        "a run as .nii and .nii.gz",
        lambda case: case.bold.with_suffix("").write_bytes(__import__("gzip").decompress(case.bold.read_bytes())),
        r"preproc_bold\.nii\.gz",
        "there is a .nii and a .nii.gz",
        "this one is read",
        End.WARNED,
        0,
    ),
    Defect(
        "an image in the wrong participant's folder",
        without_run(
            lambda case: write_run(case.dataset, "sub-02_task-rest", 2).rename(
                case.func / "sub-09_task-rest_bold.nii.gz"
            )
        ),
        RUN,
        "no preprocessed volume",
        PREP,
    ),
    Defect("a name that is no UTF-8", foreign_bytes, RUN, "is no BIDS name", "Rename the files"),
    Defect(
        "a name with a line break",
        renamed("sub-02_task-re\nst"),
        "sub-02_task-re st",
        "is no BIDS name",
        "Rename the files",
    ),
    Defect(
        "a name with a space",
        renamed("sub-02_task-rest 2"),
        "sub-02_task-rest 2",
        "is no BIDS name",
        "Rename the files",
    ),
    Defect(
        "a name with a dot", renamed("sub-02_task-rest.2"), "sub-02_task-rest.2", "is no BIDS name", "Rename the files"
    ),
    Defect(
        "surfaces alone",
        without_run(touched(f"{VICTIM}_space-fsLR_den-91k_bold.dtseries.nii")),
        RUN,
        "only surface data",
        PREP,
    ),
    Defect(
        "single echoes alone",
        without_run(touched(f"{VICTIM}_echo-1_desc-preproc_bold.nii.gz")),
        RUN,
        "only single echoes",
        PREP,
    ),
    Defect(
        "another desc- label",
        without_run(touched(f"{VICTIM}_space-{TEMPLATE}_desc-smooth_bold.nii.gz")),
        RUN,
        "no desc-preproc volume",
        "--desc smooth",
    ),
    Defect(
        "what fMRIPrep writes with --level minimal",
        without_run(touched(f"{VICTIM}_desc-hmc_boldref.nii.gz", f"{VICTIM}_desc-coreg_boldref.nii.gz")),
        RUN,
        "--level minimal",
        "--level full",
    ),
    Defect(
        "a template that no transform leads away from",
        (
            lambda case: [
                path.rename(path.with_name(path.name.replace(TEMPLATE, "MNIPediatricAsym_cohort-1")))
                for path in sorted(case.func.glob(f"{VICTIM}*_space-*"))
            ]
        ),
        RUN,
        "no image of this run can be brought",
        "--output-spaces MNI152NLin6Asym",
    ),
)

DATASETS = (
    Defect(
        "no dataset_description.json",
        lambda case: (case.dataset / "dataset_description.json").unlink(),
        r"{}/fmriprep/dataset_description\.json",
        "missing",
        "judged from file names",
        End.WARNED,
        0,
        other=JSON,
    ),
    judged("a description that is no JSON", "{", "no JSON"),
    judged("a description that is a list", "[]", "no table"),
    judged("a description nested beyond reason", "[" * 100_000, "no JSON"),
    judged("a description of 0 bytes", "", "empty"),
    Defect(
        "a derivative without GeneratedBy",
        described({"GeneratedBy": None}),
        "{}/fmriprep",
        "GeneratedBy missing",
        "",
        End.WARNED,
        0,
        other=JSON,
    ),
    Defect("GeneratedBy as a number", described({"GeneratedBy": 5}), end=End.WARNED, code=0, other=JSON),
    Defect(
        "a pipeline whose name is a number",
        described({"GeneratedBy": [{"Name": 5, "Version": [1]}]}),
        end=End.WARNED,
        code=0,
        other=JSON,
    ),
    Defect(
        "a pipeline whose name is markup",
        described({"GeneratedBy": [{"Name": "<script>alert(1)</script>"}]}),
        end=End.WARNED,
        code=0,
        other=JSON,
    ),
    Defect(
        "a dataset of MRIQC",
        described({"GeneratedBy": [{"Name": "MRIQC"}]}),
        "{}/fmriprep",
        "was written by MRIQC",
        LOOK,
        End.STOP,
        66,
    ),
    Defect(
        "a dataset that says it is raw",
        described({"DatasetType": "raw"}),
        "{}/fmriprep",
        "holds no derivatives|is no valid BIDS",
        LOOK,
        End.STOP,
        66,
    ),
    Defect(
        "two fMRIPrep versions in one tree",
        versions,
        "{}/raw",
        "fMRIPrep 23.2.1|holds",
        "--derivatives",
        End.STOP,
        2,
        base=base("{}/raw"),
    ),
    Defect(
        "a folder that does not exist",
        nothing,
        "{}/nowhere",
        "is no folder",
        LOOK,
        End.STOP,
        66,
        base=base("{}/nowhere"),
    ),
    Defect(
        "a folder that is empty",
        lambda case: (case.folder / "void").mkdir(),
        "{}/void",
        "is empty",
        LOOK,
        End.STOP,
        66,
        base=base("{}/void"),
    ),
    Defect(
        "a dataset that is a file",
        nothing,
        "{}/linear.yml",
        "is no folder",
        LOOK,
        End.STOP,
        66,
        base=base("{}/linear.yml"),
    ),
    Defect(
        "a participant's folder instead of the dataset",
        nothing,
        "{}/fmriprep/sub-02",
        "folder of one participant",
        "Give {}/fmriprep",
        End.STOP,
        66,
        base=base("{}/fmriprep/sub-02"),
    ),
)

CALLS = (
    Defect(
        "an output folder that is the input",
        nothing,
        "{}/fmriprep",
        "the output folder is the input",
        "another OUTPUT_DIR",
        End.STOP,
        2,
        base=base(out="{}/fmriprep"),
    ),
    Defect(
        "a work folder within the input",
        nothing,
        "{}/fmriprep/w",
        "lies inside the input",
        "--work-dir",
        End.STOP,
        2,
        base=base(work="{}/fmriprep/w"),
    ),
    Defect(
        "an output folder that is a file",
        nothing,
        r"{}/linear\.yml",
        "cannot be created",
        "another OUTPUT_DIR",
        End.STOP,
        73,
        base=base(out="{}/linear.yml"),
    ),
    Defect(
        "an output folder of another program",
        foreign_output,
        "{}/out",
        "(?i)another|not.*neurostorm|fMRIPrep",
        "(?i)name another",
        End.STOP,
        73,
    ),
    Defect(
        "a participant who is not there",
        nothing,
        "{}/fmriprep",
        "none of the participants 77",
        "--participant-label",
        End.STOP,
        18,
        ("--participant-label", "77"),
    ),
    Defect(
        "one of two participants is not there",
        nothing,
        "{}/fmriprep",
        "no participant 77",
        "",
        End.WARNED,
        0,
        ("--participant-label", "01", "02", "77"),
    ),
    Defect(
        "a session that is not there",
        nothing,
        "{}/fmriprep",
        "no run that --session-label",
        "Check --session-label",
        End.STOP,
        18,
        ("--session-label", "x"),
    ),
    Defect(
        "a task that is not there",
        nothing,
        "{}/fmriprep",
        "no run that --task-id",
        "Check --task-id",
        End.STOP,
        18,
        ("--task-id", "x"),
    ),
    Defect(
        "a participant label that leads out of the dataset",
        nothing,
        "{}/fmriprep",
        "none of the participants",
        "--participant-label",
        End.STOP,
        18,
        ("--participant-label", "../../fmriprep/sub-01"),
    ),
    Defect(
        "a level that does not exist",
        nothing,
        "",
        "unknown analysis level",
        "participant or group",
        End.STOP,
        17,
        base=base(level="session"),
    ),
    Defect(
        "an option that does not exist",
        nothing,
        "",
        "unrecognized arguments|no such option",
        "",
        End.STOP,
        2,
        ("--modell", "x"),
    ),
    Defect(
        "a database within the input",
        nothing,
        "{}/fmriprep/db",
        "lies inside the input",
        "another --bids-database-dir",
        End.STOP,
        2,
        ("--bids-database-dir", "{}/fmriprep/db"),
    ),
)


def read_only(case: Case) -> None:
    (case.folder / "fixed").mkdir(mode=0o555)


PERMISSIONS = (
    Defect(
        "an image that may not be read",
        lambda case: case.bold.chmod(0),
        RUN,
        "permission denied",
        "read permission",
        unprivileged=True,
    ),
    Defect(
        "a sidecar that may not be read",
        lambda case: case.sidecar.chmod(0),
        r"preproc_bold\.json",
        "permission denied",
        "read permission.*Passed over",
        End.WARNED,
        0,
        unprivileged=True,
    ),
    Defect(
        "a participant's folder that may not be read",
        lambda case: (beside("sub-03")(case), (case.dataset / "sub-03/func").chmod(0)),
        "{}/fmriprep/sub-03",
        "(?i)cannot be read: permission denied",
        "Check its permissions",
        End.OTHERS,
        unprivileged=True,
    ),
    Defect(
        "an output folder that may not be written",
        read_only,
        "{}/fixed/out",
        "(?i)cannot be created: permission denied",
        "another OUTPUT_DIR",
        End.STOP,
        73,
        base=base(out="{}/fixed/out"),
        unprivileged=True,
    ),
)

DEFECTS = (*FOLDERS, *NAMES, *DATASETS, *PERMISSIONS, *CALLS)
