"""The simulated dataset on disk: named and described as fMRIPrep does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from neurostorm_bids import __version__
from neurostorm_bids.outputs.atomic import json_text
from neurostorm_bids.outputs.names import file_name
from neurostorm_bids.simulate.brain import Brain, brain_on, grid_of
from neurostorm_bids.simulate.cohort import Cohort, draw_cohort
from neurostorm_bids.simulate.effects import DIAGNOSES, Simulation
from neurostorm_bids.simulate.images import interpolation, nifti, series
from neurostorm_bids.simulate.runs import HEAD_RADIUS_MM, REST, Run, runs_of

PLAN = Path("code", "simulation.json")
DEFAULT_RESOLUTION = "MNI152NLin2009cAsym"  # fMRIPrep's default output space, written without res-
NOT_IN_BIDS = ("*_boldref.*", "*_timeseries.*")  # as in fMRIPrep's own .bidsignore
MOTION = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")


def write_dataset(root: Path | str, **plan: Any) -> Simulation:
    """Simulate an fMRIPrep derivative dataset.

    Parameters
    ----------
    root : Path or str
        Folder of the dataset; files of a dataset that lies there are replaced.
    **plan
        What `Simulation` takes: ``n_subjects``, ``sessions``, ``runs``, ``tasks``, ``spaces``, ``zoom_mm``,
        ``n_volumes``, ``t_r_s``, ``seed``, ``effects``, ``levels``, ``n_sites`` and more.

    Returns
    -------
    Simulation
        The plan; `ceilings` says what can be read from such data. It is also in ``code/simulation.json``.

    Raises
    ------
    ValueError
        For a plan that makes no sense.
    """
    simulation, root = Simulation(**plan), Path(root)
    cohort = draw_cohort(simulation)
    width = simulation.levels.network_mm
    brains = [brain_on(grid_of(template, simulation.zoom_mm), width) for template in simulation.spaces]
    _write_description(root, simulation)
    _write_participants(root, simulation, cohort)
    with threadpool_limits(1):  # sums of a product depend on how many threads share it, and bytes must not
        for run in runs_of(simulation, cohort):
            _write_run(root, run, brains)
    return simulation


def read_simulation(root: Path | str) -> Simulation:
    """The plan of a simulated dataset."""
    return Simulation.from_json(json.loads((Path(root) / PLAN).read_text(encoding="utf-8")))


# --- the dataset as a whole -----------------------------------------------------------------------------------------


def _write_description(root: Path, simulation: Simulation) -> None:
    generators = [
        {"Name": "fMRIPrep", "Version": simulation.fmriprep_version, "Description": "Its file names; it did not run."},
        {"Name": "neurostorm simulate", "Version": __version__, "Description": "Simulated images and phenotypes."},
    ]
    description = {
        "Name": "Simulated fMRI, laid out as fMRIPrep does",
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "License": "CC0",
        "GeneratedBy": generators,
    }
    _write_json(root / "dataset_description.json", description)
    _write_json(root / PLAN, simulation.as_json())
    _write(root / ".bidsignore", "\n".join(NOT_IN_BIDS) + "\n")
    text = f"Simulated data: no person was scanned. The plan is in {PLAN.as_posix()}; "
    _write(root / "README.md", text + "`neurostorm_bids.simulate.ceilings` tells how well it can be read.\n")


def _write_participants(root: Path, simulation: Simulation, cohort: Cohort) -> None:
    table = cohort.phenotypes.copy()
    table.index = pd.Index([f"sub-{label}" for label in table.index], name="participant_id")
    rng = np.random.default_rng([simulation.seed, 9])
    for column in ("age", "cognition"):
        lost = rng.permutation(len(table))[: round(simulation.missing * len(table))]
        table.loc[table.index[lost], column] = np.nan
    _write(root / "participants.tsv", _tsv(table.reset_index()))
    _write_json(root / "participants.json", participant_columns(simulation))
    for subject, label in enumerate(cohort.labels):
        if n_sessions := simulation.sessions[subject % len(simulation.sessions)]:
            _write_sessions(root, label, n_sessions)


def participant_columns(simulation: Simulation) -> dict[str, Any]:
    """What participants.json says."""
    return {
        "age": {"Description": "Age of the participant", "Units": "year"},
        "sex": {"Description": "Sex of the participant", "Levels": {"F": "female", "M": "male"}},
        "diagnosis": {
            "Description": "Simulated diagnosis",
            "Levels": {name: f"simulated class {name}" for name in DIAGNOSES},
        },
        "cognition": {"Description": "Simulated cognitive score, population mean 100 and SD 15", "Units": "arbitrary"},
        "site": {
            "Description": "Scanner",
            "Levels": {f"site{number}": f"scanner {number}" for number in range(1, simulation.n_sites + 1)},
        },
        "family_id": {"Description": "Members of a family share a label"},
    }


def _write_sessions(root: Path, label: str, n_sessions: int) -> None:
    numbers = range(1, n_sessions + 1)
    table = pd.DataFrame(
        {"session_id": [f"ses-{number}" for number in numbers], "months": [12 * (number - 1) for number in numbers]}
    )
    path = root / f"sub-{label}" / f"sub-{label}_sessions.tsv"
    _write(path, _tsv(table))
    _write_json(
        path.with_suffix(".json"), {"months": {"Description": "Time since the first session", "Units": "month"}}
    )


# --- a run ----------------------------------------------------------------------------------------------------------


def _write_run(root: Path, run: Run, brains: list[Brain]) -> None:
    session = [f"ses-{run.entities['ses']}"] if "ses" in run.entities else []
    folder = root.joinpath(f"sub-{run.entities['sub']}", *session, "func")
    values = series(run, brains[0])  # (v, t)
    for brain in brains:
        resampled = values if brain is brains[0] else interpolation(brains[0].grid, brain.grid) @ values
        _write_images(folder, run, brain, resampled)
    confounds = folder / file_name({**run.entities, "desc": "confounds"}, "timeseries", ".tsv")
    table = confounds_of(run, values)
    _write(confounds, _tsv(table))
    _write_json(confounds.with_suffix(".json"), {name: {"Method": "Mean"} for name in ("csf", "white_matter")})
    if run.task != REST:
        _write_events(folder / file_name(run.entities, "events", ".tsv"), run)


def _write_images(folder: Path, run: Run, brain: Brain, values: np.ndarray) -> None:
    zoom = run.simulation.zoom_mm
    entities = {**run.entities, "space": brain.grid.template}
    text: dict[str, Any] = {}
    if brain.grid.template != DEFAULT_RESOLUTION:
        entities["res"] = f"{zoom:g}".replace(".", "p")
        text["Resolution"] = f"Simulated at {zoom:g} mm"
    timing = {"RepetitionTime": run.simulation.t_r_s, "StartTime": 0, "TaskName": run.task, "SkullStripped": True}
    written: list[tuple[dict[str, str], str, bytes, dict[str, Any]]] = [
        ({"desc": "preproc"}, "bold", nifti(values, brain, np.int16, run.simulation.t_r_s), timing),
        ({"desc": "brain"}, "mask", nifti(np.ones(len(values)), brain, np.uint8), {"Type": "Brain"}),
        ({}, "boldref", nifti(values.mean(axis=1), brain, np.int16), {"SkullStripped": True}),
    ]
    for desc, suffix, content, sidecar in written:
        path = folder / file_name({**entities, **desc}, suffix, ".nii.gz")
        _write(path, content)
        _write_json(path.with_name(path.name.replace(".nii.gz", ".json")), {**sidecar, **text})


def confounds_of(run: Run, values: np.ndarray) -> pd.DataFrame:
    """The confounds table of a run: signals of the whole brain, displacement, motion and its differences."""
    brain = brain_on(grid_of(run.simulation.spaces[0], run.simulation.zoom_mm))
    bright, dark = brain.tissue > 1.0, brain.tissue < -0.5
    differences = np.diff(values, axis=1, prepend=np.nan)
    moved = np.diff(run.motion, axis=0, prepend=np.nan)
    columns: dict[str, np.ndarray] = {
        "global_signal": values.mean(axis=0),
        "csf": values[bright].mean(axis=0),
        "white_matter": values[dark].mean(axis=0),
        "std_dvars": _dvars(differences),
        "framewise_displacement": run.fd_mm,
        "rmsd": np.sqrt((moved[:, :3] ** 2).sum(axis=1) + 0.2 * HEAD_RADIUS_MM**2 * (moved[:, 3:] ** 2).sum(axis=1)),
    }
    for number, name in enumerate(MOTION):
        columns[name], columns[f"{name}_derivative1"] = run.motion[:, number], moved[:, number]
    for volume in range(run.simulation.n_dummies):
        columns[f"non_steady_state_outlier{volume:02d}"] = (np.arange(len(run.fd_mm)) == volume).astype(int)
    return pd.DataFrame(columns)


def _dvars(differences: np.ndarray) -> np.ndarray:
    dvars = np.sqrt((differences**2).mean(axis=0))
    return dvars / np.nanmedian(dvars)


def _write_events(path: Path, run: Run) -> None:
    table = pd.DataFrame(
        {
            "onset": [block.onset_s for block in run.blocks],
            "duration": [block.duration_s for block in run.blocks],
            "trial_type": [block.condition for block in run.blocks],
        }
    )
    _write(path, _tsv(table))
    levels = {name: f"blocks of the {name} condition" for name in sorted(set(table["trial_type"]))}
    _write_json(path.with_suffix(".json"), {"trial_type": {"Description": "Condition", "Levels": levels}})


def _write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    _write(path, json_text(content, path))


def _tsv(table: pd.DataFrame) -> str:
    return table.to_csv(sep="\t", index=False, na_rep="n/a", float_format="%.9g", lineterminator="\n")
