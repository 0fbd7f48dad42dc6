"""What tests need that run Kaldi's C++: whether its wheels are there, and words that ask much of graphs."""

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
    """Whether all three import, in the versions that are pinned."""
    try:
        return bool(wheels.kaldi())
    except AsrKdError:
        return False


needs_kaldi = pytest.mark.skipif(not wheels_present(), reason=REASON)
