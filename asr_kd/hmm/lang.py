"""Phones, words and the lexicon transducer L, with optional silence around words.

The form of L is that of Kaldi's make_lexicon_fst.pl with `--sil-prob`; disambiguation symbols are placed as
add_lex_disambig.pl places them (Mohri, Pereira & Riley 2002, section 4), so that L∘G can be determinised.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

from asr_kd.corpus.lexicon import SILENCE_PHONE, Lexicon
from asr_kd.errors import AsrKdError
from asr_kd.hmm.wheels import kaldi

EPS = "<eps>"


@dataclass(frozen=True)
class Lang:
    """The symbol tables and L of one lexicon.

    phones: silence first, then the others sorted; Kaldi's phone id is the index plus one (0 is epsilon), while
    `/phone` of an alignment holds the index itself. words: sorted, with ids counted the same way. silence_prob: of
    silence before the first and after each word; Kaldi's 0.5 puts more pauses into stop closures at word boundaries.
    """

    lexicon: Lexicon
    silence_prob: float = 0.2
    phones: list[str] = field(init=False)
    words: list[str] = field(init=False)

    def __post_init__(self) -> None:
        if not 0.0 < self.silence_prob < 1.0:
            raise AsrKdError(f"silence_prob is {self.silence_prob}, but must lie between 0 and 1")
        object.__setattr__(self, "phones", [SILENCE_PHONE, *self.lexicon.phones])
        object.__setattr__(self, "words", self.lexicon.words)

    @cached_property
    def phone_id(self) -> dict[str, int]:
        return {phone: index + 1 for index, phone in enumerate(self.phones)}

    @cached_property
    def word_id(self) -> dict[str, int]:
        return {word: index + 1 for index, word in enumerate(self.words)}

    @cached_property
    def _marks(self) -> list[tuple[str, tuple[str, ...], int]]:
        """(word, pronunciation, k): #k has to follow this pronunciation; 0 where none is needed."""
        everything = [(w, p) for w in self.words for p in self.lexicon.entries[w]]
        times = Counter(p for _, p in everything)
        prefixes = {p[:n] for p in times for n in range(1, len(p))}
        used: Counter = Counter()
        marked = []
        for word, pronunciation in everything:
            mark = 0
            if times[pronunciation] > 1 or pronunciation in prefixes:
                used[pronunciation] += 1
                mark = used[pronunciation]
            marked.append((word, pronunciation, mark))
        return marked

    @property
    def num_disambig(self) -> int:
        """How many of #1 … #n are used, the last one for silence."""
        return max(mark for _, _, mark in self._marks) + 1

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

    def lexicon_fst(self, disambig: bool) -> object:
        """L: phones to words, silence optional at the start and after every word; output side sorted.

        disambig: with the symbols that make L∘G determinisable. Training graphs do without (their word sequence is
        given). A state that stands before silence lets the twins with and without it share the arcs of the word.
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
        for word, pronunciation, mark in self._marks:
            inputs = [self.phone_id[phone] for phone in pronunciation]
            if disambig and mark:
                inputs.append(first_mark + mark)
            state, output = loop, self.word_id[word]
            for symbol in inputs[:-1]:
                lines.append(f"{state} {next_state} {symbol} {output}")
                state, output, next_state = next_state, 0, next_state + 1
            lines.append(f"{state} {loop} {inputs[-1]} {output} {other}")
            lines.append(f"{state} {before_silence} {inputs[-1]} {output} {silence}")
        lines.append(f"{loop} 0.0")
        fst = kaldi().fst.compile("\n".join(lines) + "\n", acceptor=False)
        kaldi().fst.arcsort(fst, sort_type="olabel")
        return fst
