"""References and hypotheses of whatever format, brought together: one name per utterance, words on both sides.

What an utterance is, the references say: a line of Kaldi's text or of a trn, a segment of an STM, a channel of a CTM.
A hypothesis CTM is cut at an STM's segments, and otherwise its recordings are utterances.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from asr_kd.errors import AsrKdError
from asr_kd.scoring.alignment import Alternatives, map_words
from asr_kd.scoring.transcripts import (
    CtmWord,
    StmSegment,
    Transcripts,
    read_ctm,
    read_stm,
    read_transcripts,
    read_trn,
    segment_words,
)

FORMATS = ("text", "trn", "ctm", "stm")


@dataclass
class References:
    """What was said: `texts` maps utt_id to its reference, `spk_of` to its speaker (None where that is not known).

    `segments` holds an STM's by (recording, channel), those included that are not scored, and `labels` the labels of
    those that are, where it has any (`<o,f0>`). `times` holds (start,
    duration) of the words of a reference CTM, whose utterances are channels of recordings.
    """

    texts: Transcripts
    spk_of: dict[str, str] | None
    segments: dict[tuple[str, str], list[StmSegment]] | None = None
    times: dict[str, list[tuple[float, float]]] | None = None
    labels: dict[str, tuple[str, ...]] | None = None

    @property
    def has_alternatives(self) -> bool:
        return any(isinstance(token, Alternatives) for ref in self.texts.values() for token in ref)


@dataclass
class Hypotheses:
    """What was recognised: `texts` maps utt_id to words, and where a CTM gave times, `times` to (start, duration)."""

    texts: Transcripts
    times: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


def file_format(path: Path, given: str | None = None) -> str:
    """`given`, or what the name ends in: .trn, .ctm or .stm, and Kaldi's text for every other name."""
    suffix = path.suffix.lstrip(".").lower()
    return given or (suffix if suffix in FORMATS else "text")


def read_references(path: str | Path, form: str | None = None, utt2spk: str | Path | None = None) -> References:
    """Read references in any of FORMATS; the speakers are those of `utt2spk` if given.

    Otherwise an STM names them itself, a trn's are its ids up to the first `-` or `_` (sclite's spu_id), a CTM's are
    its channels, and Kaldi's text has none. Raises AsrKdError, naming file and line, for a file that breaks the rules
    of its format, and for an utterance that utt2spk lacks.
    """
    path = Path(path)
    form = file_format(path, form)
    if form == "stm":
        references = _from_stm(path)
    elif form == "ctm":
        spoken = _by_utterance(path, read_ctm(path), lambda word: f"{word.rec_id}_{word.channel}")
        references = References(spoken.texts, {utt_id: utt_id for utt_id in spoken.texts}, times=spoken.times)
    elif form == "trn":
        texts = read_trn(path)
        references = References(texts, {utt_id: _spu_id(utt_id) for utt_id in texts})
    else:
        references = References(read_transcripts(path), None)
    if utt2spk is not None:
        references.spk_of = _speakers(Path(utt2spk), references.texts)
    return references


def read_hypotheses(path: str | Path, references: References, form: str | None = None) -> Hypotheses:
    """Read hypotheses in any of FORMATS but STM, as utterances of `references`.

    Raises AsrKdError, naming file and line, for a file that breaks the rules of its format, words of a recording or
    channel that the references lack, and formats that cannot be brought together.
    """
    path = Path(path)
    form = file_format(path, form)
    if form == "stm":
        raise AsrKdError(f"{path}: an STM holds references; hypotheses come as text, trn or CTM")
    if form == "ctm":
        words = read_ctm(path)
        if references.segments is not None:
            return _cut_at_segments(path, words, references)
        if references.times is not None:
            return _by_utterance(path, words, lambda word: f"{word.rec_id}_{word.channel}")
        _require_one_channel(path, words)
        return _by_utterance(path, words, lambda word: word.rec_id)
    if references.segments is not None:
        raise AsrKdError(f"{path}: a reference STM has segments of recordings, so the hypotheses must be a CTM")
    return Hypotheses(read_transcripts(path) if form == "text" else read_trn(path, reference=False))


def convert(texts: Transcripts, split: Callable[[str], Sequence[str]] | None) -> Transcripts:
    """`texts` with each word replaced by those that `split` makes of it; as they are if it is None.

    What `split` raises as AsrKdError is raised with file and line.
    """
    if split is None:
        return texts
    converted = Transcripts(texts.path)
    for utt_id, words in texts.items():
        line = texts.line_of[utt_id]
        try:
            converted.add(line, utt_id, map_words(words, split))
        except AsrKdError as error:
            raise AsrKdError(f"{texts.path}:{line}: {error}") from error
    return converted


def _from_stm(path: Path) -> References:
    texts, spk_of, labels = Transcripts(path), {}, {}
    segments: dict[tuple[str, str], list[StmSegment]] = {}
    for segment in read_stm(path):
        segments.setdefault((segment.rec_id, segment.channel), []).append(segment)
        if segment.words is not None:
            texts.add(segment.line, segment.utt_id, segment.words)
            spk_of[segment.utt_id] = segment.spk_id
            labels[segment.utt_id] = segment.labels
    return References(texts, spk_of, segments, labels=labels if any(labels.values()) else None)


def _by_utterance(path: Path, words: Sequence[CtmWord], utt_of: Callable[[CtmWord], str]) -> Hypotheses:
    hyps = Hypotheses(Transcripts(path))
    for word in words:
        utt_id = utt_of(word)
        if utt_id not in hyps.texts:
            hyps.texts.add(word.line, utt_id, [])
        hyps.texts[utt_id].append(word.word)
        hyps.times.setdefault(utt_id, []).append((word.start_s, word.duration_s))
    return hyps


def _require_one_channel(path: Path, words: Sequence[CtmWord]) -> None:
    channel_of: dict[str, str] = {}
    for word in words:
        if channel_of.setdefault(word.rec_id, word.channel) != word.channel:
            raise AsrKdError(
                f"{path}:{word.line}: {word.rec_id} has words on the channels {channel_of[word.rec_id]} and "
                f"{word.channel}, but the references know no channels; give them as an STM or CTM"
            )


def _cut_at_segments(path: Path, words: Sequence[CtmWord], references: References) -> Hypotheses:
    by_channel: dict[tuple[str, str], list[CtmWord]] = {}
    for word in words:
        by_channel.setdefault((word.rec_id, word.channel), []).append(word)
    hyps = Hypotheses(Transcripts(path))
    for (rec_id, channel), spoken in by_channel.items():
        segments = references.segments.get((rec_id, channel))
        if segments is None:
            where = f"{path}:{spoken[0].line}"
            raise AsrKdError(f"{where}: {references.texts.path} has no segment of {rec_id}, channel {channel}")
        for segment, inside in zip(segments, segment_words(spoken, segments), strict=True):
            if segment.words is not None:
                hyps.texts.add(inside[0].line if inside else 0, segment.utt_id, [word.word for word in inside])
                hyps.times[segment.utt_id] = [(word.start_s, word.duration_s) for word in inside]
    return hyps


def _spu_id(utt_id: str) -> str:
    for mark in "-_":
        if mark in utt_id:
            return utt_id.split(mark, 1)[0]
    return utt_id


def _speakers(path: Path, texts: Transcripts) -> dict[str, str]:
    spk_of = {}
    table = read_transcripts(path)
    for utt_id, line in texts.line_of.items():
        if utt_id not in table:
            raise AsrKdError(f"{path}: no speaker of {utt_id}, line {line} of {texts.path}")
        if len(table[utt_id]) != 1:
            raise AsrKdError(f"{path}:{table.line_of[utt_id]}: `utterance speaker` was expected")
        spk_of[utt_id] = table[utt_id][0]
    return spk_of
