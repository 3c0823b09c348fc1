"""NeuroSTORM as a BIDS App: fMRIPrep derivatives in, embeddings and predictions out."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("neurostorm-bids")
except PackageNotFoundError:  # running from a checkout that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
