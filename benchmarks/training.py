"""What training is claimed to do, each figure by the program's own commands on simulated data.

    python benchmarks/training.py FOLDER probe      (a) a pretrained model against its untrained start, five seeds
    python benchmarks/training.py FOLDER prompt     (b) prompt tuning beside the oracle and connectivity, two seeds
    python benchmarks/training.py FOLDER permuted   (c) the same on permuted labels
    python benchmarks/training.py FOLDER ddp        2 processes against 1 with twice the batch, loss by loss
    python benchmarks/training.py FOLDER resume     killed with SIGKILL within an epoch and at its end, then resumed
    python benchmarks/training.py FOLDER step       time and memory of a training step of the full-size model

FOLDER keeps datasets, stores and models between calls. Without names after FOLDER, all of them run.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from neurostorm_bids import simulate

PYTHON = [sys.executable, "-m", "neurostorm_bids"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
N_STEPS = 50


# --- what is trained, and on what -------------------------------------------------------------------------------


def tiny_model(folder: Path) -> Path:
    """A model so small that a step takes milliseconds."""
    return untrained(folder, "tiny", embed_dim=16, depths=(2, 1))


TINY_GRID = ((-16, 0, 0, 89), (0, 16, 0, -107), (0, 0, 16, -71), (0, 0, 0, 1))


def untrained(
    folder: Path, name: str, affine: Sequence = TINY_GRID, *, background: str = "minimum", **config: object
) -> Path:
    """An untrained model of 16 mm voxels in patches of 48 mm, made once."""
    import torch

    from neurostorm_bids.model import Encoder, EncoderConfig, InputSpec
    from neurostorm_bids.model.description import INPUT_FIELDS, ModelDescription
    from neurostorm_bids.model.folder import weights_of, write_model_folder
    from neurostorm_bids.space.grid import Grid

    if folder.exists():
        return folder
    architecture = EncoderConfig(img_size=(12, 12, 12, 20), patch_size=(3, 3, 3, 1), **config)
    spec = InputSpec(
        grid=Grid.of((12, 12, 12), affine, "MNI152NLin6Asym"),
        background=background,
        provenance=dict.fromkeys(INPUT_FIELDS, "stated"),
    )
    encoder = Encoder(architecture, generator=torch.Generator().manual_seed(0))
    description = ModelDescription(name=name, config=architecture, input=spec, trained=False, summary="For benchmarks.")
    write_model_folder(folder, description, weights_of(encoder, {}))
    return folder


def dataset(folder: Path, **plan: object) -> Path:
    """A simulated dataset, made once."""
    if not (folder / "dataset_description.json").exists():
        simulate.write_dataset(folder, **plan)
    return folder


def call(where: Path, output: str, bids: Path, *words: object, launcher: Sequence[str] = PYTHON) -> list[str]:
    """A command of the program."""
    command = [*launcher, *(["neurostorm_bids"] if launcher is TORCHRUN else []), bids, where / output, "group"]
    return [str(word) for word in [*command, "--work-dir", where / "work", "--nprocs", 1, "--device", "cpu", *words]]


def run(command: list[str]) -> None:
    """Run it; its output is shown where it fails."""
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        )


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def losses(output: Path, name: str) -> np.ndarray:
    """The loss of every step."""
    with next((output / "logs" / "training" / name).glob("*/metrics.csv")).open() as stream:
        return np.array([float(row["loss"]) for row in csv.DictReader(stream) if row["loss"]])


def weights_hash(output: Path, name: str) -> str:
    """Hash of the trained weights."""
    return json.loads((output / "models" / name / "model.json").read_text())["weights"]["sha256"]


# --- (a) to (c) what is learnt ----------------------------------------------------------------------------------

TRAITS = ("age", "sex", "diagnosis", "cognition")
JUDGED = {"age": "r2", "cognition": "r2", "sex": "auroc", "diagnosis": "balanced_accuracy", "identity": "rank1"}
JUDGED["trial_type"] = "accuracy"
# fixed before any training: every trait lies in temporal covariance alone; an observer who knows the generator reaches
# AUROC 0.95 to 0.98 of sex, R2 0.7 to 0.8 of age and a balanced accuracy of 0.9 to 0.95 of three diagnoses. Mean images
# tell nobody apart: where they do, contrast learns them in place of covariance
EFFECTS = simulate.EffectSizes(
    age_r2=0.78,
    cognition_r2=0.78,
    sex=simulate.Expression(covariance=0.15),
    age=simulate.Expression(covariance=0.3),
    diagnosis=simulate.Expression(covariance=0.15),
    cognition=simulate.Expression(covariance=0.3),
    fingerprint=simulate.Expression(covariance=0.09),
    run_to_run=0.06,
)
LEVELS = simulate.Levels(
    tissue_contrast=0.03, fluctuation=0.06, network_mm=14.0, correlation_time_s=0.8, run_field=0.005
)
SIGNAL = {"effects": EFFECTS, "levels": LEVELS, "zoom_mm": 16.0}
PEOPLE = {"n_subjects": 60, "n_volumes": 300, **SIGNAL}
UNLABELLED = {"n_subjects": 3000, "runs": 2, "n_volumes": 60, "draws": "independent", "seed": 1002, **SIGNAL}
PROBE_SEEDS, PROMPT_SEEDS = (91, 92, 93, 94, 95), (62, 82)  # used by no development run
PRETRAIN = ["--group-workflow", "pretrain", "--objective", "contrastive", "--no-augmentation", "--epochs", 7]
PRETRAIN += ["--batch-size", 32, "--learning-rate", 2e-3, "--validation-share", 0.06]
LINEAR = ["--group-workflow", "finetune", "--method", "linear", "--validation-share", 0.08]
PROMPT = ["--group-workflow", "finetune", "--method", "prompt", "--prompt-length", 10, "--no-augmentation"]
PROMPT += ["--epochs", 1, "--batch-size", 16, "--learning-rate", 1e-3, "--validation-share", 0.08]
FC = ["--compare", "fc", "--n-permutations", 0, "--n-bootstrap", 50, "--tuned"]


def small_model(folder: Path) -> Path:
    """The untrained start: 16 mm voxels in patches of 48 mm, two stages of a block each."""
    lattice = ((-16, 0, 0, 93), (0, 16, 0, -103), (0, 0, 16, -65), (0, 0, 0, 1))  # voxels of the simulated images
    return untrained(folder, "small", lattice, background="zero", embed_dim=24, depths=(1, 1))


def pretrained(where: Path) -> Path:
    """The start, pretrained by contrast on people without labels, none of whom takes part in what follows."""
    folder = where / "pretrained" / "models" / "small"
    if not folder.exists():
        people = dataset(where / "unlabelled", **UNLABELLED)
        run(call(where, "pretrained", people, *PRETRAIN, "--model", small_model(where / "start"), "--name", "small"))
    return folder


def people(where: Path, seed: int, **plan: object) -> Path:
    """Sixty people: the same ones at rest and in blocks."""
    name = "blocks" if "tasks" in plan else "rest"
    return dataset(where / f"{name}-{seed}", seed=seed, **PEOPLE, **plan)


def probe(where: Path) -> None:
    """Linear probes on the pretrained backbone and on its untrained start: the same folds, the same people."""
    values: dict[tuple[str, str], list[float]] = {}
    models = {"pretrained": pretrained(where), "untrained": small_model(where / "start")}
    for seed in PROBE_SEEDS:
        rest, blocks = people(where, seed, runs=2), people(where, seed, tasks=("blocks",))
        for name, model in models.items():
            output = where / f"probe-{seed}-{name}"
            words = [*LINEAR, "--model", model, "--fold", "all"]
            if not (output / "evaluation" / "small-trial_type" / "metrics.tsv").exists():
                run(call(where, output.name, rest, *words, "--target", *TRAITS, "identity"))
                run(call(where, output.name, blocks, *words, "--target", "events:trial_type"))
            for target in JUDGED:
                values.setdefault((name, target), []).append(judged_figure(output, f"small-{target}", target))
    for target, figure in JUDGED.items():
        trained, fresh = (np.array(values[name, target]) for name in models)
        better = (trained > fresh).sum()
        print(
            f"(a) {target} {figure}: pretrained {trained.mean():.3f}, untrained {fresh.mean():.3f}; "
            f"better in {better} of {len(PROBE_SEEDS)}, by {np.round(trained - fresh, 3).tolist()}"
        )


def judged_figure(output: Path, name: str, target: str) -> float:
    """A figure over all folds, of retrieval the mean over folds."""
    with (output / "evaluation" / name / "metrics.tsv").open() as stream:
        rows = [row for row in csv.DictReader(stream, delimiter="\t") if row["figure"] == JUDGED[target]]
    pooled = [row for row in rows if row["fold"] == "all"] or rows
    return float(np.mean([float(row["value"]) for row in pooled]))


def prompt(where: Path) -> None:
    """Prompt tuning over the pretrained backbone beside the oracle, and connectivity with ridge on the same folds."""
    for seed in PROMPT_SEEDS:
        rest, blocks = people(where, seed, runs=2), people(where, seed, tasks=("blocks",))
        plan, task = (simulate.read_simulation(data) for data in (rest, blocks))
        oracle = {**simulate.ceilings(plan), "trial_type": simulate.ceilings(task)["state"]}
        # evaluation reads what the participant level wrote
        places = [rest, where / f"prompt-{seed}", "participant", "--work-dir", where / "work"]
        run([str(word) for word in [*PYTHON, *places, "--model", pretrained(where)]])
        for target in JUDGED:
            stated = "events:trial_type" if target == "trial_type" else target
            reached = tuned(where, f"prompt-{seed}", blocks if target == "trial_type" else rest, stated, target)
            ceiling = oracle[target][JUDGED[target]]
            beside = connectivity(where, f"prompt-{seed}", rest, target) if target in TRAITS else {}
            print(
                f"(b) seed {seed}, {target} {JUDGED[target]}: prompts {reached:.3f}, oracle {ceiling:.3f} "
                f"({reached / ceiling:.0%}, at least 85 %) {beside or ''}",
                flush=True,
            )


def connectivity(where: Path, output: str, data: Path, target: str) -> dict[str, str]:
    """What functional connectivity reaches on the folds of the tuned model."""
    table = where / output / "evaluation" / target / "metrics.tsv"
    if not table.exists():
        words = ["--group-workflow", "evaluate", "--model", pretrained(where), "--target", target]
        run(call(where, output, data, *words, *FC, f"small-{target}"))
    with table.open() as stream:
        rows = [row for row in csv.DictReader(stream, delimiter="\t") if row["metric"] == JUDGED[target]]
    return {row["features"]: f"{float(row['value']):.3f}" for row in rows if "fc" in row["features"]}


def tuned(where: Path, output: str, data: Path, target: str, name: str) -> float:
    """Prompt-tune the pretrained model on every fold; the figure over all of them."""
    words = [*PROMPT, "--model", pretrained(where), "--target", target, "--fold", "all"]
    if not (where / output / "evaluation" / f"small-{name}" / "metrics.tsv").exists():
        run(call(where, output, data, *words, "--name", f"small-{name}"))
    return judged_figure(where / output, f"small-{name}", name)


PERMUTATIONS = 5  # one says little of 60 people


def permuted(where: Path) -> None:
    """Prompt tuning on labels that trade places among the participants, several times."""
    import pandas as pd

    rest = people(where, PROMPT_SEEDS[-1], runs=2)
    table = pd.read_csv(rest / "participants.tsv", sep="\t")
    (rest / "phenotype").mkdir(exist_ok=True)
    for number in range(PERMUTATIONS):
        shuffled = table.sample(frac=1, random_state=number)[list(TRAITS)].to_numpy()
        labels = pd.DataFrame(shuffled, columns=list(TRAITS)).assign(participant_id=table["participant_id"])
        labels.to_csv(rest / "phenotype" / f"permuted{number}.tsv", sep="\t", index=False)
    for target in TRAITS:
        found = [
            tuned(where, f"permuted-{number}", rest, f"phenotype/permuted{number}.tsv:{target}", target)
            for number in range(PERMUTATIONS)
        ]
        print(f"(c) permuted {target} {JUDGED[target]}: prompts {np.round(found, 3).tolist()}", flush=True)


# --- (d) processes ----------------------------------------------------------------------------------------------


def ddp(where: Path) -> None:
    """Largest relative difference of the losses of 50 steps, by kind of training."""
    data, model = dataset(where / "few", n_subjects=12, runs=2, n_volumes=60, seed=1), tiny_model(where / "tiny")
    for name, words in KINDS.items():
        curves = []
        for launcher, batch in ((PYTHON, 4), (TORCHRUN, 2)):
            output = f"ddp-{name}-{batch}"
            words_of_run = [
                *words,
                "--batch-size",
                batch,
                "--model",
                model,
                "--name",
                "made",
                "--validation-share",
                0.2,
            ]
            if not (where / output / "out" / "models" / "made").exists():
                run(call(where / output, "out", data, *words_of_run, launcher=launcher))
            curves.append(losses(where / output / "out", "made")[:N_STEPS])
        one, two = curves
        difference = np.abs(one - two) / np.abs(one)
        weights = [trained_weights(where / f"ddp-{name}-{batch}" / "out" / "models" / "made") for batch in (4, 2)]
        apart = max(np.abs(weights[0][key] - weights[1][key]).max() for key in weights[0])
        print(
            f"(d) {name}: {len(one)} steps, largest relative difference {difference.max():.1e} (at most 1e-5); "
            f"weights at the end differ by up to {apart:.1e}"
        )


def trained_weights(model: Path) -> dict[str, np.ndarray]:
    """All weights of a model folder or pack."""
    from safetensors.numpy import load_file

    return load_file(model / "weights.safetensors")


TUNE = ["--group-workflow", "finetune", "--folds", 3, "--patience", 99]
CONTRAST = ["--group-workflow", "pretrain", "--objective", "contrastive"]
# contrast at a rate where training is stable: at 1e-3 a difference in the last bit grows tenfold every few steps
KINDS: dict[str, list[object]] = {
    "mae": ["--group-workflow", "pretrain", "--epochs", 4, "--strd"],
    "contrastive": [
        "--group-workflow",
        "pretrain",
        "--objective",
        "contrastive",
        "--epochs",
        17,
        "--learning-rate",
        1e-4,
    ],
    # at the default rate the prompts of an untrained model stay where they are
    "prompt": [*TUNE, "--target", "diagnosis", "--epochs", 9, "--learning-rate", 3e-2],
    # whole: behind prompts the head begins where little is left to learn, and a curve that stands still shows nothing
    "retrieval": [*TUNE, "--preset", "retrieval", "--method", "full", "--epochs", 30, "--learning-rate", 3e-4],
}


# --- (e) interruption -------------------------------------------------------------------------------------------


def resume(where: Path) -> None:
    """Kill a training at several places; resumed, it must end with the weights of the undisturbed one."""
    data, model = dataset(where / "few", n_subjects=12, runs=2, n_volumes=60, seed=1), tiny_model(where / "tiny")
    for name in ("mae", "prompt"):
        words = [*KINDS[name], "--batch-size", 4, "--model", model, "--name", "made", "--checkpoint-every", 4]
        whole = where / f"whole-{name}"
        if not (whole / "out" / "models" / "made").exists():
            run(call(whole, "out", data, *words))
        wanted = weights_hash(whole / "out", "made")
        per_epoch = len(losses(whole / "out", "made")) // int(words[words.index("--epochs") + 1])
        for place, step in (("inside an epoch", per_epoch + per_epoch // 2), ("at an epoch's end", 2 * per_epoch)):
            killed = where / f"killed-{name}-{step}-{time.time_ns()}"
            command = call(killed, "out", data, *words)
            kill_after(command, step)
            run([*command, "--resume"])
            same = weights_hash(killed / "out", "made") == wanted
            print(f"(e) {name}, killed {place} (step {step}): weights {'bit-identical' if same else 'DIFFER'}")


def kill_after(command: list[str], step: int) -> None:
    """Start a training and have it kill itself, with SIGKILL, after a number of steps."""
    code = (
        "import os, signal, sys\n"
        "from lightning.pytorch.callbacks import Callback\n"
        "from neurostorm_bids.training import course\n"
        "class Kill(Callback):\n"
        "    def on_train_batch_start(self, trainer, *_):\n"
        f"        if trainer.global_step == {step}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "reports = course._reports\n"
        "course._reports = lambda *args: [*reports(*args), Kill()]\n"
        "from neurostorm_bids.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command[3:]], env=environment(), capture_output=True, check=False
    )
    if done.returncode != -signal.SIGKILL:
        raise SystemExit(f"the training was to be killed and ended with {done.returncode}: {done.stderr[-2000:]!r}")


# --- (f) the full-size model ------------------------------------------------------------------------------------


def step(where: Path) -> None:
    """Time of a step at batch 1 and 4, and the peak of the process, each in a process of its own."""
    for method in ("prompt", "mae"):
        seconds = {}
        for batch in (1, 4):
            done = subprocess.run(
                [sys.executable, __file__, str(where), f"one-step-{method}-{batch}"],
                capture_output=True,
                text=True,
                check=True,
            )
            best, median, peak_mb = (float(word) for word in done.stdout.split())
            seconds[batch] = best
            print(f"(f) {method}, batch {batch}: best {best:.2f} s, median {median:.2f} s, peak {peak_mb:.0f} MB")
        print(f"(f) {method}: batch 4 takes {seconds[4] / seconds[1]:.2f} times batch 1 (at most 4)")


def one_step(method: str, batch: int) -> None:
    """Forward, backward and optimiser of the published configuration, on two threads."""
    import resource

    import torch

    from neurostorm_bids.model.config import EncoderConfig, Target
    from neurostorm_bids.model.encoder import Encoder
    from neurostorm_bids.model.heads import head_for
    from neurostorm_bids.model.masks import Masking
    from neurostorm_bids.training.modules import Finetuning, MaskedPretraining
    from neurostorm_bids.training.schedule import Course, optimiser

    torch.set_num_threads(2)
    config, course = (
        EncoderConfig(prompt_len=50 if method == "prompt" else 0),
        Course(epochs=1, batch_size=batch, learning_rate=1e-4),
    )
    if method == "mae":
        module = MaskedPretraining(replace(config), course, Masking())
    else:
        target = Target("age", "regression", mean=0.0, std=1.0)
        module = Finetuning(Encoder(config), head_for(target, 288), target, course, method=method)
    adamw, _ = optimiser(module.train(), course, 10)
    data = {
        "clips": torch.randn(batch, 1, 96, 96, 96, 20),
        "keys": [(0, 0, number) for number in range(batch)],
        "labels": torch.randn(batch),
        "datasets": [""] * batch,
    }
    seconds = []
    for _ in range(4):
        started = time.monotonic()
        adamw.zero_grad()
        module.loss_of(data)[0].backward()
        module.on_before_optimizer_step(adamw)
        adamw.step()
        seconds.append(time.monotonic() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(min(seconds), float(np.median(seconds)), peak)


PARTS: dict[str, Callable[[Path], None]] = {
    "probe": probe,
    "prompt": prompt,
    "permuted": permuted,
    "ddp": ddp,
    "resume": resume,
    "step": step,
}


def main(words: Sequence[str]) -> None:
    """Run the parts that were named."""
    where = Path(words[0]).absolute()
    for name in words[1:] or list(PARTS):
        if name.startswith("one-step-"):
            method, batch = name.split("-")[2:]
            one_step(method, int(batch))
        else:
            PARTS[name](where)


if __name__ == "__main__":
    main(sys.argv[1:])
