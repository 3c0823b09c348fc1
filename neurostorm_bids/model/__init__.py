"""The NeuroSTORM model: a shifted-window Mamba encoder of 4D fMRI clips, its heads and its pretraining.

Shape glossary (letters at the end of tensor lines)::

    n               clips of a batch
    ch              input channels (1)
    X, Y, Z, T      voxels and frames of a clip (96, 96, 96, 20)
    x, y, z, t      tokens along each axis, the grid of a stage (16, 16, 16, 20 in the first)
    c               channels of a stage (36, 72, 144, 288)
    w               windows of all clips together
    l               tokens of a window, in raster order, t fastest (256; prompts come first and add to it)
    d               inner channels of a Mamba layer, expand * c
    s               states of a channel (16)
    r               rank of the step size, ceil(c / 16)
    k               prompt tokens

Names are imported on first use, so that reading a model's configuration costs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neurostorm_bids.model.config import EncoderConfig, InputSpec, Target
    from neurostorm_bids.model.encoder import Encoder
    from neurostorm_bids.model.mae import MaskedAutoencoder
    from neurostorm_bids.model.predict import Prediction
    from neurostorm_bids.model.weights import Model, load_model

__all__ = [
    "Encoder",
    "EncoderConfig",
    "InputSpec",
    "MaskedAutoencoder",
    "Model",
    "Prediction",
    "Target",
    "load_model",
]

_HOME = {
    "Encoder": "encoder",
    "EncoderConfig": "config",
    "InputSpec": "config",
    "MaskedAutoencoder": "mae",
    "Model": "weights",
    "Prediction": "predict",
    "Target": "config",
    "load_model": "weights",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
