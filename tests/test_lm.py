"""N-gram language models: against a reference written from the definition, as probabilities, and as files."""

import contextlib
import gzip
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_kd import cli
from asr_kd.corpus.datadir import Recording, Utterance, write_data_dir
from asr_kd.errors import AsrKdError
from asr_kd.lm.arpa import read_arpa, write_arpa
from asr_kd.lm.kneser_ney import FALLBACK, discounts, estimate
from asr_kd.lm.ngram import BOS, EOS, UNK, NgramModel
from asr_kd.lm.perplexity import measure
from asr_kd.lm.prune import prune
from asr_kd.lm.text import in_units, read_text, read_transcripts, read_vocabulary

SENTENCES = st.lists(st.lists(st.sampled_from("abcde"), max_size=6), min_size=1, max_size=25)
# As SRILM writes: no weight after what nothing follows, and `b c` missing although `a b c` is there.
ARPA = """\\data\\
ngram 1=5
ngram 2=4
ngram 3=1

\\1-grams:
-0.8\t</s>
-99\t<s>\t-0.3
-0.5\ta\t-0.2
-0.6\tb\t-0.1
-0.7\tc

\\2-grams:
-0.4\t<s> a
-0.3\ta b\t-0.25
-0.9\ta </s>
-0.2\tb a

\\3-grams:
-0.1\ta b c

\\end\\
"""


def histories(model: NgramModel) -> list[tuple[int, ...]]:
    """The empty history, all that are listed and can go on, and some that are not."""
    eos = model.word_id[EOS]
    listed = [tuple(row) for n in range(1, model.order + 1) for row in model.ngrams(n).tolist() if eos not in row]
    return [(), *listed, (eos, eos)]


def worst_sum(model: NgramModel) -> float:
    """Largest |1 − sum over all words of P(word | history)|."""
    totals = []
    for history in histories(model):
        probs = 10.0 ** model.log_probs_of_all(history)
        totals.append(probs.sum() - probs[model.word_id[BOS]])
    return max(abs(1 - total) for total in totals)


class Reference:
    """Interpolated modified Kneser-Ney by recursion over dictionaries, straight from Chen & Goodman's equations."""

    def __init__(self, sentences: list[list[str]], order: int, vocabulary: set[str]) -> None:
        self.vocabulary = vocabulary | {EOS, UNK}
        padded = [[BOS, *words, EOS] for words in sentences]
        seen = [Counter(tuple(s[i : i + n]) for s in padded for i in range(len(s) - n + 1)) for n in range(order + 2)]
        self.counts = []
        for n in range(1, order + 1):
            before = Counter(ngram[1:] for ngram in seen[n + 1])
            chosen = {g: c if n == order or g[0] == BOS else before[g] for g, c in seen[n].items() if g != (BOS,)}
            self.counts.append(chosen)
        self.discounts = []
        for counts in self.counts:
            t = Counter(counts.values())
            usable = t[1] and t[2] and t[3]
            y = t[1] / (t[1] + 2 * t[2]) if usable else 0
            found = [k - (k + 1) * y * t[k + 1] / t[k] for k in (1, 2, 3)] if usable else []
            fits = usable and all(0 < d <= k for k, d in enumerate(found, 1))
            self.discounts.append(found if fits else list(FALLBACK))

    def prob(self, history: tuple[str, ...], word: str) -> float:
        if len(history) == len(self.counts):
            return self.prob(history[1:], word)
        counts, discount = self.counts[len(history)], self.discounts[len(history)]
        after = {g[-1]: c for g, c in counts.items() if g[:-1] == history}
        lower = self.prob(history[1:], word) if history else 1 / len(self.vocabulary)
        if not after:
            return lower
        total = sum(after.values())
        gamma = sum(min(discount[min(c, 3) - 1], c) for c in after.values()) / total
        kept = after[word] - min(discount[min(after[word], 3) - 1], after[word]) if word in after else 0
        return kept / total + gamma * lower


@settings(max_examples=60, deadline=None)
@given(sentences=SENTENCES, order=st.integers(1, 4), closed=st.booleans())
def test_probabilities_are_those_of_the_definition(sentences, order, closed):
    vocabulary = {"a", "b", "f"} if closed else {word for words in sentences for word in words}
    model = estimate(sentences, order, vocabulary if closed else None)
    said = [[word if word in vocabulary else UNK for word in words] for words in sentences]
    reference = Reference(said, order, vocabulary)
    assert set(model.words) == reference.vocabulary | {BOS}
    for history in histories(model):
        if len(history) < order and model.word_id[EOS] not in history:
            found = 10.0 ** model.log_probs_of_all(history)
            names = tuple(model.words[word] for word in history)
            expected = [reference.prob(names, word) if word != BOS else 0.0 for word in model.words]
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-90)


@settings(max_examples=60, deadline=None)
@given(sentences=SENTENCES, order=st.integers(1, 4), threshold=st.sampled_from([0.0, 1e-4, 1e-2, 1.0]))
def test_every_history_sums_to_one_also_pruned_and_read_again(tmp_path_factory, sentences, order, threshold):
    model = prune(estimate(sentences, order), threshold)
    assert worst_sum(model) < 1e-9
    path = tmp_path_factory.getbasetemp() / "model.arpa.gz"
    write_arpa(path, model)
    again = read_arpa(path)
    assert worst_sum(again) < 1e-6
    assert again.words == model.words
    for ours, theirs in zip(model.levels, again.levels, strict=True):
        np.testing.assert_array_equal(ours.prefix, theirs.prefix)
        np.testing.assert_array_equal(ours.word, theirs.word)
        np.testing.assert_allclose(ours.log_prob, theirs.log_prob, rtol=1e-7)
        np.testing.assert_allclose(ours.backoff, theirs.backoff, rtol=1e-7)


def test_discounts_are_those_of_the_paper():
    # t = 10, 5, 3, 2: y = 10/20, D = 1 − 2·y·5/10, 2 − 3·y·3/5, 3 − 4·y·2/3.
    counts = np.repeat([0, 1, 2, 3, 4, 9], [4, 10, 5, 3, 2, 1])
    np.testing.assert_allclose(discounts(counts), [0, 0.5, 1.1, 3 - 4 / 3])
    assert discounts(np.array([1, 1, 2, 4])) is None, "no count of 3"
    assert discounts(np.repeat([1, 2, 3], [1, 1, 9])) is None, "D2 is below zero"


def test_small_texts_take_the_fallback_and_say_so():
    lines: list[str] = []
    estimate([["a", "b"]], 2, log=lines.append)
    assert [line[:7] for line in lines] == ["1-grams", "2-grams"]
    with pytest.raises(AsrKdError, match="at least one sentence"):
        estimate([], 2)
    with pytest.raises(AsrKdError, match="order of 0"):
        estimate([["a"]], 0)


def test_unknown_words_and_unseen_words():
    model = estimate([["a", "zebra", "a"]], 2, ["a", "b"])
    probs = 10.0 ** model.log_probs_of_all(())
    ids = model.word_id
    assert probs[ids[UNK]] > probs[ids["b"]] > 0, "zebra is <unk>; b was never seen"
    named = estimate([["a", "zebra", "a"]], 2, ["a", "b", "<SPOKEN_NOISE>"])
    probs = 10.0 ** named.log_probs_of_all(())
    assert probs[named.word_id["<SPOKEN_NOISE>"]] > probs[named.word_id[UNK]]


# --- pruning


def _divergence(model: NgramModel, removed: tuple[int, ...]) -> float:
    """exp of Σ P(history) P(word | history) log P/P', less one, when one n-gram is taken away, by enumeration."""
    *history, word = removed
    before = 10.0 ** model.log_probs_of_all(history)
    lower = 10.0 ** model.log_probs_of_all(history[1:])
    before[model.word_id[BOS]] = lower[model.word_id[BOS]] = 0
    listed = [g[-1] for g in model.ngrams(len(removed)).tolist() if g[:-1] == history and g[-1] != word]
    after = np.zeros_like(before)
    after[listed] = before[listed]
    others = np.setdiff1d(np.arange(len(before)), listed)
    after[others] = lower[others] * (1 - before[listed].sum()) / (1 - lower[listed].sum())
    prob = 1.0
    for n in range(len(history)):
        last = EOS if history[n] == model.word_id[BOS] else model.words[history[n]]
        prob *= 10.0 ** model.log_probs_of_all(history[:n])[model.word_id[last]]
    possible = before > 0
    return math.exp(prob * (before[possible] * np.log(before[possible] / after[possible])).sum()) - 1


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), threshold=st.sampled_from([1e-3, 1e-2, 3e-2]))
def test_pruning_takes_away_what_hardly_changes_the_perplexity(seed, threshold):
    rng = np.random.default_rng(seed)
    model = estimate([rng.choice(list("aabbc"), 5).tolist() for _ in range(12)], 3)
    pruned = prune(model, threshold)
    kept = {tuple(g) for n in range(2, pruned.order + 1) for g in pruned.ngrams(n).tolist()}
    begun = {g[:-1] for g in kept}
    for n in (2, 3):
        for ngram in map(tuple, model.ngrams(n).tolist()):
            change = _divergence(model, ngram)
            if abs(change - threshold) > 1e-9:
                assert (ngram in kept) == (change >= threshold or ngram in begun), (ngram, change)


def test_pruning_everything_leaves_unigrams():
    assert prune(estimate([["a", "b"], ["b", "a"]], 3), 1e9).order == 1


# --- files


def test_a_strangers_model_backs_off_as_its_file_says(tmp_path):
    (tmp_path / "x.arpa").write_text("made by hand\n\n" + ARPA)
    model = read_arpa(tmp_path / "x.arpa")
    ids = [model.word_id[word] for word in ("a", "b", "c", BOS)]
    a, b, c, bos = ids
    for ngram, expected in [
        ((a, b, c), -0.1),
        ((b, c), -0.1 - 0.7),
        ((bos, b, a), -0.2),
        ((a, b, b), -0.25 - 0.1 - 0.6),
        ((c, a, c), -0.2 - 0.7),
        ((a, b, a), -0.25 - 0.2),
        ((-1, a, b), -0.3),
    ]:
        assert model.log_probs(np.array([ngram]))[0] == pytest.approx(expected), ngram
    write_arpa(tmp_path / "y.arpa", model)
    assert read_arpa(tmp_path / "y.arpa").words == model.words


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\\data\\", "data", r"ends before \\end\\"),
        ("ngram 1=5", "ngram 2=5", r":2: expected `ngram 1="),
        ("ngram 1=5", "ngram 1=6", r":13: 5 1-grams, where the header declares 6"),
        ("ngram 1=5", "ngram 1=4", r":11: more than the 4 1-grams"),
        ("ngram 2=4", "ngram 2=999999999999999999", r":19: 4 2-grams, where"),
        ("\\2-grams:", "\\3-grams:", r":13: expected \\2-grams:"),
        ("-0.5\ta", "-0.5\ta a a", r":9: expected log10 probability, 1 words"),
        ("-0.5\ta", "-0,5\ta", r":9: a probability or back-off weight is no number"),
        ("-0.5\ta", "0.5\ta", r":9: 0.5 -0.2 are no log10"),
        ("-0.5\ta", "nan\ta", r":9: nan -0.2 are no log10"),
        ("a\t-0.2", "a\tinf", r":9: -0.5 inf are no log10"),
        ("\tb\t-0.1", "\ta\t-0.1", r":10: the word 'a' is there twice"),
        ("b a\n", "a b\n", r":17: an n-gram that is there twice"),
        ("b a\n", "b z\n", r":17: the word 'z' is not among the 1-grams"),
        ("a b c", "b c a", r":20: its first words are no n-gram of the order below"),
        ("</s>", "</x>", "lacks </s> among its 1-grams"),
        ("\\end\\", "", r"ends before \\end\\"),
        ("\\end\\", "\\4-grams:", r":22: expected \\end\\"),
        ("\tc\n", "\tc" + "c" * 70000 + "\n", r":11: a line of more than 65536 bytes"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_line(tmp_path, old, new, message):
    assert old in ARPA
    (tmp_path / "x.arpa").write_text(ARPA.replace(old, new, 1))
    with pytest.raises(AsrKdError, match=r"x\.arpa" + message if message[0] == ":" else message):
        read_arpa(tmp_path / "x.arpa")


def test_an_endless_file_is_left_soon(tmp_path):
    for content in (b"\n" * 20_000, b"x\n" * 20_000, b"\\data\\\n" + b"\n" * 20_000):
        (tmp_path / "x.arpa.gz").write_bytes(gzip.compress(content))
        with pytest.raises(AsrKdError, match=r"x\.arpa\.gz:1000[01]: .* is this an ARPA file"):
            read_arpa(tmp_path / "x.arpa.gz")


def test_what_no_sentence_can_hold_is_left_out(tmp_path):
    text = ARPA.replace("ngram 2=4", "ngram 2=6").replace("-0.2\tb a", "-0.2\tb a\n-1\t<s> <s>\n-1\t</s> a")
    (tmp_path / "x.arpa").write_text(text)
    lines: list[str] = []
    assert [len(level) for level in read_arpa(tmp_path / "x.arpa", lines.append).levels] == [5, 4, 1]
    assert "left out 2 n-grams" in lines[0]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damage_is_an_error_or_another_model_but_never_a_crash(tmp_path_factory, data):
    zipped = data.draw(st.booleans())
    content = bytearray(gzip.compress(ARPA.encode(), mtime=0) if zipped else ARPA.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(content)))
        content[position : position + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=6))
    path = tmp_path_factory.getbasetemp() / ("damaged.arpa" + ".gz" * zipped)
    path.write_bytes(content)
    with contextlib.suppress(AsrKdError):
        model = read_arpa(path)
        assert np.isfinite(model.log_probs_of_all((0, 1))).all()


# --- perplexity, text


def test_perplexity_counts_unknown_words_apart(tmp_path):
    (tmp_path / "x.arpa").write_text(ARPA)
    model = read_arpa(tmp_path / "x.arpa")
    found = measure(model, [("a", "b", "c"), ("zebra", "a"), ()])
    # <s> a b c </s>: -0.4 (after <s>), -0.3, -0.1, then c </s> backs off with no weight: -0.8.
    first = -0.4 - 0.3 - 0.1 - 0.8
    # After zebra, of which the model knows nothing, a is a unigram; a </s> is listed. Last, <s> </s> backs off.
    rest = -0.5 - 0.9 + (-0.3 - 0.8)
    assert (found.num_sentences, found.num_words, found.num_oovs) == (3, 5, 1)
    assert found.log10_prob == pytest.approx(first + rest)
    assert found.perplexity == pytest.approx(10 ** (-(first + rest) / 7))
    assert found.per_word == pytest.approx(10 ** (-(first + rest) / 4))
    with pytest.raises(AsrKdError, match="no sentence"):
        measure(model, [])


def test_a_model_of_the_text_itself_is_better_than_a_unigram_and_pruning_costs_little():
    rng = np.random.default_rng(0)
    follows = {w: rng.choice(list("abcdefgh"), 3) for w in "abcdefgh"}

    def sentences(num: int) -> list[list[str]]:
        walks = []
        for _ in range(num):
            walk = ["a"]
            for _ in range(9):
                walk.append(str(rng.choice(follows[walk[-1]])))
            walks.append(walk)
        return walks

    text, unseen = sentences(300), sentences(50)
    trigrams = estimate(text, 3)
    pruned = prune(trigrams, 1e-3)
    unigram, full, small = (measure(m, unseen).perplexity for m in (estimate(text, 1), trigrams, pruned))
    assert full < 0.6 * unigram
    assert small < 1.1 * full
    assert len(pruned.levels[-1]) < 0.8 * len(trigrams.levels[-1])


def test_text_and_units(tmp_path):
    (tmp_path / "a.txt").write_bytes("né  à\n\nun\tdeux\n".encode())
    assert read_text(tmp_path / "a.txt") == [("né", "à"), ("un", "deux")]
    assert in_units([("né", "à")], "char") == [["n", "é", "<space>", "à"]]
    with pytest.raises(AsrKdError, match="unit 'phone'"):
        in_units([], "phone")
    for content, message in [
        (b"a\n\xff\n", r"b\.txt:2: is not UTF-8"),
        (b"<s> a\n", r":1: holds <s>"),
        (b"\n", "no sent"),
    ]:
        (tmp_path / "b.txt").write_bytes(content)
        with pytest.raises(AsrKdError, match=message):
            read_text(tmp_path / "b.txt")
    (tmp_path / "words.txt").write_text("<eps> 0\nb B B\na A\nb B\n#0 3\n<s> 4\n")
    assert read_vocabulary(tmp_path / "words.txt") == ["b", "a"]


def test_perturbed_copies_count_once(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"")
    utterances = [
        Utterance(name, "s", Recording("a", str(tmp_path / "a.wav")), words=("x", name[-1]), uniq_id=name[-1])
        for name in ("s1", "s2", "sp0.9-s1", "sp1.1-s1")
    ]
    write_data_dir(tmp_path / "data", utterances)
    assert sorted(read_transcripts(tmp_path / "data")) == [("x", "1"), ("x", "2")]


def test_transcripts_need_no_audio(tmp_path):
    (tmp_path / "text").write_text("s1 x y\nsp0.9-s1 x y\n")
    (tmp_path / "utt2uniq").write_text("s1 s1\nsp0.9-s1 s1\n")
    assert read_transcripts(tmp_path) == [("x", "y")]
    (tmp_path / "utt2uniq").unlink()
    assert read_transcripts(tmp_path) == [("x", "y"), ("x", "y")]


def test_a_byte_order_mark_is_no_part_of_a_word(tmp_path):
    (tmp_path / "text").write_text("\ufeffa b\na \ufeffc\n")
    assert read_text(tmp_path / "text") == [("a", "b"), ("a", "\ufeffc")]
    assert read_vocabulary(tmp_path / "text") == ["a"]


def test_a_text_is_not_written_over(tmp_path, capsys):
    (tmp_path / "text").write_text("a b\n")
    (tmp_path / "link").symlink_to("text")
    for out in ("text", "link"):
        assert cli.main(["train-lm", "--text", str(tmp_path / "text"), "--out", str(tmp_path / out)]) == 1
        assert f"--out {tmp_path / out}: is what --text names, too" in capsys.readouterr().err
    assert (tmp_path / "text").read_text() == "a b\n"


def test_commands(tmp_path, capsys):
    text, lm = tmp_path / "a.txt", tmp_path / "lm.arpa.gz"
    text.write_text("a b a\nb a\na c a b\n" * 3)
    command = ["train-lm", "--text", str(text), "--order", "2", "--out", str(lm)]
    assert cli.main(command) == 0
    written = lm.read_bytes()
    assert cli.main(command) == 0
    assert "up to date" in capsys.readouterr().err
    assert cli.main([*command, "--prune", "0.1"]) == 0
    assert len(lm.read_bytes()) < len(written)
    assert cli.main(["perplexity", "--lm", str(lm), "--text", str(text)]) == 0
    assert "9 sentences, 27 words, 0 of them not in the model" in capsys.readouterr().out
    assert cli.main([*command[:-1], str(tmp_path / "c.arpa"), "--unit", "char", "--prune", "-1"]) == 1
    assert cli.main([*command[:-1], str(tmp_path / "c.arpa"), "--unit", "char"]) == 0
    assert "<space>" in read_arpa(tmp_path / "c.arpa").words


def test_a_model_of_other_units_is_suspected(tmp_path, capsys):
    text, letters = tmp_path / "a.txt", tmp_path / "c.arpa"
    text.write_text("one two\ntwo three\nfour\n" * 3)
    assert cli.main(["train-lm", "--text", str(text), "--order", "2", "--unit", "char", "--out", str(letters)]) == 0
    command = ["perplexity", "--lm", str(letters), "--text", str(text)]
    assert cli.main(command) == 0
    assert "give --unit char" in capsys.readouterr().err
    assert cli.main([*command, "--unit", "char"]) == 0
    assert "warning" not in capsys.readouterr().err
