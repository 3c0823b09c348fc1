"""Output folders as the participant and group levels leave them, for reports; no image is read and no model run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from neurostorm_bids.attribution import Share
from neurostorm_bids.clips import RunStatistics
from neurostorm_bids.clips.timing import Timing
from neurostorm_bids.clips.windows import plan_windows
from neurostorm_bids.inputs.runs import Source
from neurostorm_bids.outputs import (
    ClipRow,
    ModelRecord,
    QualityFigure,
    RunRecord,
    TargetRow,
    write_dataset_files,
    write_embedding,
    write_predictions,
    write_quality,
    write_text,
)
from neurostorm_bids.outputs.maps import MapRecord, write_map
from neurostorm_bids.report.carpet import Carpet
from neurostorm_bids.report.figures import carpet_figure, motion_and_clips, placement, write_figures
from neurostorm_bids.report.results import COMMAND
from neurostorm_bids.space.grid import Grid
from neurostorm_bids.space.template import template_brain

GRID = Grid.of((48, 48, 48), [[-4, 0, 0, 95], [0, 4, 0, -113], [0, 0, 4, -77], [0, 0, 0, 1]], "MNI152NLin6Asym")
HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(2)>\"'&"
N_VOLUMES, T_R_S = 90, 1.0


def statistics() -> RunStatistics:
    """Of a run whose mean image is the template's."""
    image = (1000 * template_brain(GRID).image).astype(np.float32)
    timing = Timing.of(N_VOLUMES, T_R_S, n_dummies=2)
    return RunStatistics(timing, 600.0, 150.0, 0.0, 0.1, 1, 0, 0.0, image)


def carpet(seed: int) -> Carpet:
    """Noise that all rows share, and noise of their own."""
    made = Carpet(GRID, template_brain(GRID).brain, N_VOLUMES - 2)
    generator = np.random.default_rng(seed)
    for number in range(N_VOLUMES - 2):
        made.add(800 + 10 * np.sin(number / 4) + 5 * generator.standard_normal(GRID.shape).astype(np.float32))
    return made


def run_record(root: Path, entities: dict[str, str], text: str) -> RunRecord:
    return RunRecord(
        entities=entities,
        sources=(root / "sub-01/func/sub-01_bold.nii.gz",),
        datasets={"fmriprep": root},
        grid=GRID,
        resume_key="key",
        input_pipeline=f"fMRIPrep {text}",
        input_version="24.1.0",
        input_denoising="none",
        input_space="MNI152NLin2009cAsym",
        route="affine-approximate",
        steps=(f"first {text}", "second"),
        approximate=True,
        interpolation="linear",
        t_r_s=T_R_S,
        step_s=0.8,
        n_volumes=N_VOLUMES,
        dummy_scans=2,
        n_clips=5,
        clip_frames=20,
        dropped_clips={"motion": 1},
        settings_hash="5e771",
        warnings=(f"warned of {text}",),
        extra={"MaskOrigin": "mask.nii.gz", "RunSha256": "c0ffee"},
    )


def write_run(output_dir: Path, root: Path, entities: dict[str, str], *, seed: int, text: str = "", dice=0.95) -> None:
    """All results of one run by a model that predicts age and sex."""
    generator = np.random.default_rng(seed)
    record, stats = run_record(root, entities, text), statistics()
    fd = np.abs(0.2 + 0.1 * generator.standard_normal(N_VOLUMES))
    fd[0], fd[40:44] = np.nan, 1.2
    windows = plan_windows(stats.timing, fd_mm=fd, fd_threshold_mm=0.35)
    figures = motion_and_clips(fd, stats, windows, 0.35) | placement(GRID, stats) | carpet_figure(carpet(seed), stats)
    write_figures(output_dir, record, figures)
    quality = [
        QualityFigure(name="coverage", value=0.97, description="Share of the template brain."),
        QualityFigure(name="dice", value=dice, description=f"Overlap {text}"),
        QualityFigure(name="mean_fd", value=float(np.nanmean(fd)), unit="mm", description="Displacement."),
        QualityFigure(name="tsnr", value=45.0 + generator.standard_normal(), description="Signal to noise."),
    ]
    write_quality(output_dir, record, quality)
    targets = {
        "age": {"Kind": "regression", "Unit": "year", "Training": {"Mean": 54.0, "SD": 7.5}},
        "sex": {"Kind": "classification", "Temperature": 1.4},
    }
    model = ModelRecord(name=f"base {text}", hash="f00d", trained=True, resume_key="key", backend="cpu",
                        provenance={"grid": "assumed"}, extra={"Targets": targets})  # fmt: skip
    write_predictions(output_dir, record, model, [
        TargetRow(target="age", kind="regression", value=61.5 + generator.standard_normal(), n_clips=len(windows.kept),
                  unit="year", clip_sd=2.2, interval=(50.0, 73.0), in_distribution=False),
        TargetRow(target="sex", kind="classification", value="female", n_clips=len(windows.kept), clip_sd=0.1,
                  probabilities={"female": 0.8, f"male{text}": 0.2}, in_distribution=True),
    ])  # fmt: skip
    clips = [ClipRow(onset_s=w.onset_s, duration_s=w.duration_s, mean_fd_mm=w.mean_fd_mm) for w in windows.kept]
    write_embedding(output_dir, record, model, clips, generator.standard_normal((len(clips), 12)).cumsum(axis=0))


def write_maps(output_dir: Path, entities: dict[str, str], text: str) -> None:
    """An attribution map of a run, or of all runs where only the participant is named."""
    entry = {"Method": "integrated-gradients", "Target": "age", "Completeness": {"RelativeError": 0.004},
             "SanityCheck": {"Correlation": 0.02, "Differs": True}}  # fmt: skip
    record = MapRecord(entities=entities, desc="ageIG", grid=GRID, description="d", unit="year", sources=(),
                       model=ModelRecord(name="base", hash="f00d", trained=True, resume_key="key", backend="cpu"),
                       attribution=entry, resume_key="key")  # fmt: skip
    rows = [
        Share(level=level, name=f"{name}{text}", network=None, n_voxels=9, centre_mm=(0.0, 0.0, 0.0), attribution=1.0,
              mass=mass, volume=0.2)
        for level, name, mass in (("network", "Visual", 0.7), ("network", "Default", 0.1), ("parcel", "p1", 0.4))
    ]  # fmt: skip
    write_map(output_dir, record, np.zeros(GRID.shape), rows)


def write_results(output_dir: Path, root: Path, *, text: str = "", n_participants: int = 2) -> None:
    """A dataset: two runs of the first participant, one of the others, a failed run, the calls' settings."""
    root.mkdir(parents=True, exist_ok=True)
    source = Source(root, "fMRIPrep", "24.1.0")
    write_dataset_files(output_dir, [source], [])
    for number in range(1, n_participants + 1):
        label = f"{number:02d}"
        for task in ("rest", "movie")[: 2 if number == 1 else 1]:
            low = 0.6 if number == 2 else 0.95
            write_run(output_dir, root, {"sub": label, "task": task}, seed=number, text=text, dice=low)
        write_maps(output_dir, {"sub": label}, text)
        write_maps(output_dir, {"sub": label, "task": "rest"}, text)
        call = output_dir / f"sub-{label}" / "log" / "20260101-000000_x"
        command = json.dumps(["neurostorm", str(root), "out put", "participant", "--model", text or "base"])
        write_text(call / "neurostorm.toml", f"{COMMAND}{command}\nmodel = []\n")
    crash = f"sub-02_task-fail: voxels are NaN {text}\n\nTraceback ...\n"
    write_text(output_dir / "sub-02/log/20260101-000000_x/crash-sub-02_task-fail.txt", crash)


def write_evaluation(output_dir: Path, *, text: str = "") -> None:
    """A regression and a classification as ``evaluate`` writes them, and one as ``finetune`` does."""
    generator = np.random.default_rng(0)
    age, sex, tuned = (output_dir / "evaluation" / name for name in ("age", "sex", "tuned"))
    rows = ["features\tmetric\tvalue\tci_low\tci_high\trepeat_sd\tp\tn_permutations"]
    for number, features in enumerate((f"base{text}", "fc-correlation", "chance")):
        rows += [f"{features}\tr2\t{0.4 - 0.2 * number}\t{0.2 - 0.2 * number}\t{0.6 - 0.2 * number}\t0.01\t0.01\t100"]
        rows += [f"{features}\tmae\t{4 + number}\t{3 + number}\t{5 + number}\t0.01\t0.01\t100"]
    write_text(age / "metrics.tsv", "\n".join(rows) + "\n")
    said = ["participant_id\trow\tfeatures\trepeat\tobserved\tpredicted"]
    for features in (f"base{text}", "fc-correlation"):
        for number, value in enumerate(generator.uniform(40, 70, 20)):
            said.append(f"sub-{number:02d}\tx\t{features}\t1\t{value:.2f}\t{value + generator.normal(0, 4):.2f}")
    write_text(age / "predictions.tsv", "\n".join(said) + "\n")
    content = {"Target": {"Name": f"age{text}"}, "Statements": [f"The figures show {text}."], "Warnings": [f"w {text}"],
               "Calibration": {"base": {"PredictionIntervalHalfWidth": 8.1}}}  # fmt: skip
    write_text(age / "evaluation.json", json.dumps(content))
    write_text(
        sex / "metrics.tsv", "features\tmetric\tvalue\tci_low\tci_high\nbase\tbalanced_accuracy\t0.8\t0.7\t0.9\n"
    )
    confusion = {"Rows": "observed", "Columns": "decided", "base": [[8, 2], [1, 9]]}
    content = {"Target": {"Name": "sex", "Classes": ["female", f"male{text}"]}, "ConfusionOfFirstRepeat": confusion}
    write_text(sex / "evaluation.json", json.dumps(content))
    write_text(tuned / "metrics.tsv", "fold\tfigure\tvalue\tchance\tn\n1\tr2\t0.3\t0\t20\n")
    write_text(tuned / "predictions.tsv", "participant_id\trun\tfold\ttruth\tn_clips\tpredicted\n"
               + "".join(f"sub-{n:02d}\tn/a\t1\t{n}\t5\t{n + 1}\n" for n in range(20)))  # fmt: skip
