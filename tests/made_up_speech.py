"""A corpus of tones for whole experiments in seconds: each phone a chord of its own, each word a few of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile

from asr_kd.corpus.datadir import Recording, Utterance, write_data_dir
from asr_kd.corpus.lexicon import Lexicon

RATE = 8000
# a is a prefix of ab, and each word has phones that others have.
LEXICON = Lexicon({"a": [("AH",)], "ab": [("AH", "B")], "bod": [("B", "OW", "D")], "dib": [("D", "IY", "B")]})
CHORDS = {"AH": (700, 1200), "B": (250, 2900), "OW": (450, 800), "D": (1700, 3300), "IY": (300, 2300)}
SEGMENT_S = 0.1


def speak(words: list[str], seed: int) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Samples in [-1, 1] of words with pauses around them, and when each begins and ends, in seconds."""
    return sound([LEXICON.entries[word][0] for word in words], CHORDS, RATE, seed)


def sound(
    words: Sequence[Sequence[str]], chords: Mapping[str, Sequence[float]], rate: int, seed: int
) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """As speak does: words as their phones, each a chord of frequencies in Hz."""
    generator = np.random.default_rng(seed)
    pieces, times = [np.zeros(int(0.15 * rate))], []
    for phones in words:
        begin = sum(map(len, pieces)) / rate
        for phone in phones:
            t = np.arange(int(SEGMENT_S * generator.uniform(0.9, 1.3) * rate)) / rate
            pieces.append(sum(0.2 * np.sin(2 * np.pi * f * t + generator.uniform(0, 6)) for f in chords[phone]))
        times.append((begin, sum(map(len, pieces)) / rate))
        pieces.append(np.zeros(int(generator.uniform(0.1, 0.2) * rate)))
    samples = np.concatenate(pieces)
    return samples + generator.normal(0, 0.003, len(samples)), times


def write_set(folder: Path, name: str, num_utts: int, seed: int) -> Path:
    """A data directory of two speakers whose recordings lie in it."""
    generator = np.random.default_rng(seed)
    utterances = []
    for index in range(num_utts):
        words = generator.choice(LEXICON.words, size=generator.integers(2, 5)).tolist()
        utt_id, wav = f"s{index % 2}-{name}{index:02d}", folder / name / "wav" / f"s{index % 2}-{name}{index:02d}.wav"
        wav.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(wav, speak(words, seed * 1000 + index)[0], RATE, subtype="PCM_16")
        utterances.append(Utterance(utt_id, utt_id[:2], Recording(utt_id, str(wav)), words=tuple(words)))
    write_data_dir(folder / name, utterances)
    return folder / name
