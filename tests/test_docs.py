"""The pages: commands run or parse, links lead somewhere, the reference is in step, every column is described."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from neurostorm_bids import cli, demo, environment, models_cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
GUIDES = ("tutorial.md", "howto.md")  # executed in this order, in one folder
EXECUTED = (*GUIDES, "models.md", "api.md")
# <!-- runs --> or <!-- needs: ... --> before a block; group 2 is the language, group 3 the text
BLOCK = re.compile(r"(?:<!-- ([^\n]*?) -->\n)?```(\w*)[^\n]*\n(.*?)```", re.DOTALL)
PROGRAMS = {"neurostorm": cli.main, "neurostorm-models": models_cli.main, "neurostorm-demo": demo.main}
PLAN = {"n_subjects": 4, "sessions": (1,), "spaces": ("MNI152NLin6Asym",), "n_volumes": 30}


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Mark, language and text of each fenced block."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def commands(text: str) -> list[list[str]]:
    """The commands of a block, continued lines joined; comments are no words."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


# --- what is executed ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("docs")


@pytest.fixture(autouse=True)
def one_core(monkeypatch):
    """Threads that wait for each other on a busy machine make these short calls long."""
    monkeypatch.setattr(environment, "cores", lambda: 1)


@pytest.mark.parametrize("name", GUIDES)
def test_every_block_of_a_guide_runs_or_says_what_it_needs(name: str):
    for mark, language, text in blocks(ROOT / "docs" / name):
        assert mark == "runs" or mark.startswith("needs: "), f"{name}: unmarked {language} block: {text[:60]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_commands_runs_or_says_what_it_needs(page: Path):
    known = (
        *PROGRAMS,
        "python",
        "docker",
        "apptainer",
        "bosh",
        "export",
        "pip",
        "datalad",
        "babs",
        "sbatch",
        ".ci/run",
    )
    for mark, language, text in blocks(page):
        ours = language in ("", "bash") and any(words[0] in known for words in commands_of(text))
        if ours or language == "python":
            assert mark == "runs" or mark.startswith("needs: "), f"{page.name}: unmarked: {text[:60]}"
            assert mark != "runs" or page.name in EXECUTED, f"{page.name} is not executed"


def commands_of(text: str) -> list[list[str]]:
    """Lines as words, whatever they are."""
    return [words for line in text.replace("\\\n", " ").splitlines() if (words := line.split())]


def test_what_is_shown_of_models_runs_as_it_stands(capfd):
    execute(ROOT / "docs" / "api.md")
    execute(ROOT / "docs" / "models.md")
    assert "Trained on simulated data" in capfd.readouterr().out


def test_the_tutorial_runs_as_it_stands(place: Path, monkeypatch, capfd):
    monkeypatch.chdir(place)
    monkeypatch.setattr(demo, "PLAN", demo.PLAN | PLAN)
    execute(ROOT / "docs" / "tutorial.md")
    said = capfd.readouterr().out
    assert "clips of 20 frames by route affine" in said
    assert (place / "tutorial" / "embeddings.png").stat().st_size > 5000
    assert (place / "tutorial" / "neurostorm" / "sub-01.html").is_file()


def test_the_how_tos_run_as_they_stand(place: Path, monkeypatch, capfd):
    if not (place / "tutorial").exists():
        pytest.skip("runs behind the tutorial")
    shutil.copytree(place / "tutorial", place / "howto")
    monkeypatch.chdir(place)
    execute(ROOT / "docs" / "howto.md")
    results = place / "howto" / "mine"
    assert list(results.glob("sub-01/**/*desc-cognitionAttribution_boldmap.nii.gz"))
    assert "mae" in capfd.readouterr().out


def execute(page: Path) -> None:
    """Run the blocks of a page that say so: our programs in this process, the rest in a shell."""
    for mark, language, text in blocks(page):
        if mark != "runs":
            continue
        if language == "python":
            exec(compile(text, page.name, "exec"), {})
            continue
        for words in commands(text):
            if words[0] in PROGRAMS:
                assert PROGRAMS[words[0]](words[1:]) == 0, shlex.join(words)
            else:
                subprocess.run(["bash", "-c", text_of(words)], check=True)


def text_of(words: list[str]) -> str:
    """Words as a shell takes them, a redirection left as one."""
    return " ".join(word if word == ">" else shlex.quote(word) for word in words)


# --- what is compared ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_every_command_line_that_is_shown_is_understood(page: Path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for _, language, text in blocks(page):
        if language not in ("", "bash"):
            continue
        for line in text.replace("\\\n", " ").splitlines():
            line = re.sub(r"\$\{?\w+\}?", "1", line.strip())  # a variable of the shell
            line = re.sub(r"(?<=\S)  +[a-z].*$", "", line)  # words beside a command, behind two spaces
            program, _, rest = line.partition(" ")
            if program not in ("neurostorm", "neurostorm-models") or "..." in line or "[" in line:
                continue
            parser = cli.build_parser() if program == "neurostorm" else models_cli.build_parser()
            try:
                parser.parse_args(shlex.split(rest, comments=True))
            except SystemExit as end:
                assert end.code == 0 or "--version" in rest, f"{page.name}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name}: {target}"
        if anchor and found.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{page.name}: {target}, of {sorted(slugs)}"


def test_every_page_is_in_the_navigation_and_on_the_first_page():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in PAGES:
        assert page.name in text, f"mkdocs.yml lacks {page.name}"
        assert page.name == "index.md" or f"({page.name})" in index, f"index.md lacks {page.name}"


def reference():
    spec = importlib.util.spec_from_file_location("build_reference", ROOT / "scripts" / "build_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_that_of_the_parsers():
    written = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert written == reference().page(), "run: python scripts/build_reference.py"


def test_every_option_says_what_it_does_and_every_exit_code_means_something():
    module = reference()
    options = cli.build_parser()._actions + [
        a for _, c in module._commands(models_cli.build_parser()) for a in c._actions
    ]
    assert [action.dest for action in options if not action.help] == []
    codes = {kind.exit_code for kind in vars(module.errors).values() if hasattr(kind, "exit_code")}
    assert codes <= set(module.CODES)


def test_every_file_and_column_of_a_run_is_described(place: Path):
    results = place / "howto"
    if not results.exists():
        pytest.skip("looks at what the how-tos wrote")
    text = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("outputs.md", "attribution.md"))
    tables = [
        path for name in ("sub-*/**", "phenotype", "evaluation/*") for path in results.glob(f"[mn]*/{name}/*.tsv")
    ]
    for table in tables:
        assert table.stem.split("_")[-1] in text, table.name
        for column in table.read_text(encoding="utf-8").splitlines()[0].split("\t"):
            general = re.sub(r"^demo(?=_)", "<model>", re.sub(r"d\d{3}$", "d000", column))
            assert f"`{general}`" in text or re.match(r"p_|probability_|demo_(age|sex|diagnosis)", column), (
                f"{table.name}: {column}"
            )


def test_the_citation_names_title_authors_licence_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "license", "version", "date-released"} <= set(citation)
    assert citation["license"] == "Apache-2.0" and "Apache License" in (ROOT / "LICENSE").read_text()
    assert any("2506.11167" in str(reference) for reference in citation["references"])
