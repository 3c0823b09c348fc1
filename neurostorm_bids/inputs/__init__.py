"""Which runs there are: BIDS names end here, and everything beyond sees ``BoldRun``."""

from neurostorm_bids.inputs.find import Selection, find_runs
from neurostorm_bids.inputs.runs import BoldImage, BoldRun, Source, TransformFile

__all__ = ["BoldImage", "BoldRun", "Selection", "Source", "TransformFile", "find_runs"]
