"""What `asr-kd` asks of OpenMP and of the C library; programs that import asr_kd as a library are left as they are."""

import ctypes
import os
import sys

# Their numbers in glibc's <malloc.h>, and what is asked of each, in bytes.
MALLOC_OPTIONS = {
    "MALLOC_MMAP_THRESHOLD_": (-3, 256 << 20),
    "MALLOC_TRIM_THRESHOLD_": (-1, 1 << 30),
}


def prepare_runtime() -> None:
    """To be called before torch is imported. What the environment says already (GOMP_SPINCOUNT, MALLOC_…) stays."""
    # Threads that spin as long as they wait (the default) slow training to a fiftieth as soon as another process wants
    # a core; threads that sleep at once halve it on an idle machine. A short spin is right for both.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    # The matrices of a block are megabytes each. glibc hands such memory back to the system whenever it is freed, and
    # the next block pays for it anew with a page fault every 4 kB, a seventh of the time of soft targets.
    if sys.platform == "linux" and not {*MALLOC_OPTIONS, "GLIBC_TUNABLES"} & set(os.environ):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        for option, value in MALLOC_OPTIONS.values() if mallopt else ():
            mallopt(option, value)
