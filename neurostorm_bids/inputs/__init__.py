"""Which runs there are: BIDS names end here, and everything beyond sees ``BoldRun``."""

from neurostorm_bids.inputs.find import Selection, find_runs
from neurostorm_bids.inputs.runs import BoldImage, BoldRun, MotionFile, Source, TransformFile

__all__ = ["BoldImage", "BoldRun", "MotionFile", "Selection", "Source", "TransformFile", "find_runs"]
