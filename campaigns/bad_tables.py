"""Defects of JSON files and tables of a run, and of its transforms."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np

from campaigns.bad_tree import N_VOLUMES, Case, write_h5
from campaigns.defect import Defect, End

SIDECAR = r"{}/fmriprep/sub-02/func/sub-02_task-rest_space-MNI152NLin6Asym_desc-preproc_bold\.json"
TABLE = r"{}/fmriprep/sub-02/func/sub-02_task-rest_desc-confounds_timeseries\.tsv"
BOLD = SIDECAR.replace("json", "nii")
XFM = r"{}/fmriprep/sub-02/anat/sub-02_from-T1w_to-MNI152NLin6Asym_mode-image_xfm\.h5"
RESTORE = "Restore it from the pipeline's output|Correct it|passed over|is read without"
MEND_TABLE = "Restore the pipeline's table, or remove it"


def sidecar(text: str | bytes) -> Callable[[Case], object]:
    """Another JSON file beside the image."""
    return lambda case: case.sidecar.write_bytes(text if isinstance(text, bytes) else text.encode())


def stating(**values: object) -> Callable[[Case], object]:
    """Other entries in the JSON file."""
    return sidecar(json.dumps({"RepetitionTime": 2.0, "TaskName": "rest", **values}))


def recoded(codec: str, start: bytes = b"") -> Callable[[Case], None]:
    """The JSON file in another encoding."""

    def plant(case: Case) -> None:
        case.sidecar.write_bytes(start + '{"RepetitionTime": 2.0, "TaskName": "repos éveillé"}'.encode(codec))

    return plant


HUGE = '{"RepetitionTime": 1' + "0" * 400 + "}"
ENDLESS = '{"RepetitionTime": 1' + "0" * 6000 + "}"
TIME_FAULT = "RepetitionTime is"
SIDECARS = (
    Defect("a sidecar of 0 bytes", sidecar(""), SIDECAR, "empty", RESTORE, End.WARNED, 0),
    Defect("a sidecar cut short", sidecar('{"RepetitionTime": 2.0, "Ta'), SIDECAR, "no JSON", RESTORE, End.WARNED, 0),
    Defect("a sidecar that is a list", sidecar("[1, 2]"), SIDECAR, "no table", RESTORE, End.WARNED, 0),
    Defect("a sidecar in Latin-1", recoded("latin-1"), SIDECAR, "no JSON", RESTORE, End.WARNED, 0),
    Defect("a sidecar in UTF-16", recoded("utf-16"), SIDECAR, "no JSON", RESTORE, End.WARNED, 0),
    Defect(
        "a sidecar with a byte order mark",
        lambda case: case.sidecar.write_bytes(b"\xef\xbb\xbf" + case.sidecar.read_bytes()),
        end=End.WARNED,
        code=0,
    ),
    Defect("a sidecar nested beyond reason", sidecar('{"a": ' * 100_000), SIDECAR, "no JSON", RESTORE, End.WARNED, 0),
    Defect(
        "a sidecar with a number of thousands of digits", sidecar(ENDLESS), SIDECAR, "no JSON", RESTORE, End.WARNED, 0
    ),
    Defect("a repetition time beyond every number", sidecar(HUGE), BOLD, TIME_FAULT, "Correct it"),
    Defect("a repetition time of NaN in JSON", sidecar('{"RepetitionTime": NaN}'), BOLD, TIME_FAULT, "Correct it"),
    Defect("a repetition time as text", stating(RepetitionTime="2.0"), BOLD, TIME_FAULT, "Correct it"),
    Defect("a repetition time of zero in JSON", stating(RepetitionTime=0), BOLD, TIME_FAULT, "Correct it"),
    Defect("a repetition time in milliseconds in JSON", stating(RepetitionTime=2000), BOLD, TIME_FAULT, "Correct it"),
    Defect("a repetition time of true", stating(RepetitionTime=True), BOLD, TIME_FAULT, "Correct it"),
    Defect(
        "two repetition times in one sidecar",
        sidecar('{"RepetitionTime": 2.0, "RepetitionTime": 3.0}'),
        SIDECAR,
        "twice",
        RESTORE,
        End.WARNED,
        0,
    ),
    Defect(
        "volumes at uneven times",
        stating(RepetitionTime=None, VolumeTiming=[0, 2, 4, 9, 10]),
        BOLD,
        "not evenly spaced",
        "Leave this run out",
    ),
    Defect("a start time as text", stating(StartTime="soon"), BOLD, "StartTime is", "Correct it"),
    Defect(
        "a sidecar that is a link to nowhere",
        lambda case: (case.sidecar.unlink(), case.sidecar.symlink_to("gone.json")),
        SIDECAR,
        "not fetched",
        "datalad get",
        End.WARNED,
        0,
    ),
    Defect(
        "a sidecar that is a folder",
        lambda case: (case.sidecar.unlink(), case.sidecar.mkdir()),
        SIDECAR,
        "not a regular file",
        "(?i)again",
        End.WARNED,
        0,
    ),
)


# --- confounds ------------------------------------------------------------------------------------------------------


def rows(change: Callable[[list[str]], object]) -> Callable[[Case], None]:
    """The table with other lines."""

    def plant(case: Case) -> None:
        lines = case.confounds.read_text().splitlines()
        case.confounds.write_text("\n".join(change(lines) or lines) + "\n")  # type: ignore[arg-type]

    return plant


def line(number: int, text: str) -> Callable[[Case], None]:
    """One line of the table is another."""
    return rows(lambda lines: lines.__setitem__(number, text))


def raw_table(change: Callable[[bytes], bytes]) -> Callable[[Case], object]:
    """The table with other bytes."""
    return lambda case: case.confounds.write_bytes(change(case.confounds.read_bytes()))


CONFOUNDS = (
    Defect(
        "confounds of 0 bytes", raw_table(lambda _: b""), TABLE, "empty", MEND_TABLE + "|Copy or fetch", End.WARNED, 0
    ),
    Defect("a heading without rows", raw_table(lambda raw: raw.splitlines()[0] + b"\n"), TABLE, "no rows", MEND_TABLE),
    Defect("a ragged row", line(5, "0.1"), TABLE, "row 6 has 1 fields and the heading 2", MEND_TABLE),
    Defect(
        "a row too many",
        rows(lambda lines: lines.append("0.1\t1.0")),
        TABLE,
        f"{N_VOLUMES + 1} rows for {N_VOLUMES} volumes",
        MEND_TABLE,
    ),
    Defect("a row too few", rows(lambda lines: lines[:-1]), TABLE, f"{N_VOLUMES - 1} rows for {N_VOLUMES}", MEND_TABLE),
    Defect("a word among displacements", line(4, "much\t1.0"), TABLE, "holds 'much'", MEND_TABLE),
    Defect("a decimal comma", line(4, "0,15\t1.0"), TABLE, "holds '0,15'", MEND_TABLE),
    Defect("a negative displacement", line(4, "-0.1\t1.0"), TABLE, "negative", MEND_TABLE),
    Defect("an infinite displacement", line(4, "inf\t1.0"), TABLE, "holds 'inf'", MEND_TABLE),
    Defect(
        "a column that is named twice",
        line(0, "framewise_displacement\tframewise_displacement"),
        TABLE,
        "names a column twice",
        MEND_TABLE,
    ),
    Defect(
        "commas instead of tabs",
        raw_table(lambda raw: raw.replace(b"\t", b",")),
        TABLE,
        "no framewise_displacement|tab",
        "motion is not known|tab-separated",
        End.WARNED,
        0,
    ),
    Defect("a table in UTF-16", raw_table(lambda raw: raw.decode().encode("utf-16")), TABLE, "no table", MEND_TABLE),
    Defect("a table in Latin-1", raw_table(lambda raw: raw.replace(b"csf", b"cs\xe9")), TABLE, "no table", MEND_TABLE),
    Defect(
        "zero bytes in a table",
        raw_table(lambda raw: raw.replace(b"0.1", b"0\0001")),
        TABLE,
        "holds|no table",
        MEND_TABLE,
    ),
    Defect(
        "a compressed table under a plain name",
        raw_table(lambda raw: __import__("gzip").compress(raw)),
        TABLE,
        "no table",
        MEND_TABLE,
    ),
    Defect(
        "no displacement and no motion",
        line(0, "something\tcsf"),
        TABLE,
        "no framewise_displacement",
        "motion is not known",
        End.WARNED,
        0,
    ),
    Defect(
        "displacements that are all n/a",
        rows(lambda lines: [lines[0], *(f"n/a\t1.{n}" for n in range(N_VOLUMES))]),
        TABLE,
        "missing for 19 of 20",
        "",
        End.WARNED,
        0,
    ),
    Defect(
        "every volume flagged as not steady",
        rows(lambda lines: [f"{lines[0]}\tnon_steady_state_outlier00", *(f"{row}\t1" for row in lines[1:])]),
        "sub-02_task-rest|confounds",
        "volumes|frames|clip",
        r"(?i)--dummy-scans|leave|expected",
    ),
    Defect("a table with CRLF", raw_table(lambda raw: raw.replace(b"\n", b"\r\n")), end=End.WARNED, code=0),
    Defect("a table with a byte order mark", raw_table(lambda raw: b"\xef\xbb\xbf" + raw), end=End.WARNED, code=0),
    Defect(
        "no confounds",
        lambda case: case.confounds.unlink(),
        "sub-02_task-rest",
        "no confounds table: head motion",
        "",
        End.WARNED,
        0,
    ),
)


# --- transforms -----------------------------------------------------------------------------------------------------


def transform(*words: object, fault: str, **more: object) -> Defect:
    """A defect of the way from T1w to the template, for a run in T1w space."""
    name, plant = words
    settings = {"file": XFM, "remedy": "(?i)again|convert|write it|expected|run fmriprep", "space": "T1w", **more}
    return Defect(name, plant, fault=fault, **settings)  # type: ignore[arg-type]


def parameters(*values: float) -> Callable[[Case], object]:
    """Other parameters of the affine transform."""
    return lambda case: write_h5(case.transform, values)


def as_text(text: str) -> Callable[[Case], object]:
    """The transform as an ITK text file."""
    return lambda case: case.transform.write_text("#Insight Transform File V1.0\n" + text)


def renamed(case: Case) -> None:
    """The transform of another participant, copied without being renamed."""
    case.transform.rename(case.transform.with_name(case.transform.name.replace("sub-02", "sub-01")))


def twice(case: Case) -> None:
    import shutil

    shutil.copy(case.transform, str(case.transform).replace("sub-02_from", "sub-02_acq-b_from"))


def hdf5(change: Callable[..., object]) -> Callable[[Case], None]:
    """The transform's HDF5 file with something else in it."""

    def plant(case: Case) -> None:
        import h5py

        with h5py.File(case.transform, "r+") as file:
            change(file)

    return plant


def another(path: str, value: object) -> Callable[[Case], None]:
    """One dataset of the HDF5 file is another."""

    def change(file: dict[str, object]) -> None:
        del file[path]
        file[path] = value

    return hdf5(change)


def reverse(case: Case) -> None:
    case.transform.rename(str(case.transform).replace("from-T1w_to-MNI152NLin6Asym", "from-MNI152NLin6Asym_to-T1w"))


def loop(case: Case) -> None:
    case.transform.unlink()
    case.transform.symlink_to(case.transform.name)


PARTS = "TransformGroup/1/TransformParameters"
NO_WAY = "no image of this run can be brought to MNI152NLin6Asym"
TRANSFORMS = (
    transform("no transform at all", lambda case: case.transform.unlink(), fault=NO_WAY, file="sub-02_task-rest"),
    transform("the transform of another participant", renamed, fault=NO_WAY, file="sub-02_task-rest"),
    transform("the inverse transform alone", reverse, fault=NO_WAY, file="sub-02_task-rest"),
    transform("two transforms that could be meant", twice, fault=NO_WAY, file="sub-02_task-rest"),
    transform(
        "a transform of 0 bytes", lambda case: case.transform.write_bytes(b""), fault=NO_WAY, file="sub-02_task-rest"
    ),
    transform("a transform that is a link to itself", loop, fault=NO_WAY, file="sub-02_task-rest"),
    transform(
        "a transform cut short",
        lambda case: case.transform.write_bytes(case.transform.read_bytes()[:1500]),
        fault="cannot be read",
    ),
    transform(
        "a transform with a damaged middle",
        lambda case: case.transform.write_bytes((raw := case.transform.read_bytes())[:600] + bytes(600) + raw[1200:]),
        fault="cannot be read|no ITK",
    ),
    transform(
        "a transform that is no transform file",
        lambda case: case.transform.write_bytes(b"text" * 99),
        fault="no ITK transform file",
    ),
    transform(
        "an HDF5 file of something else", hdf5(lambda file: file.pop("TransformGroup")), fault="no ITK transform"
    ),
    transform("a transform without parameters", hdf5(lambda file: file.pop(PARTS)), fault="no ITK transform"),
    transform("a transform with parameters of text", another(PARTS, ["a"] * 12), fault="no ITK transform|no number"),
    transform(
        "a transform with three parameters too few", parameters(1, 0, 0, 0, 1, 0, 0, 0, 1), fault="has 9 parameters"
    ),
    transform(
        "a transform of an unknown kind",
        lambda case: write_h5(case.transform, np.zeros(9), "BSplineTransform_double_3_3"),
        fault="is not supported",
    ),
    transform(
        "a transform of the plane",
        lambda case: write_h5(case.transform, np.zeros(6), "AffineTransform_double_2_2"),
        fault="maps 2D points",
    ),
    transform("a singular transform", parameters(*[0.0] * 12), fault="singular or not finite"),
    transform("a transform with NaN", parameters(*[float("nan")] * 12), fault="singular or not finite"),
    transform(
        "a transform to a place far away",
        parameters(1, 0, 0, 0, 1, 0, 0, 0, 1, 5000, 0, 0),
        fault="cover",
        file="sub-02_task-rest|bold",
        remedy="(?i)check|expected",
    ),
    transform(
        "a displacement field of another size",
        lambda case: write_h5(case.transform, np.zeros(30), "DisplacementFieldTransform_double_3_3"),
        fault="fixed parameters|values",
    ),
    transform(
        "a displacement field beyond any memory",
        lambda case: (
            write_h5(case.transform, np.zeros(30), "DisplacementFieldTransform_double_3_3"),
            another(
                "TransformGroup/1/TransformFixedParameters",
                [1e5, 1e5, 1e5, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 1],
            )(case),
        ),
        fault="declares",
    ),
    transform(
        "head motion of every volume instead of one transform",
        as_text(
            "".join(
                f"#Transform {n}\nTransform: AffineTransform_double_3_3\nParameters: 1 0 0 0 1 0 0 0 1 0 0 0\n"
                "FixedParameters: 0 0 0\n"
                for n in range(3)
            )
        ),
        fault="no composite",
    ),
    transform(
        "a text transform with a word among its numbers",
        as_text("#Transform 0\nTransform: AffineTransform_double_3_3\nParameters: 1 0 x\nFixedParameters: 0 0 0\n"),
        fault="no number",
    ),
    transform("a text transform without anything", as_text(""), fault="no transform"),
    transform(
        "a transform outside the file (external HDF5 storage)",
        hdf5(
            lambda file: (
                file.pop(PARTS),
                file["TransformGroup/1"].create_dataset(
                    "TransformParameters", (12,), "f8", external=[("/etc/passwd", 0, 96)]
                ),
            )
        ),
        fault="outside the file",
    ),
    transform(
        "a transform that links to another file",
        hdf5(
            lambda file: (
                file.pop(PARTS),
                file.__setitem__(PARTS, __import__("h5py").ExternalLink("/etc/hostname", "/x")),
            )
        ),
        fault="outside the file",
    ),
)

DEFECTS = (*SIDECARS, *CONFOUNDS, *TRANSFORMS)
