from __future__ import annotations

from campaigns.defect import Defect

DEFECTS: tuple[Defect, ...] = ()
