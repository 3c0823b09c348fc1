"""Write the untrained start of the demo model: the same seed gives the same bytes on one machine.

    python scripts/build_demo_model.py FOLDER

The model is small: 4 mm voxels over the box of the 2 mm grid. `train_demo_model.py` trains it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from neurostorm_bids.model import Encoder, EncoderConfig, InputSpec
from neurostorm_bids.model.description import ModelDescription
from neurostorm_bids.model.folder import write_model_folder
from neurostorm_bids.model.inference import self_test_of
from neurostorm_bids.space.grid import Grid

SEED = 20250616

# Each 4 mm voxel covers two voxels of NEUROSTORM_2MM along each axis, so both grids span the same box:
# x 97 to -95, y -115 to 77, z -79 to 113 mm; the first centre lies half a 2 mm voxel inside.
DEMO_GRID = Grid.of((48, 48, 48), [[-4, 0, 0, 95], [0, 4, 0, -113], [0, 0, 4, -77], [0, 0, 0, 1]], "MNI152NLin6Asym")
DEMO_CONFIG = EncoderConfig(img_size=(48, 48, 48, 20), embed_dim=24, patch_size=(6, 6, 6, 1), depths=(2, 2, 1))
DEMO_INPUT = InputSpec(
    grid=DEMO_GRID,
    t_r_s=0.8,
    clip_frames=20,
    provenance=dict.fromkeys(("grid", "t_r_s", "clip_frames", "normalisation", "background"), "stated"),
)
DEMO = ModelDescription(
    name="demo",
    config=DEMO_CONFIG,
    input=DEMO_INPUT,
    trained=False,
    summary="The untrained start of the demo model. Its embeddings mean nothing.",
    source="scripts/build_demo_model.py",
    licence="Apache-2.0",
)


def build(folder: Path) -> str:
    """Write the model folder and return the model's hash."""
    encoder = Encoder(DEMO_CONFIG, generator=torch.Generator().manual_seed(SEED)).eval()
    weights = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    training = {"trained": False, "seed": SEED}
    return write_model_folder(folder, DEMO, weights, self_test=self_test_of(encoder), training=training)


if __name__ == "__main__":
    print(f"{sys.argv[1]}: {build(Path(sys.argv[1]))}")
