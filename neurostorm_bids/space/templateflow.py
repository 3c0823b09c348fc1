"""Transforms between templates, from TemplateFlow's cache or its archive."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterable
from pathlib import Path

from neurostorm_bids.errors import TransformUnavailable

LOG = logging.getLogger("neurostorm")
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10, 60


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
    """Fetch the file beside its place and move it there when it is whole.

    TemplateFlow's own client writes in place, so that a second process, or the next call after a break, would take
    half a file for the transform; and it knows no file of a cache that it has not laid out itself.
    """
    import requests

    try:
        with requests.get(_url(cached), stream=True, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S)) as answer:
            answer.raise_for_status()
            n_bytes = int(answer.headers.get("content-length", 0))
            LOG.warning("Fetching %s (%.0f MB) from TemplateFlow", cached.name, n_bytes / 1e6)
            _store(answer.iter_content(1 << 20), n_bytes, cached)
    except (requests.exceptions.RequestException, OSError) as error:
        raise _unavailable(cached, f"could not be fetched ({type(error).__name__})") from None
    return cached


def _store(chunks: Iterable[bytes], n_bytes: int, cached: Path) -> None:
    cached.parent.mkdir(parents=True, exist_ok=True)
    partial = cached.with_name(f"{cached.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("xb") as stream:  # readable as other files here are: a cache may be shared
            written = sum(stream.write(chunk) for chunk in chunks)
        if not written or n_bytes not in (0, written):
            raise OSError(f"{written} of {n_bytes} bytes came")
        partial.replace(cached)
    finally:
        partial.unlink(missing_ok=True)


def archive() -> str:
    """Address of the archive: a copy that ``NEUROSTORM_TEMPLATEFLOW_ARCHIVE`` names, else TemplateFlow's own.

    The latter as its package states it, which lays out its cache on import.
    """
    if stated := os.environ.get("NEUROSTORM_TEMPLATEFLOW_ARCHIVE"):
        return stated.rstrip("/")
    from templateflow.conf import TF_S3_ROOT

    return TF_S3_ROOT


def _url(cached: Path) -> str:
    return f"{archive()}/{cached.parent.name}/{cached.name}"


def _unavailable(cached: Path, fault: str) -> TransformUnavailable:
    target, source = cached.name.removeprefix("tpl-").removesuffix("_mode-image_xfm.h5").split("_from-")
    return TransformUnavailable(
        f"the template transform {cached.name} {fault}",
        expected=f"it at {cached}",
        remedy="Put it there, or set TEMPLATEFLOW_HOME to a cache that has it; on a machine with a network, "
        f"templateflow.api.get({target!r}, mode='image', suffix='xfm', extension='.h5', **{{'from': {source!r}}}) "
        "fetches it",
    )
