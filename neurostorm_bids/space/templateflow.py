"""Transforms between templates, from TemplateFlow's cache or its archive."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from neurostorm_bids.errors import TransformUnavailable

LOG = logging.getLogger("neurostorm")


def transform_name(source: str, target: str) -> str:
    """File name of the transform that brings images in ``source`` onto ``target``."""
    return f"tpl-{target}_from-{source}_mode-image_xfm.h5"


def cache_folder() -> Path:
    """TemplateFlow's cache, as TemplateFlow itself finds it."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "templateflow"
    return Path(os.environ.get("TEMPLATEFLOW_HOME", default))


def template_transform(source: str, target: str, *, offline: bool) -> Path:
    """The transform file that brings images in ``source`` onto ``target``; fetched where it is not cached.

    Raises
    ------
    TransformUnavailable
        When it is not in the cache and may not, or cannot, be fetched.
    """
    cached = cache_folder() / f"tpl-{target}" / transform_name(source, target)
    if cached.is_file() and cached.stat().st_size:  # TemplateFlow lays out empty files for what it could fetch
        return cached
    if offline:
        raise _unavailable(cached, "is not in TemplateFlow's cache, and --offline forbids fetching it")
    return _fetched(source, target, cached)


def _fetched(source: str, target: str, cached: Path) -> Path:
    import requests

    LOG.warning("Fetching %s (about 100 MB) from TemplateFlow", cached.name)
    try:
        from templateflow import api

        found = api.get(target, mode="image", suffix="xfm", extension=".h5", **{"from": source})
    except (requests.exceptions.RequestException, OSError, RuntimeError) as error:
        raise _unavailable(cached, f"could not be fetched ({type(error).__name__})") from None
    if not isinstance(found, Path) or not found.is_file() or not found.stat().st_size:
        raise _unavailable(cached, "could not be fetched")
    return found


def _unavailable(cached: Path, fault: str) -> TransformUnavailable:
    return TransformUnavailable(
        f"the template transform {cached.name} {fault}",
        expected=f"it at {cached}",
        remedy=f"Put it there, or set TEMPLATEFLOW_HOME to the cache that has it (source: "
        f"https://templateflow.s3.amazonaws.com/{cached.parent.name}/{cached.name})",
    )
