"""What a model is: its architecture, the input it was trained on, and what it predicts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from neurostorm_bids.space.grid import NEUROSTORM_2MM, Grid

Provenance = Literal["stated", "assumed"]
TargetKind = Literal["regression", "classification", "retrieval"]
Background = Literal["minimum", "zero"]
Scaling = Literal["standard", "minmax"]


@dataclass(frozen=True)
class EncoderConfig:
    """Architecture of the shifted-window Mamba encoder (NeuroSTORM, arXiv 2506.11167).

    Sizes are (x, y, z, t). Defaults are the published configuration.
    """

    img_size: tuple[int, int, int, int] = (96, 96, 96, 20)
    in_chans: int = 1
    embed_dim: int = 36
    patch_size: tuple[int, int, int, int] = (6, 6, 6, 1)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    c_multiplier: int = 2
    window_size: tuple[int, int, int, int] = (4, 4, 4, 4)
    first_window_size: tuple[int, int, int, int] = (4, 4, 4, 4)
    last_layer_full_MSA: bool = True  # the reference's spelling: last stage is one whole-grid window
    prompt_len: int = 0
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    mlp_ratio: float = 4.0
    wrap: bool = True  # False: shifted windows do not wrap around brain edges and clip ends (our own variant)


@dataclass(frozen=True)
class InputSpec:
    """The input that a model was trained on; the space and clips stages bring every run to it.

    ``provenance`` maps each field name to "stated" (by the model's authors or its training run) or "assumed".
    """

    grid: Grid = NEUROSTORM_2MM
    t_r_s: float = 0.8
    clip_frames: int = 20
    normalisation: str = "run-zscore"  # one mean and SD over the run's foreground, space and time together
    background: Background = "minimum"  # background takes the smallest foreground z, or 0
    provenance: dict[str, Provenance] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Target:
    """What one head predicts.

    ``mean`` and ``std`` (natural units) undo the scaling of a regression target, ``value = mean + std * output``;
    None means that nobody stated them, and predictions are then in standard units and say so. Of a target that was
    scaled to its range (``scaling`` "minmax"), ``mean`` is the training minimum and ``std`` the range above it.
    Calibration, on ``n_calibrated`` validation participants: ``temperature`` divides the logits of a classification;
    ``half_width`` (natural units) is half of the interval that covers a run of a new participant with 95 %, None where
    the participants were too few.
    """

    name: str
    kind: TargetKind
    head: str = "v1"  # v1 | v2 (classification), v1 (regression), emb (retrieval)
    unit: str | None = None
    classes: tuple[str, ...] = ()
    mean: float | None = None
    std: float | None = None
    scaling: Scaling = "standard"
    temperature: float = 1.0
    half_width: float | None = None
    n_calibrated: int = 0
