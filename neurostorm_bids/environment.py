"""The process environment: caches under the work folder, threads as asked, and what ``--version -v`` says."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from neurostorm_bids.settings import Settings

# libraries that write beside HOME unless told otherwise; HOME may be read-only in containers
CACHES = {
    "MPLCONFIGDIR": "matplotlib",
    "NIPYPE_CONFIG_DIR": "nipype",
    "NUMBA_CACHE_DIR": "numba",
    "TORCH_HOME": "torch",
    "TRITON_CACHE_DIR": "triton",
}
SILENT = {"NIPYPE_NO_ET": "1", "NO_ET": "1", "TEMPLATEFLOW_AUTOUPDATE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
LIBRARIES = ("numpy", "pandas", "nibabel", "pybids", "nipype", "templateflow", "nilearn", "torch", "mamba-ssm")


def prepare(settings: Settings) -> None:
    """Point caches at the work folder and set thread counts, before any library is imported.

    What the user's own environment states is left alone.
    """
    for name, folder in CACHES.items():
        os.environ.setdefault(name, str(settings.work_dir / "cache" / folder))
    for name, value in SILENT.items():
        os.environ.setdefault(name, value)
    if not _home_is_writable():
        os.environ.setdefault("TEMPLATEFLOW_HOME", str(settings.work_dir / "cache" / "templateflow"))
    os.environ["OMP_NUM_THREADS"] = str(threads_per_run(settings))
    if settings.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"


def _home_is_writable() -> bool:
    return os.access(Path(os.environ.get("HOME", "/nonexistent")), os.W_OK)


def cores() -> int:
    """Cores that this process may use (cgroups and affinity respected)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def threads_per_run(settings: Settings) -> int:
    """Threads of one run: ``--omp-nthreads``, else up to four of the cores that ``--nprocs`` allows."""
    total = settings.nprocs or cores()
    return min(settings.omp_nthreads or 4, total)


def runs_at_once(settings: Settings) -> int:
    """How many runs may be processed side by side."""
    if settings.low_mem:
        return 1
    return max(1, (settings.nprocs or cores()) // threads_per_run(settings))


def describe() -> list[str]:
    """Lines for ``--version -v``: interpreter, libraries, scan backends and which one ``auto`` takes."""
    from importlib.metadata import PackageNotFoundError, version

    from neurostorm_bids.model.scan import describe_backends

    lines = [f"python {platform.python_version()} on {platform.system()} {platform.machine()}"]
    for name in LIBRARIES:
        try:
            lines.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            lines.append(f"{name} not installed")
    return lines + describe_backends()
