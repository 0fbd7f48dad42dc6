"""A corpus in LibriSpeech's layout, of tones: a chord for each phone, a little higher or lower with the speaker."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile
from made_up_speech import sound

RATE = 16000
# As the CMU dictionary has them, but for HEPZIBAH, which it lacks.
WORDS = {
    "A": ["AH"],
    "BOX": ["B", "AA", "K", "S"],
    "DON'T": ["D", "OW", "N", "T"],
    "HE": ["HH", "IY"],
    "HEPZIBAH": ["HH", "EH", "P", "S", "AH", "B", "AH"],
    "NO": ["N", "OW"],
    "SEE": ["S", "IY"],
    "TOOK": ["T", "UH", "K"],
}
SUBSETS = {"train-clean-5": ("19", "26", "198", "1034"), "dev-clean-2": ("84", "174", "251", "2035")}
CHAPTERS = ("141", "8")


def chords(pitch: float) -> dict[str, tuple[float, float]]:
    """Two frequencies for each phone, in Hz."""
    phones = sorted({phone for phones in WORDS.values() for phone in phones})
    pairs = np.random.default_rng(5).permutation(
        [(a, b) for a in range(300, 1500, 250) for b in range(1800, 6000, 500)]
    )
    return {phone: (pitch * a, pitch * b) for phone, (a, b) in zip(phones, pairs, strict=False)}


def write_corpus(root: Path, num_utts: int, subsets: Iterable[str] = SUBSETS) -> Path:
    """root/LibriSpeech with `num_utts` utterances in each of two chapters of each speaker; returns root."""
    corpus = root / "LibriSpeech"
    rows = {"SPEAKERS": [";ID  |SEX| SUBSET           |MINUTES| NAME"], "CHAPTERS": [";ID    |READER|MINUTES| SUBSET"]}
    for subset in subsets:
        for number, speaker in enumerate(SUBSETS[subset]):
            rows["SPEAKERS"].append(f"{speaker:4} | {'FM'[number % 2]} | {subset:16} | 0.50  | Someone | of {subset}")
            for chapter in CHAPTERS:
                rows["CHAPTERS"].append(f"{chapter:6} | {speaker:6} | 0.25  | {subset}")
                _write_chapter(corpus / subset / speaker / chapter, num_utts, 0.96 + 0.03 * number)
    for name, lines in rows.items():
        (corpus / f"{name}.TXT").write_text("\n".join(lines) + "\n")
    return root


def _write_chapter(folder: Path, num_utts: int, pitch: float) -> None:
    folder.mkdir(parents=True)
    prefix = f"{folder.parent.name}-{folder.name}"
    rng = np.random.default_rng([int(folder.parent.name), int(folder.name)])
    lines = []
    for number in range(num_utts):
        words = rng.choice(sorted(WORDS), size=rng.integers(3, 6)).tolist()
        samples, _ = sound([WORDS[word] for word in words], chords(pitch), RATE, int(rng.integers(2**31)))
        soundfile.write(folder / f"{prefix}-{number:04d}.flac", samples, RATE, subtype="PCM_16")
        lines.append(f"{prefix}-{number:04d} {' '.join(words)}")
    (folder / f"{prefix}.trans.txt").write_text("\n".join(lines) + "\n")
