"""Phones and pronunciations of a system that Kaldi trained, from its lang or graph folder."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from asr_kd.corpus.lexicon import SILENCE_PHONE, Lexicon, is_no_speech, parse_lexicon, read_lexicon
from asr_kd.corpus.symbols import EPS, read_symbols
from asr_kd.errors import AsrKdError
from asr_kd.hmm.lang import POSITIONS, position_phones


@dataclass(frozen=True)
class ImportedLang:
    """The symbols of a Kaldi system, in Kaldi's order; it stands where a Lang is asked for words' times.

    lexicon: phones without marks of their position, empty where none is known; phones: by Kaldi's id − 1;
    silence_phones: of silence and noise, the one that stands between words first; position_dependent: whether phones
    carry marks of their position in the word.
    """

    OPTIONS: ClassVar = ("phones", "silence_phones", "position_dependent")

    lexicon: Lexicon
    phones: list[str]
    silence_phones: list[str]
    position_dependent: bool

    @property
    def options(self) -> dict[str, Any]:
        """`ImportedLang(lexicon, **options)` is this one again; fit for JSON."""
        return {name: getattr(self, name) for name in self.OPTIONS}

    @property
    def words(self) -> list[str]:
        """All words that have a pronunciation, sorted."""
        return self.lexicon.words

    def positioned(self, pronunciation: Sequence[str]) -> tuple[str, ...]:
        """As Lang.positioned."""
        return position_phones(pronunciation) if self.position_dependent else tuple(pronunciation)

    def pronounces(self, words: Sequence[str], used: Iterable[int]) -> bool:
        """Whether every word that a graph puts out has a pronunciation; used: their ids, index in `words` plus one."""
        return all(words[word - 1] in self.lexicon.entries for word in used)


def read_lang(
    folders: Sequence[Path], lexicon: Path | None, silence: Sequence[str] | None, log: Callable[[str], None]
) -> ImportedLang:
    """What the folders (lang, graph, alignment), the first that has a file counting, and a lexicon tell.

    phones.txt must be in one of them. Pronunciations are those of `lexicon` (lexicon.txt or lexiconp.txt), or of
    phones/align_lexicon.txt. silence: the phones of silence and noise; None for those of phones/silence.csl, or SIL.
    Raises AsrKdError for what is missing, damaged or contradicts itself.
    """
    table = _find(folders, "phones.txt")
    if table is None:
        raise AsrKdError(f"no phones.txt in {', '.join(map(str, folders))}; give --lang, the folder that has it")
    names = read_symbols(table)
    first_disambig = next((number for number, name in enumerate(names) if name.startswith("#")), len(names))
    phones = names[1:first_disambig]
    known = set(phones)
    dependent = any({phone[:-2] + mark for mark in POSITIONS} <= known for phone in phones if len(phone) > 2)
    silence_phones = _silence_phones(folders, phones, silence)
    lang = ImportedLang(Lexicon({}), phones, silence_phones, dependent)
    aligned = _find(folders, "phones/align_lexicon.txt")
    if lexicon is not None:
        entries = read_lexicon(lexicon)
    elif aligned is not None:
        entries = parse_lexicon(_without_positions(aligned, lang), aligned)
    else:
        log("no lexicon (--lexicon, or phones/align_lexicon.txt of --lang or --graph): words will have no times")
        return lang
    for word, pronunciations in entries.entries.items():
        for pronunciation in pronunciations:
            if missing := [phone for phone in lang.positioned(pronunciation) if phone not in known]:
                raise AsrKdError(f"{lexicon or aligned}: {word!r} has the phone {missing[0]!r}, which {table} lacks")
    return ImportedLang(entries, phones, silence_phones, dependent)


def _find(folders: Sequence[Path], name: str) -> Path | None:
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _silence_phones(folders: Sequence[Path], phones: list[str], silence: Sequence[str] | None) -> list[str]:
    listed, optional = _find(folders, "phones/silence.csl"), _find(folders, "phones/optional_silence.txt")
    if silence is not None:
        found = list(silence)
    elif listed is not None:
        try:
            found = [phones[int(number) - 1] for number in _read(listed).strip().split(":") if int(number) > 0]
        except (ValueError, IndexError) as error:
            raise AsrKdError(f"{listed}: is not a list of phone numbers such as 1:2:3 ({error})") from error
    else:
        found = [phone for phone in phones if phone == SILENCE_PHONE or phone[:-2] == SILENCE_PHONE]
    if unknown := [phone for phone in found if phone not in phones]:
        raise AsrKdError(f"silence phone {unknown[0]!r} is not in phones.txt")
    first = _read(optional).strip() if optional is not None else SILENCE_PHONE
    return sorted(dict.fromkeys(found), key=lambda phone: phone != first)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AsrKdError(f"{path}: cannot be read ({error})") from error


def _without_positions(path: Path, lang: ImportedLang) -> Iterator[tuple[int, str]]:
    """Lines of a lexicon from align_lexicon.txt: each word once before its phones, these without their marks.

    A word that is silence, as some recipes have it, is left out, unless its name says that it is no speech.
    """
    seen = set()
    for number, line in enumerate(_read(path).removesuffix("\n").split("\n"), 1):
        word, _, *phones = line.split() if len(line.split()) > 2 else (None, None)
        if not phones:
            raise AsrKdError(f"{path}:{number}: is not `word word phone …`, but {line[:80]!r}")
        if word == EPS:  # silence between words
            continue
        base = [phone[:-2] if phone.endswith(POSITIONS) else phone for phone in phones]
        if lang.position_dependent and lang.positioned(base) != tuple(phones):
            raise AsrKdError(f"{path}:{number}: the marks of its phones do not tell their positions in the word")
        if base == [SILENCE_PHONE] and not is_no_speech(word):
            continue
        shown = " ".join([word, *(base if lang.position_dependent else phones)])
        if shown not in seen:
            seen.add(shown)
            yield number, shown
