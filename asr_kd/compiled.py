"""Functions compiled by numba."""

import functools
from collections.abc import Callable
from types import FunctionType
from typing import NamedTuple

from asr_kd.errors import AsrKdError

try:
    from numba import njit
except ImportError as error:
    raise AsrKdError(f"numba is needed ({error}); run: pip install numba") from error


def compiled(function: Callable, **options: object) -> Callable:
    """Compiled when first called, kept on disk for later processes where there is a place for that.

    options: numba's, beside those.
    """
    try:
        return njit(cache=True, nogil=True, **options)(function)
    except RuntimeError:  # nowhere to keep it
        return njit(nogil=True, **options)(function)


# A sum of numba is in the order that is written, one element at a time, unless it may be taken apart; and no loop that
# divides is done for many elements at once where it has to look for zeros.
# What calls them has a copy of its own: of two that were compiled apart, which may differ in last bits, a process that
# compiles would take another one than those that find both on disk.
compiled_sum = functools.partial(
    compiled, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy", forceinline=True
)


class InThreads(NamedTuple):
    """One function for one thread, and for several, among which its loops over numba.prange are divided.

    No process that has called `together` may be forked: OpenMP's threads stay behind.
    """

    alone: Callable
    together: Callable


def compiled_in_threads(function: Callable) -> InThreads:
    """`function` compiled in both ways; asr_kd/nnet/cpu_kernels.py calls it."""
    alone = FunctionType(function.__code__, function.__globals__, function.__name__)
    alone.__qualname__ = f"{function.__qualname__}_alone"  # numba keeps what it compiles by this name
    return InThreads(compiled(alone), compiled(function, parallel=True))
