"""Data flows one way: a stage imports only earlier stages, and nothing heavy before the arguments are checked."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "neurostorm_bids"
# every stage may import those before it; recipes may import all
ORDER = ["errors", "settings", "inputs", "space", "clips", "model", "outputs", "report"]
BRANCH = ["training", "evaluation", "attribution"]  # after model, before outputs
RECIPES = {
    "participant",
    "group",
    "aggregate",
    "attribute",
    "demo",
    "cli",
    "models_cli",
    "environment",
    "cached",
    "evaluate",
    "evaluate_identity",
    "evaluate_images",
    "evaluate_leakage",
    "evaluate_tuned",
    "evaluation_rows",
    "evaluation_tables",
    "learn",
    "stored",
    "workflow",
    "multiproc",
    "plan",
    "platforms",
    "prepare",
    "presets",
    "process",
    "progress",
    "resume",
}
FREE = {"ahead", "library", "replacing", "simulate", "data", "csrc"}
HEAVY = ("torch", "nibabel", "bids", "nipype", "numpy", "pandas", "nilearn", "templateflow")


def stage_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def rank(stage: str) -> float:
    if stage in BRANCH:
        return ORDER.index("model") + 0.25 * (1 + BRANCH.index(stage))
    return ORDER.index(stage)


def package_imports(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").startswith("neurostorm_bids"):
            modules.update(
                {node.module} if "." in node.module else {f"{node.module}.{alias.name}" for alias in node.names}
            )
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names if alias.name.startswith("neurostorm_bids."))
    return {module for module in modules if module.split(".")[-1] != "__version__"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path):
    stage = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if stage in RECIPES | FREE | {"__init__", "__main__"}:
        return
    assert stage in ORDER or stage in BRANCH, f"{stage}: a new stage must be given its place in the order"
    for module in package_imports(path):
        used = stage_of(module)
        assert used not in RECIPES, f"{path.name} imports the recipe {module}"
        if used in FREE:
            continue
        assert rank(used) <= rank(stage), f"{path.name} ({stage}) imports the later stage {module}"


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_the_command_line_answers_without_heavy_imports(argument: str):
    code = (
        "import sys\n"
        "from neurostorm_bids.cli import main\n"
        f"sys.argv = ['neurostorm', '{argument}']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("HEAVY []")


def test_parsing_arguments_imports_nothing_heavy(tmp_path: Path):
    code = (
        "import sys\n"
        "from neurostorm_bids.cli import parse_settings\n"
        f"parse_settings(['{tmp_path}/in', '{tmp_path}/out', 'participant', '--participant_label', 'sub-01'])\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "HEAVY []"
