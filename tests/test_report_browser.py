"""Reports in a real browser: they load without a complaint or a request, fit wide and narrow windows, obey keys."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import chromium
import numpy as np
import pytest
import report_cases as cases
from PIL import Image

from neurostorm_bids.aggregate import aggregate
from neurostorm_bids.report.group import write_group_report
from neurostorm_bids.report.participant import write_participant_report

pytestmark = pytest.mark.skipif(chromium.PROGRAM is None, reason="no Chromium here (Debian package chromium)")
PAGES = ("sub-01.html", "sub-02.html", "group.html")
TAB, ENTER, SPACE, RIGHT, LEFT = ("Tab", 9), ("Enter", 13), (" ", 32), ("ArrowRight", 39), ("ArrowLeft", 37)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with chromium.browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module", params=["", cases.HOSTILE], ids=["plain", "hostile"])
def folder(tmp_path_factory, request) -> Path:
    """The pages alone, moved away from everything that they were made of."""
    root = tmp_path_factory.mktemp("reports")
    cases.write_results(root / "out", root / "fmriprep", text=request.param, n_participants=3)
    cases.write_evaluation(root / "out", text=request.param)
    aggregate(root / "out")
    columns = {"age": {"01": 50.0, "02": 60.0, "03": 55.0}, f"site{request.param}": {"01": f"a{request.param}"}}
    for label in ("01", "02", "03"):
        write_participant_report(root / "out", label)
    write_group_report(root / "out", columns)
    moved = root / "a stick" / "pages"
    moved.mkdir(parents=True)
    for made in (root / "out").glob("*.html"):
        shutil.copy(made, moved)
    return moved


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_in_silence_and_fits_the_window(page, folder, name, width):
    page.open(folder / name, width)
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith("data:")] == [(folder / name).as_uri()]
    assert page.ask("document.documentElement.scrollWidth") <= width
    assert page.ask("typeof alert") == "function" and page.ask("document.querySelectorAll('script').length") <= 2
    small = """[...document.querySelectorAll('main *')].filter(e => e.getClientRects().length && [...e.childNodes].some(
        n => n.nodeType === 3 && n.textContent.trim()) && parseFloat(getComputedStyle(e).fontSize) < 12)
        .map(e => e.outerHTML.slice(0, 80))"""
    assert page.ask(small) == []
    cut = """[...document.querySelectorAll('main p, main li, main dd, main h2, main figcaption')].filter(
        e => e.checkVisibility() && e.scrollWidth > e.clientWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
    assert page.ask(cut) == []


@pytest.mark.parametrize("name", PAGES[:2])
def test_pictures_are_there_and_not_blank(page, folder, name):
    page.open(folder / name)
    assert page.ask("[...document.images].every(i => i.complete && i.naturalWidth > 50 && i.alt.length > 20)")
    assert page.ask("document.images.length") >= 3
    drawn = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L")).astype(int)
    boxes = page.ask("""[...document.querySelectorAll('.stack, .slot, .area > svg[role=img]')].map(e => {
        const b = e.getBoundingClientRect();
        return [b.left, b.top + scrollY, b.right, b.bottom + scrollY].map(Math.round) })""")
    assert len(boxes) >= 5
    for left, top, right, bottom in boxes:
        assert right - left > 100 and np.ptp(drawn[top:bottom, left:right]) > 60


def test_template_and_mean_are_switched_by_keys_alone(page, folder):
    page.open(folder / "sub-01.html")
    seen = "getComputedStyle(document.querySelector('.stack .mean')).visibility"
    for _ in range(30):
        page.press(*TAB)
        if page.ask("document.activeElement.classList.contains('see-mean')"):
            break
    assert page.ask("document.activeElement.classList.contains('see-mean')")
    assert page.ask(seen) == "visible"
    page.press(*RIGHT)
    assert page.ask("document.querySelector('.see-template').checked") and page.ask(seen) == "hidden"
    page.press(*RIGHT)
    assert page.ask("getComputedStyle(document.querySelector('.stack .mean')).animationName") == "flicker"
    page.press(*TAB)
    page.press(*SPACE)
    assert page.ask("getComputedStyle(document.querySelector('.stack svg')).visibility") == "hidden"


@pytest.mark.parametrize("name", PAGES)
def test_everything_that_can_be_used_is_reached_by_tab(page, folder, name):
    page.open(folder / name)
    wanted = page.ask("""[...document.querySelectorAll('a, select, summary, input, [tabindex="0"]')].filter(e =>
        e.checkVisibility() && (e.type !== 'radio' || e.checked)).map((e, i) => e.dataset.place = String(i)).length""")
    reached = set()
    for _ in range(wanted + 5):
        page.press(*TAB)
        reached.add(page.ask("document.activeElement.dataset.place ?? null"))
    assert len(reached - {None}) == wanted


def test_the_map_is_coloured_by_a_column_and_read_by_keys(page, folder):
    page.open(folder / "group.html")
    fills = "[...document.querySelectorAll('#map circle')].map(c => c.getAttribute('fill'))"
    by_age = page.ask(fills)
    assert len(by_age) == 3 and len(set(by_age)) == 3
    page.ask("""(() => { const s = document.getElementById('colour'); s.value = '1';
        s.dispatchEvent(new Event('change')); })()""")
    assert page.ask(fills) != by_age
    assert "n/a" in page.ask("[...document.querySelectorAll('#map title')].map(t => t.textContent).join()")
    page.ask("document.getElementById('map').focus()")
    told = []
    for key in (RIGHT, RIGHT, LEFT):
        page.press(*key)
        told.append(page.ask("document.getElementById('told').textContent"))
    assert told[0] == told[2] != told[1] and told[0].startswith("sub-0")
    label = told[0][:6]
    page.press(*ENTER)
    page.ask("new Promise(done => setTimeout(done, 500))")
    assert page.ask("location.pathname").endswith(f"{label}.html")
    assert page.errors == []
