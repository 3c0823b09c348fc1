"""What an output folder holds of all participants together, read back for the group report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from neurostorm_bids.errors import TableUnreadable
from neurostorm_bids.outputs.resume import read_sidecar
from neurostorm_bids.outputs.tables import read_tsv
from neurostorm_bids.report.results import FUNC, Row, read_participant, run_name

# the side on which a figure of quality is bad
BAD_SIDE = {
    "coverage": -1,
    "outside_fov": 1,
    "dice": -1,
    "centroid_offset": 1,
    "template_correlation": -1,
    "lr_asymmetry": 1,
    "tsnr": -1,
    "mean_fd": 1,
}
OUTLYING = 3.5  # robust z (Iglewicz and Hoaglin 1993): distance from the median over 1.4826 MAD
LEAST_RUNS = 5  # fewer have no outliers
LEAST_SHARE = 0.02  # of the median: smaller spreads count as that, or the third digit would make outliers


@dataclass(frozen=True)
class QualityRow:
    """Quality figures of one run and what its sidecar warns of."""

    run: str
    participant: str
    session: str | None
    values: Mapping[str, float]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Outlier:
    """A run whose figures lie far on the bad side of the others."""

    run: str
    participant: str
    figures: tuple[tuple[str, float, float], ...]  # name, value, robust z


@dataclass(frozen=True)
class Evaluated:
    """One folder of ``evaluation/``: what it says, whichever workflow wrote it."""

    name: str
    content: Mapping[str, Any]
    metrics: tuple[Row, ...]
    predictions: tuple[Row, ...]


def number_of(text: Any) -> float | None:
    """A cell as a finite number, or None."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if value - value == 0 else None


def read_quality(output_dir: Path) -> tuple[list[QualityRow], list[str]]:
    """Quality figures of all runs, and the names of tables that cannot be read."""
    rows, broken = [], []
    for path in sorted(path for pattern in FUNC for path in output_dir.glob(f"sub-*/{pattern}/*_qc.tsv")):
        try:
            table, sidecar = read_tsv(path), read_sidecar(path)
        except TableUnreadable as error:
            broken.append(f"{path.name}: {error.fault}")
            continue
        name = run_name(path)
        entities = dict(part.split("-", 1) for part in name.split("_"))
        values = {key: x for key, cell in (table[0] if table else {}).items() if (x := number_of(cell)) is not None}
        warnings = sidecar.get("Warnings")
        texts = tuple(map(str, warnings)) if isinstance(warnings, list) else ()
        rows.append(QualityRow(name, entities.get("sub", ""), entities.get("ses"), values, texts))
    return rows, broken


def outliers(rows: Sequence[QualityRow]) -> list[Outlier]:
    """Runs that lie more than 3.5 robust standard deviations on the bad side of any figure, the farthest first."""
    far: dict[str, list[tuple[str, float, float]]] = {}
    for name, side in BAD_SIDE.items():
        values = [row.values[name] for row in rows if name in row.values]
        if len(values) < LEAST_RUNS:
            continue
        middle = median(values)
        spread = max(1.4826 * median(abs(value - middle) for value in values), LEAST_SHARE * abs(middle), 1e-9)
        for row in rows:
            z = side * (row.values.get(name, middle) - middle) / spread
            if z > OUTLYING:
                far.setdefault(row.run, []).append((name, row.values[name], z))
    found = [Outlier(row.run, row.participant, tuple(far[row.run])) for row in rows if row.run in far]
    return sorted(found, key=lambda outlier: -max(z for _, _, z in outlier.figures))


def common_warnings(rows: Sequence[QualityRow]) -> list[tuple[str, int]]:
    """Each warning and how many runs have it, figures in the text aside; the most frequent first."""
    alike: dict[str, Counter[str]] = {}
    for row in rows:
        for text in set(row.warnings):
            alike.setdefault(_without_figures(text), Counter())[text] += 1
    texts = {next(iter(same)) if len(same) == 1 else short: same.total() for short, same in alike.items()}
    return sorted(texts.items(), key=lambda pair: (-pair[1], pair[0]))


def _without_figures(text: str) -> str:
    words = text.split()
    return " ".join("..." if word.strip("(),%:;").replace(".", "").isdigit() else word for word in words)


def read_failures(output_dir: Path) -> list[tuple[str, str, str]]:
    """Participant, run and reason for every run that a crash file tells of and that has no results."""
    folders = sorted({path.parents[2] for path in output_dir.glob("sub-*/log/*/crash-*.txt")})
    return [
        (label, run, text)
        for label in (folder.name.removeprefix("sub-") for folder in folders)
        for run, text in read_participant(output_dir, label).failed.items()
    ]


def read_evaluations(output_dir: Path) -> list[Evaluated]:
    """Every folder of ``evaluation/`` that has metrics."""
    return [
        Evaluated(path.parent.name, _json(path.parent / "evaluation.json"), _rows(path), _rows(path.parent / _SAID))
        for path in sorted(output_dir.glob("evaluation/*/metrics.tsv"))
    ]


_SAID = "predictions.tsv"


def _rows(path: Path) -> tuple[Row, ...]:
    try:
        return tuple(read_tsv(path))
    except TableUnreadable:
        return ()


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def mean_by_person(rows: Iterable[QualityRow]) -> dict[str, dict[tuple[str, str | None], float]]:
    """Mean of each figure over the runs of a participant and session."""
    sums: dict[str, dict[tuple[str, str | None], list[float]]] = {}
    for row in rows:
        for name, value in row.values.items():
            sums.setdefault(name, {}).setdefault((row.participant, row.session), []).append(value)
    return {name: {who: sum(x) / len(x) for who, x in people.items()} for name, people in sums.items()}
