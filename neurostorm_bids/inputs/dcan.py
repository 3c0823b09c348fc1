"""Runs of abcd-hcp-pipeline (DCAN, ABCD-BIDS): ``sub-X/ses-Y/files/MNINonLinear/Results/ses-Y_task-T_run-R``.

Below ``MNINonLinear`` it writes what the HCP pipelines do. The volumes are those before DCANBOLDProc, which denoises
surface data only.
"""

from __future__ import annotations

from neurostorm_bids.inputs.folders import Layout, label_of
from neurostorm_bids.inputs.hcp import candidates


def participant_of(folder: str) -> tuple[str, str | None]:
    """Participant of a folder; sessions are folders of their own.

    >>> participant_of("sub-NDARINV1")
    ('NDARINV1', None)
    """
    return label_of(folder.removeprefix("sub-")), None


LAYOUT = Layout(
    pipeline="abcd-hcp-pipeline",
    parse=participant_of,
    places=("ses-*/files/MNINonLinear", "files/MNINonLinear"),
    shown="folders sub-<label>/ses-<label>/files/MNINonLinear/Results/<run>",
    candidates=candidates,
)
READER = LAYOUT.reader()
