"""Search errors: utterances whose best path at the beam in use costs more than one that a much wider beam finds."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.hmm.beam_search import NoPathError
from asr_kd.hmm.decode import Decoder

ROUNDING = 1e-3  # scores that differ by less are the same
MAX_SHARE = 0.01  # of utterances with a search error that are still well searched


@dataclass
class SearchErrors:
    """lost: score that the narrow search lost, by utterance (infinite where it found no path); words: of both searches,
    narrow first; seconds: of processor time of both; audio_s: of speech.
    """

    lost: dict[str, float] = field(default_factory=dict)
    words: dict[str, tuple[list[str], list[str]]] = field(default_factory=dict)
    seconds: tuple[float, float] = (0.0, 0.0)
    audio_s: float = 0.0

    @property
    def num_errors(self) -> int:
        return sum(lost > ROUNDING for lost in self.lost.values())

    @property
    def share(self) -> float:
        return self.num_errors / max(1, len(self.lost))

    def __str__(self) -> str:
        differ = sum(narrow != wide for narrow, wide in self.words.values())
        rtf = [seconds / max(self.audio_s, 1e-9) for seconds in self.seconds]
        return (
            f"{len(self.lost)} utterances: {self.num_errors} search errors ({100 * self.share:.2f} %), the largest of "
            f"{max(self.lost.values(), default=0.0):.2g}; other words in {differ}; "
            f"{rtf[0]:.4f} x real time per core, {rtf[1]:.4f} at the wide beam"
        )


def compare_beams(
    narrow: Decoder,
    wide: Decoder,
    logliks: Iterable[tuple[str, np.ndarray]],
    frame_shift_s: float,
    progress: Callable[[str], None] = lambda line: None,
) -> SearchErrors:
    """Decode each (utt_id, loglik (num_frames, num_pdfs)) with both.

    Raises AsrKdError where the wide search is the one that finds less: then it is not wide.
    """
    errors = SearchErrors()
    for utt_id, loglik in logliks:
        scores, words, seconds = [], [], []
        for decoder in (narrow, wide):
            begin = time.process_time()
            try:
                decoded = decoder.decode(loglik)
                # A path that does not reach the end has no final cost: it is no better than one that does.
                scores.append((decoded.complete, decoded.score))
                words.append(decoded.words)
            except NoPathError:
                scores.append((False, -np.inf))
                words.append([])
            seconds.append(time.process_time() - begin)
        if scores[0] > (scores[1][0], scores[1][1] + ROUNDING):
            raise AsrKdError(
                f"{utt_id}: the wide search finds a worse path; its --max-active is too small for its beam"
            )
        same_end = scores[0][0] == scores[1][0] and np.isfinite(scores[1][1])
        both_none = not np.isfinite(scores[1][1])
        errors.lost[utt_id] = 0.0 if both_none else scores[1][1] - scores[0][1] if same_end else np.inf
        errors.words[utt_id] = (words[0], words[1])
        errors.seconds = (errors.seconds[0] + seconds[0], errors.seconds[1] + seconds[1])
        errors.audio_s += len(loglik) * frame_shift_s
        if len(errors.lost) % 100 == 0:
            progress(str(errors))
    return errors
