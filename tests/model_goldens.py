"""Reading golden tensors of the reference, and what of ours stands for each of their arrays."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from neurostorm_bids.model import Encoder, EncoderConfig

SHIPPED = Path(__file__).parent / "data" / "golden"
TOLERANCE = 1e-5  # absolute; float32 of the reference differs from its own float64 by up to 2.4e-6
BACKENDS = ("torch-reference", "torch")


def read_golden(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Tensor]]:
    """Description, arrays and weights of a case."""
    with np.load(folder / f"{name}.npz") as arrays:
        values = dict(arrays)
    weights = folder / f"{name}.safetensors"
    return (
        json.loads((folder / f"{name}.json").read_text()),
        values,
        load_file(weights) if weights.exists() else {},
    )


def config_of(values: dict[str, Any]) -> EncoderConfig:
    known = {field.name for field in fields(EncoderConfig)}
    return EncoderConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known})


class Recorder:
    """Keeps what modules see and say, under the names of the golden arrays."""

    def __init__(self, encoder: Encoder) -> None:
        self.seen: dict[str, Tensor] = {}
        self._keep(encoder.patch_embed, "patch_embed", channels_first=True)
        for i, (embed, stage) in enumerate(zip(encoder.pos_embeds, encoder.layers, strict=True)):
            self._keep(embed, f"pos_embed{i}", channels_first=True)
            self._keep(stage, f"stage{i}", channels_first=True)
            for j, block in enumerate(stage.blocks):
                self._record_block(block, f"L{i}B{j}_")

    def _record_block(self, block: torch.nn.Module, name: str) -> None:
        self._keep(block, f"{name}in", of_input=True)
        self._keep(block.norm1, f"{name}norm1")
        self._keep(block.mamba, f"{name}windows_in", of_input=True)
        self._keep(block.mamba, f"{name}mamba_out")
        self._keep(block.norm2, f"{name}after_residual1", of_input=True)
        self._keep(block.norm2, f"{name}norm2")
        self._keep(block.mlp, f"{name}mlp_out")
        self._keep(block, f"{name}out")

    def _keep(self, module, name: str, *, of_input: bool = False, channels_first: bool = False) -> None:
        def hook(_module, inputs, output):
            value = inputs[0] if of_input else output
            self.seen[name] = value.movedim(-1, 1) if channels_first else value

        module.register_forward_hook(hook)


def differences(seen: dict[str, Tensor], golden: dict[str, np.ndarray]) -> dict[str, float]:
    """Largest absolute difference of every golden array that was seen; NaN and other shapes count as infinite."""
    found = {}
    for name in sorted(set(seen) & set(golden)):
        ours, theirs = seen[name].double().numpy(), golden[name].astype(np.float64)
        same = ours.shape == theirs.shape
        found[name] = float(np.nan_to_num(np.abs(ours - theirs).max(), nan=np.inf)) if same else np.inf
    return found
