"""Defects of what the group level reads: participants, phenotypes, splits, results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from campaigns.bad_tree import Case, write_run
from campaigns.defect import Defect, End

PEOPLE = r"{}/fmriprep/participants\.tsv"
MEND = r"(?i)mend|check|remove|see|choose|state|name"
LEARN = (
    "{}/fmriprep", "{}/out", "group", "-w", "{}/work", "--group-workflow", "finetune", "--model", "{}/tiny",
    "--offline", "--epochs", "1", "--folds", "2", "--device", "cpu", "--quiet",
)  # fmt: skip
AGGREGATE = ("{}/fmriprep", "{}/out", "group", "-w", "{}/work", "--group-workflow", "aggregate")
ROWS = ["sub-01\t30\tA", "sub-02\t40\tB", "sub-03\t50\tA", "sub-04\t60\tB"]


def people(*lines: str, codec: str = "utf-8", heading: str = "participant_id\tage\tsite") -> Callable[[Case], None]:
    """Two more participants, and a table of all."""

    def plant(case: Case) -> None:
        for number in (3, 4):
            write_run(case.dataset, f"sub-0{number}_task-rest", number)
        text = "\n".join([heading, *lines]) + "\n"
        (case.dataset / "participants.tsv").write_bytes(text.encode(codec))

    return plant


def learn(name: str, plant: Callable[[Case], object], fault: str, *words: str, **more: Any) -> Defect:
    """A training that cannot begin."""
    target = () if "--target" in words else ("--target", "age")
    settings: dict[str, Any] = {"file": PEOPLE, "remedy": MEND, "end": End.GROUP, "code": 66, **more}
    return Defect(name, plant, fault=fault, base=LEARN, words=(*target, *words), **settings)


def with_file(name: str, content: str | bytes, then: Callable[[Case], object]) -> Callable[[Case], None]:
    """Another file of the dataset."""

    def plant(case: Case) -> None:
        then(case)
        path = case.dataset / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return plant


GOOD = people(*ROWS)
SPLITS = "{}/fmriprep/splits.tsv"
TABLES = (
    learn("no participants.tsv", lambda case: None, "there is no participants.tsv", code=2),
    learn("a participants.tsv of 0 bytes", with_file("participants.tsv", "", GOOD), "empty", remedy="again"),
    learn("a participants.tsv without rows", people(), "has no rows"),
    learn("a participant twice", people(*ROWS, "sub-01\t31\tA"), "names 01 twice"),
    learn("a row without a participant", people(*ROWS, "\t31\tA"), "names no participant in row 6"),
    learn("a table without participant_id", people(*ROWS, heading="id\tage\tsite"), "has no column participant_id"),
    learn("a ragged row of participants", people(*ROWS, "sub-05\t31"), "row 6 has 2 fields"),
    learn("participants in Latin-1", people(*ROWS, "sub-05\t31\tKöln", codec="latin-1"), "is no table"),
    learn("participants in UTF-16", people(*ROWS, codec="utf-16"), "is no table"),
    learn(
        "participants with commas",
        people(*(row.replace("\t", ",") for row in ROWS), heading="participant_id,age,site"),
        "no column participant_id",
    ),
    learn("a column that is there twice", people(*ROWS, heading="participant_id\tage\tage"), "names a column twice"),
    learn(
        "a broken participants.json",
        with_file("participants.json", "{", GOOD),
        "no JSON",
        file=r"{}/fmriprep/participants\.json",
    ),
    learn("a target that is no column", GOOD, "(?i)no column|has no", "--target", "height", code=2),
    learn(
        "a target that is n/a throughout",
        people(*(f"sub-0{n}\tn/a\tA" for n in range(1, 5))),
        "(?i)no|missing",
        code=2,
        file="age|participants",
    ),
    learn(
        "a target that is the same for all",
        people(*(f"sub-0{n}\t30\tA" for n in range(1, 5))),
        "(?i)same|constant|one value|differ",
        code=2,
        file="age|participants",
    ),
    learn(
        "words where numbers belong",
        people("sub-01\tyoung\tA", *ROWS[1:]),
        "(?i)young|number",
        "--target-kind",
        "regression",
        code=2,
        file="age|participants",
    ),
    learn("an infinite age", people("sub-01\tinf\tA", *ROWS[1:]), "(?i)inf", code=2, file="age|participants"),
    learn(
        "more folds than participants", GOOD, "(?i)fold", "--folds", "9", code=2, file="", remedy="(?i)fold|expected"
    ),
    learn("a grouping column that is not there", GOOD, "(?i)family|column", "--group-by", "family", code=2),
    learn(
        "a phenotype table that is not there",
        GOOD,
        "there is no iq.tsv",
        "--target",
        "phenotype/iq.tsv:iq",
        code=2,
        file="iq.tsv",
    ),
    learn(
        "a phenotype that leads out of the dataset",
        GOOD,
        "(?i)phenotype|outside|cannot be found|lead",
        "--target",
        "phenotype/../../../etc/passwd:x",
        code=2,
        file="",
    ),
    learn(
        "a splits table of another kind",
        with_file("splits.tsv", "a\tb\n1\t2\n", GOOD),
        "(?i)column|participant",
        "--splits",
        SPLITS,
        code=2,
        file=r"splits\.tsv",
    ),
    learn(
        "a participant on two sides of a split",
        with_file(
            "splits.tsv",
            "fold\tparticipant_id\tsplit\n"
            + "".join(
                f"1\tsub-0{n}\t{kind}\n"
                for n, kind in ((1, "train"), (1, "test"), (2, "train"), (3, "validation"), (4, "test"))
            ),
            GOOD,
        ),
        "(?i)twice|two sides|both|more than",
        "--splits",
        SPLITS,
        code=2,
        file=r"splits\.tsv",
    ),
)


# --- results that are to be pooled ----------------------------------------------------------------------------------


def results_then(change: Callable[[Path], object]) -> Callable[[Case], None]:
    """Results of a good call, one of which is damaged."""

    def plant(case: Case) -> None:
        from campaigns.bad_input import call

        ended = call(case, ())
        assert ended.code == 0, ended.said
        (table,) = (case.folder / "out/sub-01/func").glob("*_embedding.tsv")
        change(table)

    return plant


def pooled(name: str, plant: Callable[[Case], object], fault: str, **more: Any) -> Defect:
    """Results that cannot be pooled as they are."""
    settings: dict[str, Any] = {"file": r"sub-01", "remedy": r"(?i)again", "end": End.POOLED, "code": 1, **more}
    rows = "" if settings["end"] is End.GROUP else ".*1 rows of 1 participants"
    return Defect(name, plant, fault=fault + rows, base=AGGREGATE, **settings)


def sidecar_of(table: Path) -> Path:
    return table.with_suffix(".json")


RESULTS = (
    pooled(
        "nothing to pool",
        lambda case: (case.folder / "out").mkdir(),
        "no embedding is there",
        end=End.GROUP,
        code=66,
        file="{}/out",
        remedy="(?i)run",
    ),
    pooled(
        "a result cut short",
        results_then(lambda table: table.write_bytes(table.read_bytes()[:300])),
        "was cut or changed",
    ),
    pooled("a result of 0 bytes", results_then(lambda table: table.write_bytes(b"")), "was cut or changed"),
    pooled(
        "a result in Latin-1",
        results_then(lambda table: table.write_bytes(table.read_bytes().replace(b"onset", b"ons\xe9t"))),
        "was cut or changed",
    ),
    pooled(
        "a word among the features",
        results_then(
            lambda table: table.write_text(
                "\t".join(
                    ["much" if n == 5 else cell for n, cell in enumerate(table.read_text().splitlines()[1].split("\t"))]
                ).join([table.read_text().splitlines()[0] + "\n", "\n"])
            )
        ),
        "was cut or changed",
    ),
    pooled(
        "a sidecar of a result that is no JSON", results_then(lambda table: sidecar_of(table).write_text("{")), "JSON"
    ),
    pooled(
        "a sidecar of a result that is nested beyond reason",
        results_then(lambda table: sidecar_of(table).write_text("[" * 100_000)),
        "JSON",
    ),
    pooled(
        "a sidecar of a result that is a list", results_then(lambda table: sidecar_of(table).write_text("[]")), "JSON"
    ),
    pooled(
        "a result without its sidecar", results_then(lambda table: sidecar_of(table).unlink()), "cannot be read as JSON"
    ),
)

DEFECTS = (*TABLES, *RESULTS)
