"""Names of spaces, the same whether an image or a transform states them."""

from __future__ import annotations

import re

from neurostorm_bids.inputs.names import Entities, canonical

NATIVE = "boldref"
NATIVE_SYNONYMS = frozenset({"boldref", "scanner", "func", "bold"})
HEAD_MOTION = "orig"  # the space of each volume as it was acquired
FIELDMAP = re.compile(r"auto\d+|fmap.*|fieldmap.*")
SURFACES = frozenset({"fsnative", "fsaverage", "fsLR"})


def space_of(entities: Entities) -> str:
    """Space of an image: "boldref" without ``space-``; a cohort as ``--output-spaces`` writes it.

    >>> space_of({"space": "MNIInfant", "cohort": "1"})
    'MNIInfant:cohort-1'
    """
    space = entities.get("space", NATIVE)
    return normalised(f"{space}+{entities['cohort']}" if "cohort" in entities else space)


def normalised(name: str) -> str:
    """One name for one space.

    >>> normalised("scanner"), normalised("MNIInfant+2"), normalised("T1w")
    ('boldref', 'MNIInfant:cohort-2', 'T1w')
    """
    if name in NATIVE_SYNONYMS:
        return NATIVE
    template, plus, cohort = name.partition("+")
    return f"{template}:cohort-{canonical('cohort', cohort)}" if plus else template


def ends_of(entities: Entities) -> tuple[str, str] | None:
    """Source and target of a transform from its name, or None for one that no volume needs.

    ``from-scanner_to-T1w`` starts from the native reference; ``from-scanner_to-boldref`` (fMRIPrep 22.1 to 23.1) is
    head motion, from each volume as acquired to that reference.
    """
    source, target = entities["from"], entities["to"]
    if source == "scanner" and target == "boldref":
        return HEAD_MOTION, NATIVE
    if source == "boldref" and target == "scanner":
        return NATIVE, HEAD_MOTION
    if any(FIELDMAP.fullmatch(name) or name in SURFACES for name in (source, target)):
        return None
    return normalised(source), normalised(target)
