"""Lexicons, phones by position in the word, silence and noise phones, and L against brute force."""

import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from kaldi_wheels import LEXICON, needs_kaldi

from asr_kd.corpus.datadir import Recording, Utterance, write_data_dir
from asr_kd.corpus.lexicon import Lexicon, known_transcripts, read_lexicon, write_lexicon
from asr_kd.errors import AsrKdError
from asr_kd.hmm.align import GraphCompiler, align_graph, align_utterances
from asr_kd.hmm.decode import Decoder
from asr_kd.hmm.gmm import MonoOptions, train_mono
from asr_kd.hmm.graph import GraphArcs, make_graph
from asr_kd.hmm.lang import Lang, without_position
from asr_kd.hmm.model import HmmModel
from asr_kd.hmm.topology import topology_text
from asr_kd.hmm.viterbi import check_search

NOISY = Lexicon(
    {"<unk>": [("SPN",)], "[noise]": [("NSN",)], "!SIL": [("SIL",)], "a": [("AH",)], "an": [("AH", "N")]},
    {("a", ("AH",)): 0.5},
)
DIM = 6


# --- the lexicon's file


@pytest.mark.parametrize("name", ["lexicon.txt", "lexiconp.txt"])
def test_lexicon_survives_its_file(tmp_path, name):
    write_lexicon(tmp_path / name, NOISY)
    read = read_lexicon(tmp_path / name)
    assert read.entries == NOISY.entries
    assert read.probs == (NOISY.probs if name == "lexiconp.txt" else {})
    assert LEXICON.phones == ["AH", "IY", "L", "T", "UW"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one W AH N\none W AH N\n", r"lexicon.txt:2: .*twice"),
        ("one W AH N\ntwo\n", r"lexicon.txt:2: .*'two'.*empty"),
        ("one W AH N\n\n", r"lexicon.txt:2: an empty line"),
        ("<eps> W\n", r"lexicon.txt:1: '<eps>' is reserved"),
        ("#1 W\n", r"lexicon.txt:1: '#1' is reserved and cannot be a word"),
        ("one W #0\n", r"lexicon.txt:1: '#0' is reserved and cannot be a phone"),
        ("one W AH_B\n", r"lexicon.txt:1: 'AH_B' is reserved and cannot be a phone"),
        ("one SIL\n", r"lexicon.txt:1: .*SIL"),
        ("<a> SIL SIL\n", r"lexicon.txt:1: .*SIL"),
        ("one W AH N\r\ntwo T UW\r\n", r"lexicon.txt:1: ends in CR LF"),
        ("\ufeffone W AH N\n", r"lexicon.txt:1: begins with a byte order mark"),
        ("new york\tN UW\n", r"lexicon.txt:1: the word 'new york' has a blank"),
        ("one W\nnew\u00a0york N UW\n", r"lexicon.txt:2: .*U\+00A0"),
        ("", r"lexicon.txt: has no word"),
    ],
)
def test_bad_lexicon_names_its_line(tmp_path, text, message):
    (tmp_path / "lexicon.txt").write_bytes(text.encode())
    with pytest.raises(AsrKdError, match=message):
        read_lexicon(tmp_path / "lexicon.txt")


@pytest.mark.parametrize("line", ["one", "one W AH", "one 0 W", "one 1.1 W", "one nan W"])
def test_bad_probability_names_its_line(tmp_path, line):
    (tmp_path / "lexiconp.txt").write_text(f"two 1 T UW\n{line}\n")
    with pytest.raises(AsrKdError, match=r"lexiconp.txt:2: the word 'one' is not followed by a probability"):
        read_lexicon(tmp_path / "lexiconp.txt")


def test_not_utf8_is_refused(tmp_path):
    (tmp_path / "lexicon.txt").write_bytes(b"caf\xe9 K\n")
    with pytest.raises(AsrKdError, match="cannot be read as a lexicon"):
        read_lexicon(tmp_path / "lexicon.txt")


# --- words that the lexicon lacks


def test_unknown_words_become_unk_where_the_lexicon_has_one(tmp_path):
    lines = []
    known = known_transcripts(NOISY, [("u1", ("a", "zebra")), ("u2", ("an",))], tmp_path / "text", log=lines.append)
    assert known == {"u1": ("a", "<unk>"), "u2": ("an",)}
    assert lines == [f"{tmp_path}/text: 1 words are not in the lexicon and are taken as <unk>"]


def test_a_few_utterances_with_unknown_words_are_listed_with_their_line_and_left_out(tmp_path):
    utterances = [(f"u{n}", ("two", "zebra") if n == 7 else ("two",)) for n in range(1, 21)]
    text = tmp_path / "text"
    text.write_text("".join(f"{utt_id} {' '.join(words)}\n" for utt_id, words in utterances))
    lines = []
    known = known_transcripts(LEXICON, utterances, text, max_oov_share=0.05, log=lines.append)
    assert sorted(known) == sorted(utt_id for utt_id, _ in utterances if utt_id != "u7")
    assert lines == [f"left out {text}:7: utterance 'u7' has the word 'zebra', which the lexicon lacks"]
    with pytest.raises(AsrKdError, match=rf"{text}:7: utterance 'u7' has the word 'zebra'.*1 of 20 .* 0.04"):
        known_transcripts(LEXICON, utterances, text, max_oov_share=0.04)
    with pytest.raises(AsrKdError, match="1 of 1 utterances"):
        known_transcripts(LEXICON, [("u", ("zebra",))], text, max_oov_share=1.0)


def test_validate_asks_for_every_word(tmp_path):
    write_lexicon(tmp_path / "lexicon.txt", LEXICON)
    soundfile.write(tmp_path / "a.wav", np.zeros(1600), 16000)
    words = [("two",), ("tool", "zebra")]
    utterances = [
        Utterance(f"s-{i}", "s", Recording(f"s-{i}", str(tmp_path / "a.wav")), words=w) for i, w in enumerate(words)
    ]
    write_data_dir(tmp_path / "data", utterances)
    script = Path(__file__).parents[1] / "data_prep/data_dir.py"
    command = [sys.executable, script, "validate", "--lexicon", tmp_path / "lexicon.txt", tmp_path / "data"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 1
    assert f"{tmp_path}/data/text:2: utterance 's-1' has the word 'zebra'" in done.stderr


# --- phones


def test_symbol_tables():
    lang = Lang(LEXICON)
    assert lang.phones_txt().split("\n")[:3] == ["<eps> 0", "SIL 1", "AH 2"]
    # Two homophones and one prefix share T UW (it takes #1 and #2); the last symbol is silence's own.
    assert lang.phones_txt().splitlines()[-4:] == ["#0 7", "#1 8", "#2 9", "#3 10"]
    assert lang.disambig_ids == [7, 8, 9, 10]
    assert lang.words_txt().splitlines() == ["<eps> 0", "eel 1", "too 2", "tool 3", "two 4"]
    assert (lang.silence_phones, lang.phone_roots[:2]) == (["SIL"], [["SIL"], ["AH"]])


def test_positions_are_named_and_ordered_as_by_kaldi():
    lang = Lang(NOISY, position_dependent=True)
    sil = ["SIL", "SIL_B", "SIL_E", "SIL_I", "SIL_S"]
    noise = [[phone.replace("SIL", name) for phone in sil] for name in ("NSN", "SPN")]
    assert lang.phone_roots == [sil, *noise, ["AH_B", "AH_E", "AH_I", "AH_S"], ["N_B", "N_E", "N_I", "N_S"]]
    assert lang.silence_phones == lang.phones[:15]
    assert [lang.base_phone(phone) for phone in ("SIL", "SIL_S", "AH_B", "SPN_I")] == ["SIL", "SIL", "AH", "SPN"]
    assert without_position(lang.phones) == [lang.base_phone(phone) for phone in lang.phones]
    assert without_position(Lang(NOISY).phones) == ["SIL", "NSN", "SPN", "AH", "N"]
    assert lang.positioned(("T", "UW", "L")) == ("T_B", "UW_I", "L_E")
    assert lang.positioned(("SPN",)) == ("SPN_S",)
    # AH alone is AH_S: a prefix of nothing, so that no mark is needed but silence's.
    assert (lang.num_disambig, Lang(NOISY).num_disambig) == (1, 2)


def test_noise_phones_are_those_of_bracketed_words_and_those_that_are_named():
    assert Lang(NOISY).silence_phones == ["SIL", "NSN", "SPN"]
    assert Lang(Lexicon({"<unk>": [("AH",)], "a": [("AH",)]})).silence_phones == ["SIL"], "AH is speech elsewhere"
    laughing = Lexicon({"haha": [("LAU",)], "a": [("AH",)]})
    assert Lang(laughing).silence_phones == ["SIL"]
    assert Lang(laughing, noise_phones=["SIL", "LAU"]).phones == ["SIL", "LAU", "AH"]
    with pytest.raises(AsrKdError, match="silence phone 'SPN' is in no pronunciation"):
        Lang(LEXICON, noise_phones=["SPN"])


def test_topology_of_silence_is_kaldis():
    text = topology_text(3, "3state", (1, 2), "5state")
    entry = text.split("<TopologyEntry>")[2]
    assert "<ForPhones>\n1 2\n" in entry
    transitions = " ".join(f"<Transition> {to} 0.25" for to in range(1, 5))
    assert f"<State> 2 <PdfClass> 2 {transitions} </State>" in entry
    assert "<State> 4 <PdfClass> 4 <Transition> 4 0.75 <Transition> 5 0.25 </State>\n<State> 5 </State>" in entry
    with pytest.raises(AsrKdError, match="'6state': choose 3state or 5state"):
        topology_text(3, "3state", (1,), "6state")


# --- L against brute force


def _paths(fst: object, num_phones: int, longest: int) -> dict[tuple, float]:
    """(input labels, output labels) → probability, over all paths of at most `longest` phones; marks do not count."""
    arcs = GraphArcs.from_fst(fst)
    columns = (arcs.source, arcs.target, arcs.ilabel, arcs.olabel, arcs.weight)
    following: dict[int, list[tuple]] = {state: [] for state in range(arcs.num_states)}
    for source, *arc in zip(*(column.tolist() for column in columns), strict=True):
        following[source].append(tuple(arc))
    found: dict[tuple, float] = {}
    todo = [(arcs.start, (), (), 0.0)]
    while todo:
        state, inputs, outputs, cost = todo.pop()
        if np.isfinite(arcs.final[state]):
            key = inputs, outputs
            found[key] = found.get(key, 0.0) + math.exp(-cost - arcs.final[state])
        for target, ilabel, olabel, weight in following[state]:
            longer = (*inputs, ilabel) if ilabel else inputs
            if sum(label <= num_phones for label in longer) <= longest:
                said = (*outputs, olabel) if olabel else outputs
                todo.append((target, longer, said, cost + weight))
    return found


def _expected(lang: Lang, longest: int) -> dict[tuple, float]:
    """The same from the definition: pronunciations in a row, silence before, between and behind them at its chance."""
    choices = [
        (word, lang.positioned(p), lang.lexicon.probs.get((word, p), 1.0))
        for word in lang.words
        for p in lang.lexicon.entries[word]
    ]
    pauses = [((), 1 - lang.silence_prob), (("SIL",), lang.silence_prob)]
    partial = [(pause, (), chance) for pause, chance in pauses]
    found: dict[tuple, float] = {}
    while partial:
        for phones, words, chance in partial:
            key = tuple(lang.phone_id[p] for p in phones), tuple(lang.word_id[w] for w in words)
            found[key] = found.get(key, 0.0) + chance
        partial = [
            ((*phones, *pronunciation, *pause), (*words, word), chance * prob * pause_chance)
            for (phones, words, chance), (word, pronunciation, prob), (pause, pause_chance) in itertools.product(
                partial, choices, pauses
            )
            if len(phones) + len(pronunciation) + len(pause) <= longest
        ]
    return found


PRONUNCIATIONS = st.lists(
    st.lists(st.sampled_from("KLM"), min_size=1, max_size=3).map(tuple), min_size=1, max_size=2, unique=True
)


@needs_kaldi
@settings(max_examples=25, deadline=None)
@given(
    entries=st.dictionaries(st.sampled_from(["one", "two", "three"]), PRONUNCIATIONS, min_size=1),
    noise=st.booleans(),
    position_dependent=st.booleans(),
    silence_prob=st.sampled_from([0.2, 0.5]),
    prob=st.sampled_from([0.25, 1.0]),
)
def test_l_is_the_pronunciations_with_optional_silence(entries, noise, position_dependent, silence_prob, prob):
    entries = {**entries, "<unk>": [("SPN",)], "!SIL": [("SIL",)]} if noise else entries
    word = min(entries)
    lang = Lang(Lexicon(entries, {(word, entries[word][0]): prob}), silence_prob, position_dependent)
    longest = 3
    expected = _expected(lang, longest)
    plain = _paths(lang.lexicon_fst(disambig=False), len(lang.phones), longest)
    assert plain.keys() == expected.keys()
    np.testing.assert_allclose([plain[key] for key in expected], list(expected.values()), rtol=1e-5)
    # With marks: the same strings when they are taken away, and no string of phones and marks has two readings.
    marked = _paths(lang.lexicon_fst(disambig=True), len(lang.phones), longest)
    stripped: dict[tuple, float] = {}
    for (inputs, words), chance in marked.items():
        key = tuple(i for i in inputs if i <= len(lang.phones)), words
        stripped[key] = stripped.get(key, 0.0) + chance
    assert stripped == pytest.approx(expected, rel=1e-5)
    assert len({inputs for inputs, _ in marked}) == len(marked)


# --- training, alignment and decoding with positions and noise


def _synthesize(lang: Lang, num_utts: int, seed: int) -> list[tuple[str, np.ndarray, tuple[str, ...], np.ndarray]]:
    """(utt_id, feats, words, base phone) with frames around a mean per base phone, different in each third of it."""
    names = [root[0] for root in lang.phone_roots]
    bases = [lang.base_phone(name) for name in names]
    lasting = np.random.default_rng(0)
    means = lasting.normal(0, 4, (len(bases), 1, DIM)) + lasting.normal(0, 1, (len(bases), 3, DIM))
    means[0, :, 0] = -12  # silence is quiet: column 0 stands for energy
    generator = np.random.default_rng(seed)
    utterances = []
    for index in range(num_utts):
        words = tuple(generator.choice(lang.words, size=generator.integers(1, 5)).tolist())
        phones = ["SIL"] if generator.random() < 0.5 else []
        for word in words:
            phones += lang.lexicon.entries[word][0]
            if generator.random() < 0.4:
                phones.append("SIL")
        feats, truth = [], []
        for phone in phones:
            for third in range(3):
                length = generator.integers(2, 6)
                frames = means[bases.index(phone), third] + generator.normal(0, 1, (length, DIM))
                if phone == "SIL" and third == 1:
                    frames[:, 0] += generator.choice([-4, 0, 4])  # pauses differ
                feats.append(frames)
                truth += [phone] * length
        utterances.append((f"utt{index:03d}", np.concatenate(feats).astype(np.float32), words, np.array(truth)))
    return utterances


WORDS = Lexicon(
    {"one": [("W", "AH", "N")], "nine": [("N", "AY", "N")], "I": [("AY",)], "<unk>": [("SPN",)]},
    {("nine", ("N", "AY", "N")): 0.9},
)


@needs_kaldi
@pytest.mark.parametrize("silence_topology", ["3state", "5state"])
def test_positions_and_noise_are_trained_aligned_and_decoded(tmp_path, silence_topology):
    lang = Lang(WORDS, position_dependent=True)
    utterances = _synthesize(lang, 40, seed=1)
    options = MonoOptions(num_iters=8, total_gauss=40, max_train_utts=0, silence_topology=silence_topology)
    model = train_mono(lang, [u[:3] for u in utterances], options=options, seed=3)
    num_silence = 2 * (3 if silence_topology == "3state" else 5)
    assert model.num_pdfs == num_silence + 3 * 4, "the positions of a phone share their states"
    assert model.sil_pdfs == list(range(num_silence))
    if silence_topology == "5state":
        tids = np.concatenate(
            [
                align_graph(model, GraphCompiler(model, lang).compile(u[0], u[2]), *u[:2], options.align)
                for u in utterances
            ]
        )
        assert (np.bincount(model.t2pdf[tids])[:5] > 20).all(), "every state of silence has frames"
    model.save(tmp_path / "hmm")
    model = HmmModel.load(tmp_path / "hmm")
    assert (model.lang.phones, model.lang.lexicon) == (lang.phones, WORDS)
    hits = total = 0
    bases = np.array(without_position(model.phones))
    for (_, _, phone, _), (_, _, words, truth) in zip(
        align_utterances(model, model.lang, [u[:3] for u in utterances]), utterances, strict=True
    ):
        hits += (bases[phone] == truth).sum()
        total += len(truth)
        named = [model.phones[p] for p in phone]
        runs = [p for p, _ in itertools.groupby(named) if p != "SIL"]
        # Runs of frames hide where a one-phone word is said twice.
        expected = [p for word in words for p in lang.positioned(WORDS.entries[word][0])]
        assert [p for p, _ in itertools.groupby(runs)] == [p for p, _ in itertools.groupby(expected)]
    assert hits / total > 0.97
    graph = make_graph(model, model.lang, None)
    decoder = Decoder(graph, acwt=0.3)
    logliks = []
    for _, feats, words, _ in _synthesize(lang, 10, seed=9):
        columns = [np.logaddexp.reduce(gmm.component_logliks(feats.astype(np.float64)), axis=1) for gmm in model.gmms]
        logliks.append(np.stack(columns, axis=1).astype(np.float32))
        assert decoder.decode(logliks[-1]).words == list(words)
    assert check_search(graph, logliks, acwt=0.3) < 1e-3
