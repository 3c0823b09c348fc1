"""Maps of why: which voxels a prediction comes from.

score       what is explained: one output of one head, in the units of its prediction
baseline    what a clip is compared with: a flat brain, or the clip without its changes over time
maps        integrated gradients and occlusion of one clip, and their sum
parcels     parcels and networks on the model's grid
summary     a map by network and parcel
sanity      the same model with its weights permuted, whose map should differ
"""

from neurostorm_bids.attribution.maps import ClipMap, MapTotal, estimated_passes, explain
from neurostorm_bids.attribution.parcels import Parcels, read_parcels
from neurostorm_bids.attribution.sanity import permuted, similarity
from neurostorm_bids.attribution.score import Question, Score, questions_of
from neurostorm_bids.attribution.summary import Share, shares_of

__all__ = [
    "ClipMap",
    "MapTotal",
    "Parcels",
    "Question",
    "Score",
    "Share",
    "estimated_passes",
    "explain",
    "permuted",
    "questions_of",
    "read_parcels",
    "shares_of",
    "similarity",
]
