"""NeuroSTORM as a BIDS App: fMRIPrep derivatives in, embeddings and predictions out."""

from __future__ import annotations

__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    # looked up late: importlib.metadata costs a tenth of the time that --help may take
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("neurostorm-bids")
    except PackageNotFoundError:  # a checkout that was never installed
        return "0+unknown"
