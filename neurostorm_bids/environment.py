"""The process environment: caches under the work folder, threads as asked, and what ``--version -v`` says."""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import platform
import sys
from pathlib import Path
from types import ModuleType

from neurostorm_bids.settings import Settings

# libraries that write beside HOME unless told otherwise; HOME may be read-only in containers
CACHES = {
    "MPLCONFIGDIR": "matplotlib",
    "NIPYPE_CONFIG_DIR": "nipype",
    "NUMBA_CACHE_DIR": "numba",
    "TORCH_HOME": "torch",
    "TRITON_CACHE_DIR": "triton",
}
# glibc's parameters of allocation: name in the environment, number for mallopt, value
HEAP = (
    ("MALLOC_ARENA_MAX", -8, 1),
    ("MALLOC_MMAP_THRESHOLD_", -3, 32 * 2**20),
    ("MALLOC_TRIM_THRESHOLD_", -1, 2**30),
)
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
    share_one_heap()
    if settings.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"


def share_one_heap() -> None:
    """Let all threads of this process, and of those it starts, allocate from one heap that keeps what is freed.

    Volumes are made in one thread and freed in another. With a heap for each thread, as is glibc's default, the holes
    that this leaves are not used again, and memory grows with the length of a run (by 350 MB from 200 to 1,200
    volumes). Large tensors that come and go are by default handed back to the system each time and asked for again,
    page by page, which takes a sixth of a training step. Allocations here are few and large, so that threads do not
    wait for each other. What the environment states is left alone.
    """
    mallopt = ctypes.CDLL(None).mallopt if platform.libc_ver()[0] == "glibc" else None
    for name, parameter, value in HEAP:
        if name in os.environ:
            continue
        os.environ[name] = str(value)
        if mallopt is not None:
            mallopt(parameter, value)


def import_for_good(name: str) -> ModuleType:
    """A module with all that it imports, left alone by the garbage collector from here on.

    Libraries bring some 280,000 objects that live until the end. The collector would go through them again and again
    while they come, and once more at exit, which is a third of the time that a call takes to start and to end.
    """
    if name in sys.modules:
        return sys.modules[name]
    enabled = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.collect()  # what was only needed to import them
        gc.freeze()
        if enabled:
            gc.enable()


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
