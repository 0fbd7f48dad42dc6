"""Functions compiled by numba."""

import functools
from collections.abc import Callable

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


# A sum of numba is in the order that is written, one element at a time, unless it may be taken apart.
compiled_sum = functools.partial(compiled, fastmath={"reassoc", "contract", "nsz"})
