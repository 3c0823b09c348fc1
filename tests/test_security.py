"""What a hostile file, folder or text must not achieve; attacks on single readers stand in those readers' tests."""

from __future__ import annotations

import ast
import gzip
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from fmriprep_tree import AFFINE, SHAPE, write_dataset, write_run
from packaging.version import Version

import neurostorm_bids
from neurostorm_bids.cli import main
from neurostorm_bids.errors import ResumeImpossible
from neurostorm_bids.space.nifti import open_series
from neurostorm_bids.training.checkpoints import resume_point

PACKAGE = Path(neurostorm_bids.__file__).parent
ROOT = Path(__file__).parents[1]
UNPICKLED = {"workflow.py"}  # tasks that the same call stored in its own new folder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    root = write_dataset(tmp_path / "fmriprep")
    write_run(root, "sub-01_task-rest", seed=1)
    return root


def words(dataset: Path, *extra: str) -> list[str]:
    folder = dataset.parent
    start = [str(dataset), str(folder / "out"), "participant", "-w", str(folder / "work")]
    return [*start, "--model", "demo", "--offline", "--nprocs", "1", *extra]


# --- the code ---------------------------------------------------------------------------------------------------


def calls() -> list[tuple[str, ast.Call, str]]:
    """Every call of the package: file, call, and what is called ("torch.load")."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                found.append((path.name, node, ast.unparse(node.func)))
    return found


def stated(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == name), None)


def test_no_shell_no_evaluation_and_no_free_unpickling():
    odd = []
    for file, call, name in calls():
        last = name.rsplit(".", 1)[-1]
        odd += [f"{file}:{call.lineno} {name}"] * any(
            (
                stated(call, "shell") not in (None, "False"),
                name in ("eval", "exec", "os.system", "os.popen", "tempfile.mktemp", "yaml.load"),
                last in ("extractall", "unpack_archive"),
                name in ("pickle.load", "pickle.loads") and file not in UNPICKLED,
                name == "torch.load" and stated(call, "weights_only") != "True",
                name.endswith(("np.load", "numpy.load")) and stated(call, "allow_pickle") not in (None, "False"),
            )
        )
    assert not odd


def test_nothing_parses_xml():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in getattr(node, "names", [])] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] in ("xml", "lxml") for name in names), path


# --- no network -------------------------------------------------------------------------------------------------

ALONE = """
import sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto") and not str(arguments[-1]).startswith("/"):
        raise SystemExit(f"NETWORK {event} {arguments[1:]}")
sys.addaudithook(refuse)
from neurostorm_bids.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_nothing_is_asked_of_a_network(dataset):
    done = subprocess.run([sys.executable, "-c", ALONE, *words(dataset)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "NETWORK" not in done.stderr, done.stderr


def test_a_network_namespace_without_interfaces_is_enough(dataset):
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rn", "true"], capture_output=True, check=False).returncode:
        pytest.skip("network namespaces are not to be had here")
    command = [unshare, "-rn", sys.executable, "-m", "neurostorm_bids", *words(dataset)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- what outputs tell ------------------------------------------------------------------------------------------


def test_outputs_hold_no_home_no_user_and_no_secret(dataset, monkeypatch):
    home = dataset.parent
    environment = {**os.environ, "HOME": str(home), "USER": "zaphod", "LOGNAME": "zaphod", "API_TOKEN": "s3cr3t-token"}
    command = ["fmriprep", "out", "participant", "-w", "work", "--model", "demo", "--offline", "--nprocs", "1"]
    run = [sys.executable, "-m", "neurostorm_bids"]
    subprocess.run([*run, *command], check=True, capture_output=True, cwd=home, env=environment)
    subprocess.run([*run, "fmriprep", "out", "group", "-w", "work"], check=True, cwd=home, env=environment)
    told = {
        (path.relative_to(home).as_posix(), text)
        for path in (home / "out").rglob("*")
        if path.is_file()
        for text in (str(home), "zaphod", "s3cr3t-token")
        if text.encode() in path.read_bytes()
    }
    assert {file for file, _ in told} <= {
        next((home / "out").glob("sub-01/log/*/neurostorm.toml")).relative_to(home).as_posix()
    }
    assert {text for _, text in told} <= {str(home)}  # the settings of a call, for whoever repeats it, have its paths


# --- hostile texts ----------------------------------------------------------------------------------------------

SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def test_texts_of_the_input_are_texts_in_the_report(tmp_path):
    root = write_dataset(
        tmp_path / "fmriprep", Name=SCRIPT, GeneratedBy=[{"Name": "fMRIPrep", "Version": f"23.2.1{SCRIPT}"}]
    )
    bold = write_run(root, "sub-01_task-rest", seed=1)
    sidecar = bold.with_name(bold.name.replace(".nii.gz", ".json"))
    sidecar.write_text(json.dumps({"RepetitionTime": 2.0, "TaskName": SCRIPT}))
    assert main(words(root)) in (0, 1)
    assert main([str(root), str(tmp_path / "out"), "group", "-w", str(tmp_path / "work")]) in (0, 1)
    pages = list((tmp_path / "out").glob("*.html"))
    assert {page.name for page in pages} == {"sub-01.html", "group.html"}
    for page in pages:
        assert "<script>alert" not in page.read_text() and "<img src=x" not in page.read_text()


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/b", ".."])
def test_names_lead_nowhere(tmp_path, name, capsys):
    root = write_dataset(tmp_path / "fmriprep")
    start = [str(root), str(tmp_path / "deep" / "out"), "group", "-w", str(tmp_path / "work"), "--model", "demo"]
    assert main([*start, "--group-workflow", "pretrain", "--name", name, "--from-scratch"]) in (2, 18, 65, 66)
    assert not list(tmp_path.rglob("evil*")) and "Traceback" not in capsys.readouterr().err


# --- links ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["sub-01", "sub-01/func", "sub-01/figures", "logs", "logs/descriptions"])
def test_nothing_is_written_through_a_link_that_leads_out(dataset, place, capsys):
    out, outside = dataset.parent / "out", dataset.parent / "outside"
    outside.mkdir()
    (out / place).parent.mkdir(parents=True)
    (out / place).symlink_to(outside)
    assert main(words(dataset)) == 73
    said = capsys.readouterr().err
    assert f"{out / place}: is a link that leads out of the output folder" in said and "remove the link" in said
    assert not list(outside.iterdir())


@pytest.mark.parametrize("place", ["phenotype", "evaluation", "models"])
def test_nor_at_the_group_level(dataset, place, capsys):
    out = dataset.parent / "out"
    assert main(words(dataset)) == 0
    (dataset.parent / "outside").mkdir()
    (out / place).symlink_to(dataset.parent / "outside")
    assert main([str(dataset), str(out), "group", "-w", str(dataset.parent / "work")]) == 73
    assert not list((dataset.parent / "outside").iterdir()) and "leads out" in capsys.readouterr().err


def test_a_linked_file_is_replaced_and_not_written_into(dataset):
    out, victim = dataset.parent / "out", dataset.parent / "victim"
    victim.write_text("mine")
    out.mkdir()
    (out / "descriptions.tsv").symlink_to(victim)
    (out / "sub-01.html").symlink_to(victim)
    assert main(words(dataset)) == 0
    assert victim.read_text() == "mine" and not (out / "sub-01.html").is_symlink()


def test_an_output_folder_that_is_a_link_itself_is_the_users_choice(dataset):
    (dataset.parent / "elsewhere").mkdir()
    (dataset.parent / "out").symlink_to(dataset.parent / "elsewhere")
    assert main(words(dataset)) == 0
    assert (dataset.parent / "elsewhere" / "sub-01.html").is_file()


# --- bombs and pickles ------------------------------------------------------------------------------------------


def test_a_gzip_bomb_is_read_as_far_as_the_header_declares(tmp_path):
    image = nib.Nifti1Image(np.zeros((*SHAPE, 2), np.float32), AFFINE)
    with gzip.open(tmp_path / "bomb.nii.gz", "wb", compresslevel=1) as stream:
        stream.write(image.to_bytes())
        for _ in range(256):
            stream.write(bytes(2**20))
    assert (tmp_path / "bomb.nii.gz").stat().st_size < 2 * 2**20
    import tracemalloc

    from neurostorm_bids.errors import ImageUnreadable

    tracemalloc.start()
    with pytest.raises(ImageUnreadable):
        list(open_series(tmp_path / "bomb.nii.gz").volumes())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path(os.environ["PLANTED"]),)


def test_a_point_of_resume_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PLANTED", str(tmp_path / "planted"))
    torch.save({"callbacks": {"ResumePoints": Malicious()}}, tmp_path / "last.ckpt")
    with pytest.raises(ResumeImpossible, match="cannot be read"):
        resume_point(tmp_path, "one")
    assert not (tmp_path / "planted").exists()
    torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert (tmp_path / "planted").exists()  # it would have


# --- packages ---------------------------------------------------------------------------------------------------


def test_every_package_of_the_image_is_locked_by_hash():
    import tomllib

    locked: dict[str, str] = {}
    for block in (ROOT / "requirements.lock").read_text().replace("\\\n", " ").splitlines():
        if block and not block.startswith("#"):
            pinned, *hashes = block.split()
            name, _, version = pinned.partition("==")
            assert version and hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in hashes)
            locked[name] = version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[<>=\[; ]", line)[0].lower() for line in project["dependencies"]} - {"torch"}
    assert wanted <= locked.keys(), "run scripts/lock_requirements.sh"
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    tested = dict(line.lower().split(";")[0].strip().split("==") for line in lines if "==" in line)
    assert {name: tested.get(name) for name in locked} == locked, "run scripts/lock_requirements.sh"
    assert "--require-hashes --no-deps -r requirements.lock" in (ROOT / "Dockerfile").read_text()


def audit():
    """``scripts/audit_requirements.py``; what it needs of pip-audit is imported when it is called."""
    spec = importlib.util.spec_from_file_location("audit_requirements", ROOT / "scripts/audit_requirements.py")
    assert spec and spec.loader
    sys.modules["audit_requirements"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Index:
    """A package index that has answers for projects, and for the versions that are listed."""

    def __init__(self, newest: str, versions: tuple[str, ...] = ()):
        self.newest, self.versions = newest, versions

    def get(self, url: str, timeout: int) -> SimpleNamespace:
        *_, name, version = url.removesuffix("/json").split("/")
        version = self.newest if name == "pypi" else version
        there = name == "pypi" or version in self.versions
        return SimpleNamespace(status_code=200 if there else 404, json=lambda: {"info": {"version": version}})


@pytest.mark.parametrize(
    ("index", "said_of"),
    [
        (Index("2.0", versions=("1.0", "2.0")), "1.0"),  # the version itself
        (Index("1.0"), "1.0"),  # the project, whose newest version it is
        (Index("1.0.0"), "1.0"),  # the same version, written otherwise
        (Index("2.0"), None),  # a sound newest version says nothing of an older one
        (Index("1.0.post1"), None),
    ],
)
def test_what_is_known_of_another_version_is_not_taken(index: Index, said_of: str | None):
    answer = audit().NewestToo(index).get(url="https://index.example/pypi/package/1.0/json", timeout=1)
    assert (answer.status_code == 200) == (said_of is not None)
    assert said_of is None or Version(answer.json()["info"]["version"]) == Version(said_of)


def test_what_could_not_be_audited_is_told_and_not_counted_as_sound():
    module = audit()
    sound, old, bad = module.Pin("a 1", ()), module.Pin("b", None), module.Pin("c 1", ("PYSEC-1",))
    assert module.told("lock", [sound, old, bad]) == [
        "lock: 2 of 3 audited, 1 vulnerabilities",
        "  c 1: PYSEC-1",
        "  not audited: b",
    ]
    assert [module.status(pins, whole=False) for pins in ([sound], [sound, old], [sound, bad])] == [0, 0, 1]
    assert module.status([sound, old], whole=True) == 1


def test_an_audit_that_finds_nothing_against_a_vulnerable_package_is_not_believed(monkeypatch, tmp_path, capsys):
    module = audit()
    monkeypatch.setattr(module, "audited", lambda file, folder: [module.Pin(file.read_text().strip(), ())])
    (tmp_path / "lock").write_text("a==1\n")
    assert module.main([str(tmp_path / "lock")]) == 2
    assert "cannot be relied on" in capsys.readouterr().out


def test_a_list_without_pins_is_no_sound_list(monkeypatch, tmp_path):
    module = audit()
    with pytest.raises(module.NothingAudited, match=r"lock: there is no such file; name a list of pins"):
        list(module.audited(tmp_path / "lock", str(tmp_path)))

    def pins(file, folder):
        return [module.Pin("pycrypto 2.6.1", ("PYSEC-2018-97",))] if file.name == "known.txt" else []

    monkeypatch.setattr(module, "audited", pins)
    with pytest.raises(module.NothingAudited, match=r"lock: pins no package; name a list of pins"):
        module.main([str(tmp_path / "lock")])
