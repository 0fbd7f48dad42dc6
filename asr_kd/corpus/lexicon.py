"""Pronunciation lexicons in Kaldi's lexicon.txt and lexiconp.txt form."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from asr_kd.errors import AsrKdError
from asr_kd.store.atomic import write_text

SILENCE_PHONE = "SIL"
# Utterances with a word that cannot be pronounced may be at most this share of a set.
MAX_OOV_SHARE = 0.01
# No word comes near; what compares pronunciations takes the square of their length.
MAX_PHONES = 1000
# What a transcript's word becomes that the lexicon lacks: the first of these that it has.
UNKNOWN_WORDS = ("<unk>", "<UNK>", "<SPOKEN_NOISE>", "[unk]", "[UNK]")

_RESERVED_WORD = re.compile(r"<eps>|#\d+|<s>|</s>")
# Kaldi's validate_dict_dir.pl: #1 … are disambiguation symbols, _B _E _I _S mark the position in a word.
_RESERVED_PHONE = re.compile(r"<eps>|.*#.*|.*_[BEIS]?|<s>|</s>")
_NO_SPEECH = re.compile(r"<.+>|\[.+\]|!.+")
# White space to str.split but not to Kaldi: a no-break space inside a word would split it in silence.
_OTHER_SPACE = re.compile(r"[^\S \t]")


@dataclass
class Lexicon:
    """Words and their pronunciations; silence between words is the language's affair and has no entry here.

    entries: word → its pronunciations, each a non-empty tuple of phones. probs: (word, pronunciation) → probability in
    (0, 1], of those that are not 1; as in Kaldi they need not sum to one over a word.
    """

    entries: dict[str, list[tuple[str, ...]]]
    probs: dict[tuple[str, tuple[str, ...]], float] = field(default_factory=dict)

    @cached_property
    def phones(self) -> list[str]:
        """All phones except silence, noise phones included, sorted."""
        found = {phone for pronunciations in self.entries.values() for p in pronunciations for phone in p}
        return sorted(found - {SILENCE_PHONE})

    @cached_property
    def noise_phones(self) -> list[str]:
        """Phones, sorted, that stand only in words such as `<unk>`, `[noise]`, `!BREATH`, and alone there."""
        alone, elsewhere = set(), {SILENCE_PHONE}
        for word, pronunciations in self.entries.items():
            for pronunciation in pronunciations:
                is_noise = is_no_speech(word) and len(pronunciation) == 1
                (alone if is_noise else elsewhere).update(pronunciation)
        return sorted(alone - elsewhere)

    @property
    def words(self) -> list[str]:
        """All words, sorted."""
        return sorted(self.entries)

    @property
    def unknown_word(self) -> str | None:
        """The entry that stands for words that the lexicon lacks (`<unk> SPN`), or None."""
        return next((word for word in UNKNOWN_WORDS if word in self.entries), None)


def is_no_speech(word: str) -> bool:
    """Whether a word is named as what is no speech: <noise>, [laughter], !SIL."""
    return _NO_SPEECH.fullmatch(word) is not None


def known_transcripts(
    lexicon: Lexicon,
    utterances: Iterable[tuple[str, Sequence[str]]],
    text: str | Path,
    *,
    max_oov_share: float = MAX_OOV_SHARE,
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, tuple[str, ...]]:
    """Transcripts, pairs (utt_id, words), in words that can be pronounced; `text` is the file that they are from.

    A word that the lexicon lacks becomes its unknown word. If it has none, the utterance is listed through `log` and
    left out. Raises AsrKdError, naming file, line and word, where more than max_oov_share of the utterances (or all of
    them) would be left out.
    """
    kept: dict[str, tuple[str, ...]] = {}
    missing: list[tuple[str, str]] = []
    num_unknown, unknown = 0, lexicon.unknown_word
    for utt_id, words in utterances:
        lacking = [word for word in words if word not in lexicon.entries]
        if lacking and unknown is None:
            missing.append((utt_id, lacking[0]))
            continue
        num_unknown += len(lacking)
        kept[utt_id] = tuple(word if word in lexicon.entries else unknown for word in words)
    total = len(kept) + len(missing)
    if missing:
        line_of = _line_numbers(text)
        complaints = [
            f"{text}:{line_of.get(utt_id, 0)}: utterance {utt_id!r} has the word {word!r}, which the lexicon lacks"
            for utt_id, word in missing
        ]
        if len(missing) > max_oov_share * total or not kept:
            raise AsrKdError(
                f"{complaints[0]}; {len(missing)} of {total} utterances have such words, more than the share of "
                f"{max_oov_share:g} that is left out: add their words, or an entry `{UNKNOWN_WORDS[0]} SPN` for all"
            )
        for complaint in complaints:
            log(f"left out {complaint}")
    if num_unknown:
        log(f"{text}: {num_unknown} words are not in the lexicon and are taken as {unknown}")
    return kept


def _line_numbers(text: str | Path) -> dict[str, int]:
    """utt_id → its line in a Kaldi text file."""
    try:
        lines = Path(text).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):  # the transcripts did not come from there
        return {}
    return {line.split(maxsplit=1)[0]: number for number, line in enumerate(lines, 1) if line.strip()}


def read_lexicon(path: str | Path) -> Lexicon:
    """Read lexicon.txt, `word phone phone …` a line, or, by its name, lexiconp.txt, `word probability phone phone …`.

    A word may have several lines. Raises AsrKdError, naming file and line, for an empty or repeated pronunciation, a
    reserved symbol, a word with a blank in it, a byte order mark, lines that end in CR LF, text that is not UTF-8,
    an unreadable file, or a lexicon without a word.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise AsrKdError(f"{path}: cannot be read as a lexicon ({error})") from error
    if lines == [""]:
        raise AsrKdError(f"{path}: has no word")
    return parse_lexicon(enumerate(lines, 1), path, with_probs=path.name.startswith("lexiconp"))


def parse_lexicon(lines: Iterable[tuple[int, str]], name: str | Path, *, with_probs: bool = False) -> Lexicon:
    """The lexicon of (line number, line); raises AsrKdError, naming the file `name`, as read_lexicon does."""
    lexicon = Lexicon({})
    for number, line in lines:
        try:
            word, prob, pronunciation = _read_line(line, with_probs)
            if pronunciation in lexicon.entries.setdefault(word, []):
                raise AsrKdError(f"the pronunciation of {word!r} is given twice")
        except AsrKdError as error:
            raise AsrKdError(f"{name}:{number}: {error}") from None
        lexicon.entries[word].append(pronunciation)
        if prob != 1.0:
            lexicon.probs[word, pronunciation] = prob
    return lexicon


def read_lexicon_in(folder: str | Path) -> Lexicon:
    """The lexicon of a folder: lexiconp.txt if it has one, else lexicon.txt; raises AsrKdError as read_lexicon does."""
    with_probs = Path(folder) / "lexiconp.txt"
    return read_lexicon(with_probs if with_probs.exists() else Path(folder) / "lexicon.txt")


def write_lexicon_in(folder: str | Path, lexicon: Lexicon) -> None:
    """Write lexicon.txt into a new folder, or lexiconp.txt if a pronunciation has a probability."""
    write_lexicon(Path(folder) / ("lexiconp.txt" if lexicon.probs else "lexicon.txt"), lexicon)


def _read_line(line: str, with_probs: bool) -> tuple[str, float, tuple[str, ...]]:
    """Word, probability and pronunciation of a line; raises AsrKdError that says what is wrong with it."""
    if line.startswith("\ufeff"):
        raise AsrKdError("begins with a byte order mark; save the file as UTF-8 without one")
    if line.endswith("\r"):
        raise AsrKdError("ends in CR LF; convert the file to LF line ends (dos2unix)")
    if found := _OTHER_SPACE.search(line):
        raise AsrKdError(f"holds the white space character U+{ord(found[0]):04X}; only blanks and tabs may separate")
    if "\t" in line and " " in line.split("\t", 1)[0].strip(" "):
        raise AsrKdError(f"the word {line.split(chr(9), 1)[0]!r} has a blank in it; join its parts")
    fields = line.split()
    if not fields:
        raise AsrKdError("an empty line, where `word phone phone …` was expected")
    word, prob = fields.pop(0), 1.0
    if with_probs:
        prob = _probability(word, fields)
    if not 0 < len(fields) <= MAX_PHONES:
        how = "an empty pronunciation" if not fields else f"a pronunciation of {len(fields)} phones, which is no word's"
        raise AsrKdError(f"the word {word[:80]!r} has {how}")
    if _RESERVED_WORD.fullmatch(word):
        raise AsrKdError(f"{word!r} is reserved and cannot be a word")
    for phone in fields:
        if _RESERVED_PHONE.fullmatch(phone):
            raise AsrKdError(f"{phone!r} is reserved and cannot be a phone")
    if SILENCE_PHONE in fields and not (is_no_speech(word) and len(fields) == 1):
        raise AsrKdError(f"the silence phone {SILENCE_PHONE} may not occur in a word ({word!r})")
    return word, prob, tuple(fields)


def _probability(word: str, fields: list[str]) -> float:
    """Take the probability off the front of `fields`."""
    try:
        prob = float(fields.pop(0))
    except (IndexError, ValueError):
        prob = float("nan")
    if not 0.0 < prob <= 1.0:
        raise AsrKdError(f"the word {word!r} is not followed by a probability above 0 and at most 1")
    return prob


def write_lexicon(path: str | Path, lexicon: Lexicon) -> None:
    """Write lexicon.txt, or lexiconp.txt if `path` is named so: words sorted, pronunciations in their order; atomic."""
    with_probs = Path(path).name.startswith("lexiconp")
    lines = []
    for word in lexicon.words:
        for p in lexicon.entries[word]:
            prob = f" {lexicon.probs.get((word, p), 1.0)!r}" if with_probs else ""
            lines.append(f"{word}{prob} {' '.join(p)}\n")
    write_text(path, "".join(lines))
