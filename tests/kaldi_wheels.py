"""What tests need that run Kaldi's C++: whether its wheels are there, and words that ask much of graphs."""

import importlib
from collections.abc import Callable
from types import ModuleType

import pytest

from asr_kd.corpus.lexicon import Lexicon
from asr_kd.errors import AsrKdError
from asr_kd.hmm import wheels

REASON = "the Kaldi wheels (asr_kd[hmm]) are not installed"
# two and too are homophones, and T UW is a prefix of T UW L: graphs need disambiguation symbols.
LEXICON = Lexicon(
    {"two": [("T", "UW")], "too": [("T", "UW")], "tool": [("T", "UW", "L")], "eel": [("IY", "L"), ("IY", "AH", "L")]}
)


def wheels_present() -> bool:
    """Whether both import, in the versions that are pinned."""
    try:
        return bool(wheels.kaldi())
    except AsrKdError:
        return False


needs_kaldi = pytest.mark.skipif(not wheels_present(), reason=REASON)


def kaldis_decoder() -> tuple[ModuleType, Callable[[object, int], list]]:
    """Kaldi's searches, in a wheel that is an oracle only, and what gives the arcs of a state of their lattices."""
    wheels.kaldi()  # registers the types of FSTs
    decoder = pytest.importorskip("kaldi_decoder", reason="Kaldi's own search: pip install '.[test]'")

    def arcs_of(lattice: object, state: int) -> list:
        # kaldifst.ArcIterator of this version knows no lattices.
        iterator, found = importlib.import_module("_kaldifst")._ArcIteratorLattice(lattice, state), []
        while not iterator.done:
            found.append(iterator.value)
            iterator.next()
        return found

    return decoder, arcs_of
