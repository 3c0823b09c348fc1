"""The five benchmark tasks as presets: what is stated on the command line has precedence over them (docs/tasks.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from neurostorm_bids.training.targets import Kind

Method = Literal["prompt", "linear", "full"]
PATIENCE = 8


@dataclass(frozen=True)
class Preset:
    """Protocol of a task.

    ``target`` is None where the dataset decides its name: it must be stated.
    """

    target: str | None
    kind: Kind = "auto"
    epochs: int = 30
    batch_size: int = 8


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "age": Preset("age", "regression"),
        "sex": Preset("sex", "classification"),
        "phenotype": Preset(None, "regression"),
        "diagnosis": Preset("diagnosis", "classification"),
        "retrieval": Preset("identity", "retrieval", batch_size=16),
        "state": Preset("events:trial_type", "classification"),
    }
)
NO_PRESET = Preset(None)
LEARNING_RATES: Mapping[str, float] = MappingProxyType({"prompt": 3e-3, "full": 5e-5, "linear": 1e-3})
