"""Clips: a run on the model's grid -> temporal resampling, one mean and SD, windows of the model's length.

Two passes over the volumes, neither of which holds more than one clip's worth of them::

    timing = Timing.of(series.n_volumes, series.t_r_s, target_t_r_s=0.8, n_dummies=2)
    windows = plan_windows(timing, clip_frames=20, stride=20)
    statistics = run_statistics(series, timing)
    for clip in clips_of(series, statistics, windows):
        ...

``reference.py`` is the other way in (``--preprocessing reference``): array space, int8, equal to the published code.
"""

from neurostorm_bids.clips.denoise import confound_regressors, denoised
from neurostorm_bids.clips.normalisation import Clip, clips_of, frames_of, normalise
from neurostorm_bids.clips.series import VolumeSeries
from neurostorm_bids.clips.statistics import RunStatistics, run_statistics
from neurostorm_bids.clips.timing import Timing
from neurostorm_bids.clips.windows import Window, Windows, plan_windows

__all__ = [
    "Clip",
    "RunStatistics",
    "Timing",
    "VolumeSeries",
    "Window",
    "Windows",
    "clips_of",
    "confound_regressors",
    "denoised",
    "frames_of",
    "normalise",
    "plan_windows",
    "run_statistics",
]
