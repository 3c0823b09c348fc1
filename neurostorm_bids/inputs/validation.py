"""A raw dataset is checked by the BIDS validator before its derivatives are trusted."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neurostorm_bids.errors import DatasetInvalid, ValidatorMissing

VALIDATOR = "bids-validator-deno"
SHOWN = 3
EMPTY = "EMPTY_FILE"
IMAGES = (".nii", ".nii.gz")

Issue = Mapping[str, Any]


def validate_raw(root: Path) -> list[str]:
    """Run the BIDS validator on a raw dataset.

    Returns
    -------
    list of str
        Warnings. Empty images are among them: raw images are not read here, so that a placeholder stops nothing.

    Raises
    ------
    DatasetInvalid
        When it reports errors; the first few are told.
    ValidatorMissing
        When it cannot be started or answers nothing that can be read.
    """
    errors = [issue for issue in _issues(root) if issue.get("severity") == "error"]
    empty = [str(issue["location"]) for issue in errors if _is_empty_image(issue)]
    issues = [issue for issue in errors if not _is_empty_image(issue)]
    if issues:
        more = f" and {len(issues) - SHOWN} more" if len(issues) > SHOWN else ""
        raise DatasetInvalid(
            f"is no valid BIDS dataset: {'; '.join(_told(issue) for issue in issues[:SHOWN])}{more}",
            file=root,
            remedy="Mend these, list files that are not BIDS in .bidsignore, or pass --skip-bids-validation",
        )
    return [f"{root}: {len(empty)} raw images are empty, such as {empty[0]}"] if empty else []


def _issues(root: Path) -> Sequence[Issue]:
    command = [_executable(), "--format", "json", "--ignoreNiftiHeaders", "--ignoreWarnings", str(root)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return json.loads(answer.stdout)["issues"]["issues"]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValidatorMissing(
            f"{VALIDATOR} failed on {root} (exit code {answer.returncode}): {answer.stderr.strip()[:500]}",
            remedy="Pass --skip-bids-validation",
        ) from None


def _executable() -> str:
    beside = Path(sys.executable).with_name(VALIDATOR)  # where pip puts it, also when the environment is not activated
    found = shutil.which(VALIDATOR) or (str(beside) if beside.is_file() else None)
    if found is None:
        raise ValidatorMissing(
            f"{VALIDATOR} is not installed",
            remedy=f"Install it (pip install {VALIDATOR}) or pass --skip-bids-validation",
        )
    return found


def _is_empty_image(issue: Issue) -> bool:
    return issue["code"] == EMPTY and str(issue.get("location", "")).endswith(IMAGES)


def _told(issue: Issue) -> str:
    what = " ".join(str(issue[key]) for key in ("code", "subCode") if issue.get(key))
    return f"{what} ({issue['location']})" if issue.get("location") else what
