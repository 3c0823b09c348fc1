"""The compiled backend with matrix products in bfloat16, sums in float32: faster; features differ in the third digit.

Training and whatever is not a whole block or encoder in inference stay in float32.
"""

from __future__ import annotations

from neurostorm_bids.model.scan import Backend
from neurostorm_bids.model.scan.cpu import COMPILED, Compiled
from neurostorm_bids.model.scan.cpu_library import BFLOAT16

_ROUNDED = Compiled(BFLOAT16)
BACKEND = Backend(
    "cpu-bfloat16",
    COMPILED.scan,
    _ROUNDED.block,
    _ROUNDED.encode,
    devices=("cpu",),
    detail="whole blocks with products of matrices in bfloat16",
)
