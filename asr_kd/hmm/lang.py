"""Phones, words and the lexicon transducer L, with optional silence around words.

The form of L is that of Kaldi's make_lexicon_fst.pl with `--sil-prob`; disambiguation symbols are placed as
add_lex_disambig.pl places them (Mohri, Pereira & Riley 2002, section 4), so that L∘G can be determinised. Phones that
depend on their position in the word are named and ordered as by Kaldi's prepare_lang.sh.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from asr_kd.corpus.lexicon import SILENCE_PHONE, Lexicon
from asr_kd.errors import AsrKdError
from asr_kd.hmm.wheels import kaldi

EPS = "<eps>"
# Begin, end and inside of a word, and a word of one phone; in the order of Kaldi's phones.txt.
POSITIONS = ("_B", "_E", "_I", "_S")


@dataclass(frozen=True)
class Lang:
    """The symbol tables and L of one lexicon.

    silence_prob: of silence before the first and after each word; Kaldi's 0.5 puts more pauses into stop closures at
    word boundaries. position_dependent: a phone becomes four, by its place in the word; silence and noise become five,
    the fifth being the phone outside words. noise_phones: phones of the lexicon that are no speech; those that only
    words like `<unk>` and `[noise]` have (Lexicon.noise_phones) are so without being named.

    phones: silence first, noise, then the others sorted; Kaldi's phone id is the index plus one (0 is epsilon), while
    `/phone` of an alignment holds the index itself. silence_phones: those of silence, then of noise. phone_roots: the
    phones that share a root in a tree, and their states in a monophone model: all positions of one phone. words:
    sorted, with ids counted the same way.

    Raises AsrKdError for a silence_prob outside (0, 1) and a noise phone that the lexicon does not use.
    """

    # What it takes beside the lexicon to make a Lang again.
    OPTIONS: ClassVar = ("silence_prob", "position_dependent", "noise_phones")

    lexicon: Lexicon
    silence_prob: float = 0.2
    position_dependent: bool = False
    noise_phones: Sequence[str] = ()
    phones: list[str] = field(init=False)
    silence_phones: list[str] = field(init=False)
    phone_roots: list[list[str]] = field(init=False)
    words: list[str] = field(init=False)

    def __post_init__(self) -> None:
        if not 0.0 < self.silence_prob < 1.0:
            raise AsrKdError(f"silence_prob is {self.silence_prob}, but must lie between 0 and 1")
        named = [phone for phone in self.noise_phones if phone != SILENCE_PHONE]
        for phone in named:
            if phone not in self.lexicon.phones:
                raise AsrKdError(f"silence phone {phone!r} is in no pronunciation of the lexicon")
        noise = [*dict.fromkeys([*named, *self.lexicon.noise_phones])]
        others = [phone for phone in self.lexicon.phones if phone not in noise]
        silence_roots = [self._positions(phone, ("", *POSITIONS)) for phone in (SILENCE_PHONE, *noise)]
        roots = [*silence_roots, *(self._positions(phone, POSITIONS) for phone in others)]
        values = {
            "noise_phones": tuple(noise),
            "phones": [phone for root in roots for phone in root],
            "silence_phones": [phone for root in silence_roots for phone in root],
            "phone_roots": roots,
            "words": self.lexicon.words,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _positions(self, phone: str, suffixes: Sequence[str]) -> list[str]:
        return [phone + suffix for suffix in suffixes] if self.position_dependent else [phone]

    @property
    def options(self) -> dict[str, Any]:
        """`Lang(lexicon, **options)` is this Lang again; fit for JSON."""
        return {**{name: getattr(self, name) for name in self.OPTIONS}, "noise_phones": list(self.noise_phones)}

    @cached_property
    def _base(self) -> dict[str, str]:
        # A root's phones in the order of their suffixes; the lexicon's own names have none (Lexicon refuses them).
        suffix_length = len(POSITIONS[0])
        return {
            phone: phone[:-suffix_length] if self.position_dependent and phone.endswith(POSITIONS) else phone
            for phone in self.phones
        }

    def base_phone(self, phone: str) -> str:
        """The phone as the lexicon names it: AH for AH_B."""
        return self._base[phone]

    @cached_property
    def phone_id(self) -> dict[str, int]:
        return {phone: index + 1 for index, phone in enumerate(self.phones)}

    @cached_property
    def word_id(self) -> dict[str, int]:
        return {word: index + 1 for index, word in enumerate(self.words)}

    def positioned(self, pronunciation: Sequence[str]) -> tuple[str, ...]:
        """A pronunciation of the lexicon in this language's phones: T UW as T_B UW_E, if they depend on position."""
        if not self.position_dependent:
            return tuple(pronunciation)
        if len(pronunciation) == 1:
            return (pronunciation[0] + "_S",)
        first, *inside, last = pronunciation
        return (first + "_B", *(phone + "_I" for phone in inside), last + "_E")

    @cached_property
    def _marks(self) -> list[tuple[str, tuple[str, ...], float, int]]:
        """(word, pronunciation in `phones`, cost, k): #k has to follow this pronunciation; 0 where none is needed."""
        everything = [
            (word, self.positioned(p), 0.0 - math.log(self.lexicon.probs.get((word, p), 1.0)))
            for word in self.words
            for p in self.lexicon.entries[word]
        ]
        times = Counter(p for _, p, _ in everything)
        prefixes = {p[:n] for p in times for n in range(1, len(p))}
        used: Counter = Counter()
        marked = []
        for word, pronunciation, cost in everything:
            mark = 0
            if times[pronunciation] > 1 or pronunciation in prefixes:
                used[pronunciation] += 1
                mark = used[pronunciation]
            marked.append((word, pronunciation, cost, mark))
        return marked

    @property
    def num_disambig(self) -> int:
        """How many of #1 … #n are used, the last one for silence."""
        return max(mark for _, _, _, mark in self._marks) + 1

    @property
    def disambig_ids(self) -> list[int]:
        """Ids of #0, #1, … #n, after all phones."""
        return [len(self.phones) + 1 + k for k in range(self.num_disambig + 1)]

    def phones_txt(self) -> str:
        """Kaldi's phones.txt."""
        symbols = [EPS, *self.phones, *(f"#{k}" for k in range(self.num_disambig + 1))]
        return "".join(f"{symbol} {index}\n" for index, symbol in enumerate(symbols))

    def words_txt(self) -> str:
        """Kaldi's words.txt."""
        return "".join(f"{word} {index}\n" for index, word in enumerate([EPS, *self.words]))

    def word_ids(self, words: tuple[str, ...] | list[str], utt_id: str) -> list[int]:
        """Ids of `words`; raises AsrKdError that names the utterance and the word that the lexicon lacks."""
        for word in words:
            if word not in self.word_id:
                raise AsrKdError(f"utterance {utt_id!r} has the word {word!r}, which the lexicon lacks")
        return [self.word_id[word] for word in words]

    @property
    def backoff_word(self) -> int:
        """Id of #0 among the words, which the back-off arcs of a grammar read."""
        return len(self.words) + 1

    def lexicon_fst(self, disambig: bool, backoff: bool = False) -> object:
        """L: phones to words, silence optional at the start and after every word; output side sorted.

        disambig: with the symbols that make L∘G determinisable. Training graphs do without (their word sequence is
        given). backoff: with the #0 of a grammar's back-off arcs, between words. A state that stands before silence
        lets the twins with and without it share the arcs of the word.
        A word's pronunciation costs −log of its probability.
        """
        silence, other = -math.log(self.silence_prob), -math.log(1.0 - self.silence_prob)
        first_mark = len(self.phones) + 1
        start, loop, before_silence = 0, 1, 2
        lines = [f"{start} {loop} 0 0 {other}", f"{start} {before_silence} 0 0 {silence}"]
        next_state = 3
        # With disambig, silence carries a mark of its own: "word #k SIL" would else be ambiguous with "word" + start.
        if disambig:
            lines.append(f"{before_silence} {next_state} {self.phone_id[SILENCE_PHONE]} 0")
            lines.append(f"{next_state} {loop} {first_mark + self.num_disambig} 0")
            next_state += 1
        else:
            lines.append(f"{before_silence} {loop} {self.phone_id[SILENCE_PHONE]} 0")
        for word, pronunciation, cost, mark in self._marks:
            inputs = [self.phone_id[phone] for phone in pronunciation]
            if disambig and mark:
                inputs.append(first_mark + mark)
            state, output = loop, self.word_id[word]
            for symbol in inputs[:-1]:
                lines.append(f"{state} {next_state} {symbol} {output} {cost}")
                state, output, cost, next_state = next_state, 0, 0.0, next_state + 1
            lines.append(f"{state} {loop} {inputs[-1]} {output} {cost + other}")
            lines.append(f"{state} {before_silence} {inputs[-1]} {output} {cost + silence}")
        if backoff:
            lines.append(f"{loop} {loop} {first_mark} {self.backoff_word}")
        lines.append(f"{loop} 0.0")
        fst = kaldi().fst.compile("\n".join(lines) + "\n", acceptor=False)
        kaldi().fst.arcsort(fst, sort_type="olabel")
        return fst


def without_position(phones: Sequence[str]) -> list[str]:
    """Phone names of an alignment as the lexicon has them, whether they depend on position or not."""
    # Silence outside words has no mark in either case; every other phone has one or none has.
    dependent = any(phone.endswith(POSITIONS) for phone in phones)
    return [phone[:-2] if dependent and phone.endswith(POSITIONS) else phone for phone in phones]
