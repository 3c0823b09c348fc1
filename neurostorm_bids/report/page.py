"""Templates become pages: everything is escaped, nothing outside the page is asked for, nothing but our script runs."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from functools import lru_cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

MISSING = "n/a"


def data_uri(picture: bytes) -> str:
    """A WebP picture as a part of the page."""
    return "data:image/webp;base64," + base64.b64encode(picture).decode("ascii")


def number(value: Any, digits: int = 3) -> str:
    """A figure for reading: a few significant digits, ``n/a`` for what is missing."""
    if value is None or value == "":
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    try:
        x = float(value)
    except (TypeError, ValueError):
        return {"true": "yes", "false": "no"}.get(str(value), str(value))
    if not math.isfinite(x):
        return MISSING
    return f"{x:.0f}" if x.is_integer() and abs(x) < 1e7 else f"{x:.{digits}g}"


TITLES = {
    "auprc": "AUPRC",
    "auroc": "AUROC",
    "brier": "Brier score",
    "ece": "expected calibration error",
    "mae": "MAE",
    "map": "mean average precision",
    "r2": "R2",
    "rank1": "rank-1",
    "rank5": "rank-5",
    "dice": "Dice",
    "mean_fd": "mean FD",
    "n_clips": "clips used",
    "n_clips_motion": "clips left out for motion",
    "outside_fov": "outside the field of view",
    "t_r_in_range": "TR in range",
    "lr_asymmetry": "left-right asymmetry",
    "tsnr": "tSNR",
}


def title(name: Any) -> str:
    """A column's name as words."""
    return TITLES.get(str(name), str(name).replace("_", " "))


def asset(name: str) -> str:
    """A style sheet or script of this package."""
    return files("neurostorm_bids").joinpath("data", "report", name).read_text(encoding="utf-8")


def asset_of_outputs(name: str) -> str:
    """A text that the outputs stage writes into every dataset."""
    return files("neurostorm_bids").joinpath("data", "outputs", name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(asset), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = number
    environment.filters["words"] = title
    environment.filters["data_uri"] = data_uri
    return environment


def render(template: str, *, script: str | None = None, **values: Any) -> str:
    """A page from a template of ``data/report``.

    Parameters
    ----------
    template : str
        Its name.
    script : str, optional
        Name of the one script that the page may run. The page's policy allows it by its hash, and neither other scripts
        nor any connection, so that a string that escaped from escaping would still do nothing.
    values
        What the template reads.
    """
    code = "" if script is None else asset(script)
    allowed = f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'" if code else "'none'"
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    return _environment().get_template(template).render(policy=policy, style=asset("style.css"), script=code, **values)


# --- methods and references -------------------------------------------------------------------------------------


def methods(text: str, bibliography: str) -> dict[str, Any]:
    """Methods text and references for a page.

    Parameters
    ----------
    text : str
        Paragraphs with citations as ``[@key; @key]``.
    bibliography : str
        BibTeX.

    Returns
    -------
    dict
        ``paragraphs``: lists of (text, numbers of the references that follow it); ``references``: in order of citation.
    """
    known = _references(bibliography)
    cited: list[str] = []
    paragraphs = []
    for block in text.strip().split("\n\n"):
        if block.startswith("#"):
            continue
        pieces = re.split(r"\s*\[(@[^\]]+)\]", " ".join(block.split()))
        parts = []
        for sentence, keys in zip(pieces[::2], [*pieces[1::2], ""], strict=True):
            names = [key.strip().lstrip("@") for key in keys.split(";") if key.strip()]
            cited += [name for name in names if name not in cited]
            parts.append((sentence.replace("`", ""), [cited.index(name) + 1 for name in names]))
        paragraphs.append(parts)
    return {"paragraphs": paragraphs, "references": [known.get(name, name) for name in cited]}


def _references(bibliography: str) -> dict[str, str]:
    entries = re.findall(r"@\w+\{([^,\s]+),(.*?)\n\}", bibliography, flags=re.DOTALL)
    return {key: _reference(dict(re.findall(r"(\w+) = \{(.*)\}", body))) for key, body in entries}


def _reference(entry: dict[str, str]) -> str:
    authors = entry.get("author", "").split(" and ")
    names = [name.split(",")[0] for name in authors]
    who = f"{names[0]} et al." if len(names) > 2 or "others" in names else " and ".join(names)
    place = entry.get("journal") or entry.get("booktitle") or entry.get("howpublished") or ""
    preprint = f"arXiv:{entry['eprint']}" if "eprint" in entry else ""
    doi = f"doi:{entry['doi']}" if "doi" in entry else ""
    parts = [who.rstrip("."), entry.get("title"), " ".join(filter(None, [place, preprint, entry.get("year")])), doi]
    return ". ".join(part for part in parts if part).replace("{", "").replace("}", "") + "."
