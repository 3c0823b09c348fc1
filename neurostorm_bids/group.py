"""Group level: one workflow a call, over the results of the participant level or over its inputs."""

from __future__ import annotations

import sys
from dataclasses import replace

from neurostorm_bids.aggregate import aggregate
from neurostorm_bids.errors import OK, SOME_RUNS_FAILED, NeurostormError
from neurostorm_bids.inputs import find_runs
from neurostorm_bids.settings import Settings


def run_group(settings: Settings) -> int:
    """Run the group workflow that the settings name; returns the exit code."""
    if settings.group_workflow == "aggregate":
        return run_aggregate(settings)
    if settings.group_workflow == "evaluate":
        from neurostorm_bids.evaluate import run_evaluate  # scikit-learn takes seconds to import

        return run_evaluate(settings)
    from neurostorm_bids import learn  # lightning takes seconds to import

    return learn.run_pretrain(settings) if settings.group_workflow == "pretrain" else learn.run_finetune(settings)


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
