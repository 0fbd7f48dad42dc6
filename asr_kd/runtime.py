"""What `asr-kd` asks of OpenMP and of the C library."""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's <malloc.h>
OBEYED = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"}


def prepare_runtime() -> None:
    """To be called before torch is imported. What the environment says already (GOMP_SPINCOUNT, OBEYED) stays."""
    # Threads that spin as long as they wait (the default) slow training to a fiftieth as soon as another process wants
    # a core; threads that sleep at once halve it on an idle machine. A short spin is right for both.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    # The matrices of a block are megabytes each. glibc hands such memory back to the system whenever it is freed, and
    # the next block pays for it anew with a page fault every 4 kB, a seventh of the time of soft targets.
    if sys.platform == "linux" and not OBEYED & set(os.environ):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        # Older versions refuse more than 32 MB. Where neither is taken nothing else may be set: that would end glibc's
        # own adaptation, at 128 kB.
        if mallopt and any(mallopt(M_MMAP_THRESHOLD, megabytes << 20) for megabytes in (256, 32)):
            mallopt(M_TRIM_THRESHOLD, 1 << 30)
