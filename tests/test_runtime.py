"""What asr-kd asks of the C library: memory that a block frees is there for the next, without page faults."""

import os
import platform
import subprocess
import sys

import pytest

# Page faults of the third of three blocks of 24 MB, each freed before the next: the first two make room.
FAULTS = """
import resource
import asr_kd.cli
import numpy as np
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(3_000_000)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(after - before)
"""


def faults(**environment: str) -> int:
    ours = ("MALLOC_", "GLIBC_", "LD_PRELOAD")
    told = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env={**told, **environment}, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_freed_memory_is_kept_unless_the_environment_says_otherwise():
    assert faults() < faults(MALLOC_MMAP_THRESHOLD_="131072") / 2
    assert faults() < faults(GLIBC_TUNABLES="glibc.malloc.mmap_threshold=131072") / 2
