"""Loops over arcs and tokens, compiled by numba."""

from collections.abc import Callable

from asr_kd.errors import AsrKdError

try:
    from numba import njit
except ImportError as error:
    raise AsrKdError(f"the search needs numba ({error}); run: pip install numba") from error


def compiled(function: Callable) -> Callable:
    """Compiled when first called, kept on disk for later processes where there is a place for that."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # nowhere to keep it
        return njit(nogil=True)(function)
