"""Group level: one workflow a call, over the results of the participant level or over its inputs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from neurostorm_bids.aggregate import aggregate
from neurostorm_bids.errors import OK, SOME_RUNS_FAILED, NeurostormError, NothingToReport
from neurostorm_bids.inputs import find_runs
from neurostorm_bids.inputs.datasets import locate
from neurostorm_bids.inputs.participants import read_participants
from neurostorm_bids.outputs.dataset import check_no_way_out, check_own_folder
from neurostorm_bids.report.group import write_group_report
from neurostorm_bids.report.results import reported_participants
from neurostorm_bids.settings import Settings


def run_group(settings: Settings) -> int:
    """Run the group workflow that the settings name, then write the group report; returns the exit code."""
    check_no_way_out(settings.output_dir)
    if settings.reports_only:
        _require_results(settings.output_dir)
        return report(settings)
    if settings.group_workflow == "aggregate":
        return max(run_aggregate(settings), report(settings))
    if settings.group_workflow == "evaluate":
        from neurostorm_bids.evaluate import run_evaluate  # scikit-learn takes seconds to import

        return max(run_evaluate(settings), report(settings))
    from neurostorm_bids import learn  # lightning takes seconds to import

    if settings.group_workflow == "pretrain":
        return learn.run_pretrain(settings)
    from neurostorm_bids.training.processes import process_rank

    code = learn.run_finetune(settings)
    return max(code, report(settings)) if process_rank() == 0 else code


def _require_results(output_dir: Path) -> None:
    check_own_folder(output_dir / "dataset_description.json")
    tables = (output_dir / "phenotype" / "neurostorm_embeddings.tsv", *output_dir.glob("evaluation/*/metrics.tsv"))
    if not (any(path.is_file() for path in tables) or reported_participants(output_dir)):
        raise NothingToReport(
            "no results are there to report",
            file=output_dir,
            expected="the output folder of an earlier call",
            remedy="run the participant level first",
        )


def report(settings: Settings) -> int:
    """Write ``group.html`` from what the output folder holds; returns 0, or 1 where that failed."""
    try:
        path = write_group_report(settings.output_dir, _participants(settings))
    except NeurostormError as error:
        print(f"report: {error}", file=sys.stderr)
        return SOME_RUNS_FAILED
    if not settings.quiet:
        print(f"group report: {path}")
    return OK


def _participants(settings: Settings) -> Mapping[str, Mapping[str, Any]]:
    """Columns of the first participants.tsv among the input's datasets; none where there is no usable one."""
    try:
        scope = locate(settings.bids_dir, settings.derivatives)
        roots = [*([scope.raw] if scope.raw else []), *scope.derivatives]
    except NeurostormError:
        return {}
    for dataset in roots:
        if (dataset.root / "participants.tsv").is_file():
            try:
                table = read_participants(dataset.root)
            except NeurostormError as error:
                print(f"warning: {error}", file=sys.stderr)
                continue
            return {str(name): {str(label): x for label, x in table[name].dropna().items()} for name in table}
    return {}


def run_aggregate(settings: Settings) -> int:
    """Pool the participant level's tables into ``phenotype/``; what is missing or broken is told, and exits 1."""
    result = aggregate(
        settings.output_dir,
        participants=settings.participant_label,
        sessions=settings.session_label,
        tasks=settings.task_id,
        expected=_expected(settings),
    )
    for line in (*result.warnings, *(f"missing: {text}" for text in result.missing)):
        print(f"warning: {line}", file=sys.stderr)
    for error in result.rejected:
        print(f"rejected: {error}", file=sys.stderr)
    if not settings.quiet:
        print(
            f"{result.n_rows} rows of {result.n_participants} participants, models {', '.join(result.models)}: "
            + ", ".join(str(path) for path in result.written)
        )
    return SOME_RUNS_FAILED if result.rejected else OK


def _expected(settings: Settings) -> set[tuple[str, str | None]]:
    """Participants and sessions of the input, results or not; none where the input is not at hand any more."""
    try:
        selection = find_runs(replace(settings, skip_bids_validation=True))
    except NeurostormError as error:
        print(f"warning: who lacks results cannot be told: {error}", file=sys.stderr)
        return set()
    return {(run.participant, run.session) for run in selection.runs}
