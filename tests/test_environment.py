"""The process environment: what is set for libraries and for the C library's heap."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys

import pytest

from neurostorm_bids.environment import import_for_good

FROZEN = """
import gc, sys
from neurostorm_bids.environment import import_for_good
first = import_for_good("pandas"), gc.get_freeze_count()
again = import_for_good("pandas"), gc.get_freeze_count()
assert first == again and first[0] is sys.modules["pandas"], (first, again)
print(first[1], gc.isenabled())
"""
HEAPS_OF_FOUR_THREADS = """
import ctypes, sys, threading
from neurostorm_bids.environment import share_one_heap
share_one_heap()
threads = [threading.Thread(target=lambda: [bytearray(100_000) for _ in range(50)]) for _ in range(4)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
stream = ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w"))
libc.malloc_info(0, stream)
libc.fclose(stream)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
@pytest.mark.parametrize(("stated", "one"), [({}, True), ({"MALLOC_ARENA_MAX": "8"}, False)])
def test_threads_share_one_heap_unless_the_user_says_otherwise(stated: dict[str, str], one: bool):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    found = subprocess.run(
        [sys.executable, "-c", HEAPS_OF_FOUR_THREADS],
        env=environment | stated,
        capture_output=True,
        text=True,
        check=True,
    )

    assert (found.stdout.count("<heap nr") == 1) == one


def test_freed_memory_is_kept_for_what_comes_next_unless_the_user_says_otherwise():
    code = (
        "import resource, numpy as np; from neurostorm_bids.environment import share_one_heap; share_one_heap()\n"
        "np.ones(4_000_000, np.float32); before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(20): np.ones(4_000_000, np.float32)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("the C library is not glibc")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    stated = clean | {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "4096"}
    faults = [
        int(subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout)
        for env in (clean, stated)
    ]
    assert faults[0] < 200 < faults[1]


def test_the_collector_is_spared_what_libraries_bring_and_goes_on_with_the_rest():
    found = subprocess.run([sys.executable, "-c", FROZEN], capture_output=True, text=True, check=True).stdout.split()
    assert int(found[0]) > 10_000
    assert found[1] == "True"


def test_a_module_that_cannot_be_imported_leaves_the_collector_on():
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        import_for_good("no_such_module")
    assert gc.isenabled()
    gc.unfreeze()
