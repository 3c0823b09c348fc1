"""What a newcomer meets first: the README's commands, the pinned versions, the declared dependencies, the licence."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from neurostorm_bids.cli import parse_settings
from neurostorm_bids.errors import NeurostormError

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "neurostorm_bids"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OPTIONAL = {"mamba-ssm", "triton", "tilelang"}  # of the gpu extra: imported late, absent on most machines


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def block(mark: str) -> str:
    found = re.search(rf"^<!-- {mark} -->\n```bash\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    assert found, f"README.md has no block marked {mark}"
    return found.group(1)


def declared(*extras: str) -> dict[str, Requirement]:
    lines = PROJECT["dependencies"] + [line for name in extras for line in PROJECT["optional-dependencies"][name]]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


def pinned() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in pins}


# --- README -----------------------------------------------------------------------------------------------------


def test_set_up_takes_two_commands_and_ci_runs_the_readme_itself():
    assert len(block("setup").splitlines()) == 2
    assert block("demo").split()[0] == "neurostorm-demo"
    assert block("test").strip() == "pytest"
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert all(f"$(readme {mark})" in script for mark in ("setup", "demo", "test"))
    assert "pip install" not in script and "pytest" not in script  # nothing typed a second time


def calls(program: str) -> list[str]:
    return [line for text in blocks("bash") for line in text.splitlines() if line.split(" ")[0] == program]


@pytest.mark.parametrize("line", [line for line in calls("neurostorm") if not line.endswith("\\")])
def test_every_call_in_the_readme_is_one_the_parser_takes(line: str):
    settings = parse_settings(shlex.split(line)[1:])
    assert str(settings.bids_dir) == "/data/fmriprep"


def test_every_flag_that_the_readme_names_exists():
    help_text = subprocess.run(
        [sys.executable, "-m", "neurostorm_bids", "--help"], capture_output=True, text=True, check=True
    ).stdout
    ours = re.sub(r"^#SBATCH .*$", "", README.replace(block("docker"), ""), flags=re.MULTILINE)
    flags = set(re.findall(r"--[a-z]+(?:-[a-z]+)*", ours)) - {"--level"}  # --level is fMRIPrep's
    assert {flag for flag in flags if flag not in help_text} == set()


def test_containers_are_called_with_arguments_that_the_parser_takes():
    calls = [" ".join(call.split()) for call in block("docker").replace("\\\n", " ").split("\n")]
    calls = [re.split(r" (?:neurostorm|neurostorm\.sif) (?=/data )", call)[1] for call in calls if " run " in call]
    assert [str(parse_settings(shlex.split(call)).output_dir) for call in calls] == ["/out", "/out"]


def test_the_array_job_asks_for_one_participant(tmp_path: Path):
    stub = tmp_path / "neurostorm"
    stub.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    stub.chmod(0o755)
    (tmp_path / "participants.txt").write_text("sub-01\nsub-02\n")
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": "2", "SLURM_CPUS_PER_TASK": "4"}
    done = subprocess.run(
        ["bash", "-c", block("slurm")], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    settings = parse_settings(done.stdout.splitlines())
    assert (settings.participant_label, settings.nprocs) == (("02",), 4)


def test_the_python_of_the_readme_runs():
    (source,) = blocks("python")
    namespace: dict[str, object] = {}
    exec(compile(source, "README.md", "exec"), namespace)
    assert tuple(namespace["embedding"].shape) == (2, 96)  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/outputs.md", "docs/models.md"])
def test_links_between_pages_lead_somewhere(page: str):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)", text) if "://" not in target]
    assert [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()] == []


def test_every_exit_code_is_documented():
    def below(cls: type[NeurostormError]) -> set[int]:
        return {cls.exit_code}.union(*(below(child) for child in cls.__subclasses__()))

    documented = {
        int(code) for code in re.findall(r"^\| (\d+) \|", (ROOT / "docs/reference.md").read_text(), re.MULTILINE)
    }
    assert below(NeurostormError) - documented == set()


# --- dependencies -----------------------------------------------------------------------------------------------


def test_every_declared_dependency_is_pinned_within_its_bounds():
    pins = pinned()
    wanted = declared("test", "docs")
    assert set(wanted) - set(pins) == set()
    for name, requirement in wanted.items():
        (specifier,) = pins[name].specifier
        assert specifier.operator == "==" and requirement.specifier.contains(specifier.version), name


def test_nothing_undeclared_is_imported():
    distributions = packages_distributions()
    core = set(declared()) | OPTIONAL
    undeclared = {}
    for path in PACKAGE.rglob("*.py"):
        for module in imports_of(path) - set(sys.stdlib_module_names) - {"neurostorm_bids"}:
            names = {canonicalize_name(name) for name in distributions.get(module, [module])}
            if not names & core:
                undeclared[f"{path.relative_to(ROOT)}: {module}"] = names
    assert undeclared == {}


def imports_of(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            modules.add(node.module.split(".")[0])
    return modules


# --- the rest ---------------------------------------------------------------------------------------------------


def test_the_licence_is_apache_in_full():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["license"] == "Apache-2.0"


def test_the_citation_file_has_what_its_format_requires():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["license"] == PROJECT["license"]
    assert citation["version"] in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_data_files_are_named_as_package_data():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"][
        "package-data"
    ]
    packed = {path for pattern in patterns["neurostorm_bids"] for path in PACKAGE.glob(pattern) if path.is_file()}
    data = {path for path in (PACKAGE / "data").rglob("*") if path.is_file()}
    assert data and data <= packed
