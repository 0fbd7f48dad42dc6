"""Tied triphones: training, alignment, graphs and files."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kaldi_wheels import needs_kaldi

from asr_kd.config import HmmConfig, resolve
from asr_kd.corpus.datadir import Recording, Utterance, write_data_dir
from asr_kd.corpus.lexicon import Lexicon, write_lexicon
from asr_kd.errors import AsrKdError
from asr_kd.features.options import MfccOptions
from asr_kd.hmm import boundaries, steps, wheels
from asr_kd.hmm.align import AlignOptions, GraphCompiler, align_graph, align_utterances
from asr_kd.hmm.build_tree import TreeOptions
from asr_kd.hmm.check import check_likelihood
from asr_kd.hmm.decode import Decoder
from asr_kd.hmm.em import TrainingSet, realign
from asr_kd.hmm.gaussians import GmmStack
from asr_kd.hmm.gmm import MonoOptions, train_mono
from asr_kd.hmm.graph import Graph, make_graph
from asr_kd.hmm.lang import Lang
from asr_kd.hmm.model import HmmModel
from asr_kd.hmm.tree_stats import frame_events
from asr_kd.hmm.triphones import TriOptions, convert_alignment, train_tri
from asr_kd.hmm.viterbi import check_search, exact_best_path
from asr_kd.store.ali import AliReader
from asr_kd.store.feats_writer import FeatsWriter

# two and too are homophones, and T UW is a prefix of T UW L: graphs need disambiguation symbols.
LEXICON = Lexicon({"two": [("T", "UW")], "too": [("T", "UW")], "tool": [("T", "UW", "L")], "lit": [("L", "IH", "T")]})
DIM = 6
pytestmark = needs_kaldi
MONO = MonoOptions(num_iters=8, total_gauss=20)
TRI = TriOptions(num_iters=6, total_gauss=60, realign_iters=(3,), tree=TreeOptions(min_count=25, min_gain=30))


def synthesize(lang: Lang, num_utts: int, seed: int) -> list[tuple[str, np.ndarray, tuple[str, ...], np.ndarray]]:
    """(utt_id, feats, words, phone): the outer thirds of a phone lean towards the neighbour beside them."""
    base = sorted({lang.base_phone(phone) for phone in lang.phones})
    lasting = np.random.default_rng(0)
    means = dict(zip(base, lasting.normal(0, 5, (len(base), DIM)), strict=True))
    means["SIL"][0] = -15  # silence is quiet: column 0 stands for energy
    rng = np.random.default_rng(seed)
    utterances = []
    for index in range(num_utts):
        words = tuple(rng.choice(lang.words, size=rng.integers(1, 5)).tolist())
        phones = ["SIL"] if rng.random() < 0.5 else []
        for word in words:
            phones += lang.positioned(lang.lexicon.entries[word][0])
            phones += ["SIL"] if rng.random() < 0.4 else []
        feats, truth = [], []
        for place, phone in enumerate(phones):
            around = [
                phones[place - 1] if place else "SIL",
                phone,
                phones[place + 1] if place + 1 < len(phones) else "SIL",
            ]
            for third, neighbour in enumerate(around):
                length = rng.integers(2, 6)
                lean = 0.0 if phone == "SIL" or neighbour == "SIL" else 0.35
                mean = (
                    (1 - lean) * means[lang.base_phone(phone)] + lean * means[lang.base_phone(neighbour)] + 0.3 * third
                )
                feats.append(mean + rng.normal(0, 1, (length, DIM)))
                truth.append(np.full(length, lang.phones.index(phone)))
        utterances.append((f"utt{index:03d}", np.concatenate(feats).astype(np.float32), words, np.concatenate(truth)))
    return utterances


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "positions"])
def trained(request) -> tuple[HmmModel, HmmModel, list]:
    """Monophones, triphones made of them, and the utterances of both."""
    lang = Lang(LEXICON, position_dependent=request.param)
    utterances = synthesize(lang, 60, seed=1)
    items = [u[:3] for u in utterances]
    mono = train_mono(lang, items, options=MONO, seed=3)
    return mono, train_tri(mono, items, options=TRI, seed=3), utterances


def loglik_per_frame(model: HmmModel, utterances: list) -> float:
    stack, compiler = GmmStack(model.gmms), GraphCompiler(model, model.lang)
    total = frames = 0.0
    for utt_id, feats, words, _ in utterances:
        tids = align_graph(model, compiler.compile(utt_id, words), utt_id, feats, AlignOptions())
        total += stack.logliks(feats)[np.arange(len(feats)), model.t2pdf[tids]].sum()
        frames += len(feats)
    return total / frames


def word_errors(model: HmmModel, utterances: list) -> int:
    decoder, stack = Decoder(make_graph(model, model.lang, None), acwt=0.3), GmmStack(model.gmms)
    said = {"two": "too"}
    return sum(
        [said.get(w, w) for w in decoder.decode(stack.logliks(feats)).words] != [said.get(w, w) for w in words]
        for _, feats, words, _ in utterances
    )


def test_triphones_explain_unseen_speech_better_than_monophones(trained):
    mono, tri, _ = trained
    unseen = synthesize(mono.lang, 25, seed=2)
    assert tri.num_pdfs > mono.num_pdfs + 5
    assert loglik_per_frame(tri, unseen) > loglik_per_frame(mono, unseen) + 0.1
    assert word_errors(tri, unseen) <= word_errors(mono, unseen) <= 2


def test_each_phone_has_its_own_states_and_silence_is_not_split(trained):
    mono, tri, _ = trained
    root_of_phone = [next(i for i, root in enumerate(tri.lang.phone_roots) if p in root) for p in tri.phones]
    owners = {(pdf, root_of_phone[phone - 1], state) for phone, state, pdf, _ in tri.state_of_tid[1:].tolist()}
    assert len(owners) == tri.num_pdfs, "a pdf is one state of all positions of one phone"
    assert tri.sil_pdfs == mono.sil_pdfs == [0, 1, 2]


def test_alignment_finds_the_phones_as_monophones_do(trained):
    """Boundaries within 20 ms, the measure of monophones, on unseen utterances whose phones are known to the frame."""
    mono, tri, _ = trained
    unseen = synthesize(mono.lang, 25, seed=4)
    items, shares = [u[:3] for u in unseen], []
    truth = {u[0]: boundaries.segments_of_frames(u[3], mono.phones) for u in unseen}
    for model in (mono, tri):
        aligned = {utt_id: phone for utt_id, _, phone, _ in align_utterances(model, model.lang, items)}
        report = boundaries.compare(aligned, model.phones, truth)
        assert report.agreeing_share == 1.0
        shares.append(report.share_within(20.0))
    assert shares[1] >= shares[0] > 0.85


def test_same_seed_same_triphones(trained):
    mono, tri, utterances = trained
    items = [u[:3] for u in utterances]
    assert train_tri(mono, items, options=TRI, seed=3).digest == tri.digest
    assert train_tri(mono, items, options=TRI, seed=4).digest != tri.digest


def test_alignment_of_monophones_in_triphones(trained):
    """Converted transition-ids keep phone, state and kind of transition, and make a path of the new model."""
    mono, tri, utterances = trained
    corpus = TrainingSet.from_items([u[:3] for u in utterances[:8]])
    compiler, other = GraphCompiler(mono, mono.lang), GraphCompiler(tri, tri.lang)
    graphs = [compiler.compile(utt_id, words) for utt_id, _, words in corpus.items]
    alignment = realign(mono, corpus, graphs, MONO)
    alignment[: corpus.lengths[0]] = 0  # an utterance that failed
    events = frame_events(mono, alignment, corpus.lengths, [1])
    converted = convert_alignment(mono, tri, alignment, events)
    assert (converted[: corpus.lengths[0]] == 0).all()
    used = alignment > 0
    np.testing.assert_array_equal(
        mono.state_of_tid[alignment[used]][:, [0, 1, 3]], tri.state_of_tid[converted[used]][:, [0, 1, 3]]
    )
    first = int(corpus.lengths[0])
    for (utt_id, feats, words), length in zip(corpus.items[1:], corpus.lengths[1:], strict=True):
        tids = converted[first : first + length]
        best = align_graph(tri, _only(other.compile(utt_id, words), tids, tri), utt_id, feats, AlignOptions())
        assert best is not None, "the converted alignment is a path of the triphone graph"
        first += int(length)


def _only(graph: object, tids: np.ndarray, model: HmmModel) -> object:
    """The part of a training graph that the sequence of transition-ids can take."""
    fst = wheels.kaldi().fst
    line = "".join(f"{i} {i + 1} {t} {t}\n" for i, t in enumerate(tids.tolist())) + f"{len(tids)}\n"
    path = fst.compile(line, acceptor=False)
    fst.arcsort(graph, sort_type="ilabel")
    return fst.compose(path, graph)


def test_neighbours_of_frames():
    """Words "two", then "lit": events by hand, from transition-ids of three frames a state."""
    lang = Lang(LEXICON)
    model = train_mono(
        lang,
        [u[:3] for u in synthesize(lang, 10, seed=1)],
        options=MonoOptions(num_iters=2, total_gauss=1, realign_iters=()),
        seed=0,
    )
    ids, state_of_tid = lang.phone_id, model.state_of_tid

    def tids(phone: str) -> list[int]:
        found = []
        for state in range(3):
            mine = [t for t in range(1, len(state_of_tid)) if tuple(state_of_tid[t, :2]) == (ids[phone], state)]
            loop = next(t for t in mine if model.transition_model.is_self_loop(t))
            found += [next(t for t in mine if t != loop), loop, loop]  # reorder: the way out comes before the loops
        return found

    first, second = ["T", "T", "UW"], ["L", "SIL", "IH"]
    alignment = np.concatenate([*(tids(p) for p in first), np.zeros(4, int), *(tids(p) for p in second)])
    events = frame_events(model, alignment, np.array([27, 4, 27]), context_free=[ids["SIL"]])
    expected = [(0, "T", "T"), ("T", "T", "UW"), ("T", "UW", 0), None, (0, "L", "SIL"), (0, "SIL", 0), ("SIL", "IH", 0)]
    assert [tuple(e) for e in events[[0, 9, 18, 27, 31, 40, 49], :3].tolist()] == [
        (0, 0, 0) if e is None else tuple(ids.get(p, 0) for p in e) for e in expected
    ]
    assert events[:9, 3].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(("acwt", "penalty"), [(0.1, 0.0), (1.0, 3.0)])
def test_triphone_graph_has_no_search_errors(trained, acwt, penalty):
    _, tri, utterances = trained
    graph = make_graph(tri, tri.lang, [["two", "two", "tool"], ["lit"]])
    stack, rng = GmmStack(tri.gmms), np.random.default_rng(7)
    logliks = [stack.logliks(u[1]) for u in utterances[:4]]
    logliks += [rng.normal(0, 8, (n, tri.num_pdfs)).astype(np.float32) for n in (1, 5, 40, 120)]
    assert check_search(graph, logliks, acwt=acwt, insertion_penalty=penalty) < 1e-3
    for loglik in logliks:
        assert (
            Decoder(graph, acwt=acwt, insertion_penalty=penalty).decode(loglik).words
            == exact_best_path(graph, loglik, acwt, penalty)[1]
        )


def test_triphone_graph_scores_a_transcript_as_its_training_graph_does(trained):
    """Two ways to the same states: HCLG by composition with C, and the compiler of training graphs, word by word."""
    _, tri, utterances = trained
    stack, compiler = GmmStack(tri.gmms), GraphCompiler(tri, tri.lang)
    decoder = Decoder(make_graph(tri, tri.lang, None), acwt=0.1, beam=100)
    for utt_id, feats, _, _ in utterances[:6]:
        decoded = decoder.decode(stack.logliks(feats))
        tids = align_graph(
            tri, compiler.compile(utt_id, decoded.words), utt_id, feats, AlignOptions(beam=200, retry_beam=400)
        )
        np.testing.assert_array_equal(tri.t2pdf[tids], decoded.pdfs)


def test_saved_triphones_and_graph_are_read_alike(trained, tmp_path):
    _, tri, utterances = trained
    tri.save(tmp_path / "hmm")
    loaded = HmmModel.load(tmp_path / "hmm")
    assert loaded.digest == tri.digest
    items = [u[:3] for u in utterances[:5]]
    for a, b in zip(align_utterances(tri, tri.lang, items), align_utterances(loaded, loaded.lang, items), strict=True):
        np.testing.assert_array_equal(a[1], b[1])
    graph = make_graph(loaded, loaded.lang, None)
    graph.save(tmp_path / "graph")
    assert Graph.load(tmp_path / "graph").digest == graph.digest
    tree = tmp_path / "hmm" / "tree"
    tree.write_bytes(tree.read_bytes()[:-30])
    with pytest.raises(AsrKdError):
        HmmModel.load(tmp_path / "hmm")


# --- files


def hmm_config(**values: object) -> HmmConfig:
    small = {"gmm_num_iters": 4, "gmm_total_gauss": 25, "tri_num_iters": 3, "tri_total_gauss": 50}
    small |= {"gmm_context": "triphone", "tree_min_count": 25, "tree_min_gain": 30}
    return resolve(HmmConfig, {**small, **values})


@pytest.fixture
def inputs(tmp_path) -> tuple[Path, Path, Path]:
    """mfcc.h5, a data directory and lexicon.txt; one utterance of thirty has no room for its words."""
    utterances = synthesize(Lang(LEXICON), 30, seed=6)
    (tmp_path / "a.wav").write_bytes(b"")
    recording = Recording("a", str(tmp_path / "a.wav"))
    write_data_dir(tmp_path / "data", [Utterance(f"s-{u[0]}", "s", recording, words=u[2]) for u in utterances])
    write_lexicon(tmp_path / "lexicon.txt", LEXICON)
    with FeatsWriter(tmp_path / "mfcc.h5", kind="mfcc", options=MfccOptions(num_ceps=DIM), sample_rate=16000) as writer:
        for utt_id, feats, _, _ in utterances:
            writer.append(f"s-{utt_id}", "s", feats[: 5 if utt_id == "utt007" else None])
    return tmp_path / "mfcc.h5", tmp_path / "data", tmp_path / "lexicon.txt"


def test_train_triphones_from_files_and_go_on_after_a_kill(inputs, tmp_path, monkeypatch):
    lines: list[str] = []
    out = tmp_path / "exp" / "hmm"
    monkeypatch.setattr(steps, "train_tri", lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        steps.train_hmm(*inputs, out, hmm_config(), lines.append)
    monkeypatch.undo()
    assert not out.exists()
    assert any("not aligned and left out: 1 utterances, s-utt007" in line for line in lines)
    lines.clear()
    model = steps.train_hmm(*inputs, out, hmm_config(), lines.append)
    assert f"{out}_mono: monophones are up to date" in lines
    assert not any("flat start" in line for line in lines)
    assert model.digest == steps.train_hmm(*inputs, tmp_path / "again" / "hmm", hmm_config()).digest
    assert model.num_pdfs > HmmModel.load(f"{out}_mono").num_pdfs
    steps.train_hmm(*inputs, out, hmm_config(gmm_total_gauss=30), lines.append)
    assert any("flat start" in line for line in lines), "monophones of another configuration are made again"


def test_files_of_triphones(inputs, tmp_path):
    mfcc, data, _ = inputs
    model = steps.train_hmm(*inputs, tmp_path / "hmm", hmm_config(tri_realign_iters=[2]))
    assert steps.align(mfcc, data, tmp_path / "hmm", tmp_path / "ali.h5") == ["s-utt007"]
    ali = AliReader(tmp_path / "ali.h5")
    assert (ali.num_pdfs, ali.model_digest) == (model.num_pdfs, model.digest)
    assert ali.failed_utt_ids == ["s-utt007"]
    assert model.options["realign_iters"] == (2,)
    report, mono = (check_likelihood(tmp_path / name, mfcc, data) for name in ("hmm", "hmm_mono"))
    assert report.failed == ["s-utt007"]
    assert report.num_frames == mono.num_frames == (ali.pdf >= 0).sum()
    assert report.loglik_per_frame > mono.loglik_per_frame
    assert f"{model.num_pdfs} states" in str(report)


def test_more_failures_than_accepted_and_unknown_values_are_errors(inputs, tmp_path):
    with pytest.raises(AsrKdError, match=r"1 of 30 utterances .* 's-utt007'\), more than the 1 % that are accepted"):
        steps.train_hmm(*inputs, tmp_path / "hmm", hmm_config(gmm_max_failed_share=0.01))
    with pytest.raises(AsrKdError, match="gmm_context is 'biphone', but should be mono or triphone"):
        hmm_config(gmm_context="biphone")
    with pytest.raises(AsrKdError, match="tree_questions is 'few', but should be clustered or all"):
        hmm_config(tree_questions="few")
    assert not list(tmp_path.glob("hmm*"))


def test_check_hmm_prints_likelihood_and_wer(inputs, tmp_path):
    mfcc, data, _ = inputs
    steps.train_hmm(*inputs, tmp_path / "hmm", hmm_config(gmm_context="mono"))
    command = ["check-hmm", "--feats", mfcc, "--data", data, "--hmm", tmp_path / "hmm", "--train-data", data]
    run = subprocess.run(
        [sys.executable, "-m", "asr_kd.cli", *map(str, command)], capture_output=True, text=True, check=True
    )
    assert "15 states, 26 Gaussians: log-likelihood -" in run.stdout
    assert "WER " in run.stdout
    assert "s-utt007 could not be aligned" in run.stderr
