"""What Kaldi reads of ours: tables against Kaldi's own table code, nets of nnet1 against an evaluator of their text."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_up_nets import expected_log_post, make_net

from asr_kd.cli import main
from asr_kd.errors import AsrKdError
from asr_kd.kaldi_tables import alignments
from asr_kd.nnet.net_dir import TrainedNet, load_net
from asr_kd.nnet.priors import count_pdfs, read_decoding_priors, write_counts
from asr_kd.scoring.set_posteriors import SetPosteriors
from asr_kd.store.ali import AliReader, write_ali
from asr_kd.store.feats import FeatsReader
from asr_kd.store.hdf5 import Layout
from asr_kd.store.kaldi_ark import read_int_vectors, read_matrices, write_int_vectors, write_matrices
from asr_kd.store.kaldi_posterior import Posterior, generator_of, rand_prune, write_posteriors
from asr_kd.store.targets import TargetsReader, stream_targets, write_targets

native_io = pytest.importorskip("kaldi_native_io")  # Kaldi's table code in a wheel; it knows Posteriors
IN_ONE_FOLDER = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read_by_pydrobert(rspecifier: str, kind: str) -> dict:
    """What Kaldi's own table code makes of a table, by key; kind: fm (float matrices) or iv (int32 vectors)."""
    with pytest.importorskip("pydrobert.kaldi.io").open(rspecifier, kind) as table:
        return {key: np.array(value) for key, value in table.items()}


def run(*argv: object) -> int:
    return main([str(arg) for arg in argv])


@pytest.fixture
def nets(toy, tmp_path) -> list[TrainedNet]:
    return [make_net(tmp_path / f"net{seed}", toy, seed) for seed in (1, 2)]


# --- Posteriors

weights = st.floats(0, 1, width=32)
posteriors = st.lists(st.lists(st.tuples(st.integers(0, 2**31 - 1), weights), max_size=4), max_size=5)


def flat(frames: list[list[tuple[int, float]]]) -> Posterior:
    entries = [entry for frame in frames for entry in frame]
    offset = np.concatenate([[0], np.cumsum([len(frame) for frame in frames])]).astype(np.int64)
    return Posterior(
        offset, np.array([pdf for pdf, _ in entries], np.int64), np.array([w for _, w in entries], np.float32)
    )


@IN_ONE_FOLDER
@given(items=st.dictionaries(st.text("ab-_ä0", min_size=1), posteriors, min_size=1, max_size=4), text=st.booleans())
def test_kaldi_reads_posteriors_and_writes_the_same_bytes(tmp_path, items, text):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    kind = "ark,t" if text else "ark"
    assert write_posteriors(f"{kind}:{ours}", ((key, flat(frames)) for key, frames in items.items())) == len(items)
    found = dict(native_io.SequentialPosteriorReader(f"ark:{ours}"))
    assert list(found) == list(items)
    for key, frames in items.items():
        assert [list(frame) for frame in found[key]] == frames
    if not text:  # in text Kaldi writes fewer digits, so that its own float32 come back changed
        with native_io.PosteriorWriter(f"ark:{theirs}") as writer:
            for key, frames in items.items():
                writer.write(key, frames)
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_script_points_to_posteriors(tmp_path):
    items = {f"u{i}": [[(i, 0.5), (7, 0.25)], []] for i in range(3)}
    write_posteriors(
        f"ark,scp:{tmp_path}/p.ark,{tmp_path}/p.scp", ((key, flat(frames)) for key, frames in items.items())
    )
    reader = native_io.RandomAccessPosteriorReader(f"scp:{tmp_path}/p.scp")
    assert [list(frame) for frame in reader["u2"]] == items["u2"]


@pytest.mark.parametrize(
    ("posterior", "message"),
    [
        (Posterior(np.array([0, 2]), np.array([1]), np.ones(1, np.float32)), "do not divide"),
        (Posterior(np.array([0, 2, 1]), np.array([1]), np.ones(1, np.float32)), "do not divide"),
        (Posterior(np.array([0, 1]), np.array([-1]), np.ones(1, np.float32)), "whole numbers from 0"),
        (Posterior(np.array([0, 1]), np.array([0.5]), np.ones(1, np.float32)), "whole numbers from 0"),
        (Posterior(np.array([0, 1]), np.array([1]), np.array([np.nan], np.float32)), "not finite"),
    ],
)
def test_what_is_no_posterior_is_refused_and_leaves_nothing(tmp_path, posterior, message):
    with pytest.raises(AsrKdError, match=rf"'bad' was not written: .*{message}"):
        write_posteriors(f"ark:{tmp_path}/p.ark", [("good", flat([[(1, 1.0)]])), ("bad", posterior)])
    assert list(tmp_path.iterdir()) == []


class Rolls:
    """In place of a random generator: what it draws is given."""

    def __init__(self, values: list[float]):
        self.values = values

    def random(self, size: int) -> np.ndarray:
        assert size == len(self.values)
        return np.array(self.values)


def test_each_branch_of_rand_prune():
    weight = np.array([[0.0, 0.1, 0.5], [0.025, 0.025, 0.099]], np.float32)
    # Draws are for what lies between 0 and 0.1 alone: below a quarter, at or above a quarter, below 0.99.
    found = rand_prune(weight, 0.1, Rolls([0.2499, 0.2501, 0.98]))
    np.testing.assert_array_equal(found, np.array([[0.0, 0.1, 0.5], [0.1, 0.0, 0.1]], np.float32))
    np.testing.assert_array_equal(rand_prune(weight, 0.0, Rolls([])), weight)


def test_rand_prune_keeps_expectations():
    """The mean of n draws of a·Bernoulli(w/a) lies within 6 of its deviations; the seed is fixed."""
    rng, min_post, num_draws = np.random.default_rng(3), 0.05, 4000
    weight = np.concatenate([rng.uniform(0, 0.05, 20), rng.uniform(0.05, 1, 5)]).astype(np.float32)
    mean = np.mean([rand_prune(weight, min_post, rng) for _ in range(num_draws)], axis=0, dtype=np.float64)
    deviation = np.sqrt(np.maximum(weight * (min_post - weight), 0.0) / num_draws)
    assert (np.abs(mean - weight) <= 6 * deviation + 1e-6).all()


# --- export-kaldi post


def read_posteriors(path: Path, num_pdfs: int) -> dict[str, np.ndarray]:
    """By Kaldi's code, as dense matrices."""
    found = {}
    for key, frames in native_io.SequentialPosteriorReader(f"ark:{path}"):
        found[key] = np.zeros((len(frames), num_pdfs), np.float32)
        for row, frame in zip(found[key], frames, strict=True):
            for pdf, weight in frame:
                row[pdf] += weight
    return found


def test_posteriors_of_nets_are_their_softmax_and_the_same_for_a_seed(toy, nets, tmp_path):
    argv = ["export-kaldi", "post", "--nets", tmp_path / "net1", tmp_path / "net2", "--feats", toy["feats"]]
    argv += ["--combination", "geometric", "--temperature", 2, "--device", "cpu", "--precision", "float32"]
    assert run(*argv, "--min-post", 0, "--out", f"ark:{tmp_path}/all.ark") == 0
    layout, log_post = expected_log_post(nets, toy["feats"], temperature=2.0, combination="geometric")
    every = read_posteriors(tmp_path / "all.ark", 6)
    assert tuple(every) == layout.utt_ids
    for utt_id, found in every.items():
        np.testing.assert_allclose(found, np.exp(log_post[layout.rows(utt_id)]), rtol=1e-5)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(*argv, "--min-post", 0.2, "--seed", seed, "--out", f"ark:{tmp_path}/{name}.ark") == 0
    contents = [(tmp_path / f"{name}.ark").read_bytes() for name in "abc"]
    assert contents[0] == contents[1] != contents[2]
    for utt_id, found in read_posteriors(tmp_path / "a.ark", 6).items():
        small = every[utt_id] < 0.2
        np.testing.assert_array_equal(found[~small], every[utt_id][~small])
        assert set(np.unique(found[small])) <= {np.float32(0), np.float32(0.2)}
        expected = rand_prune(every[utt_id], 0.2, generator_of(1, utt_id))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("top_k", [None, 3])
def test_posteriors_of_stored_targets_sum_to_one(toy, nets, tmp_path, top_k, capsys):
    kept = [] if top_k is None else ["--top-k", top_k]
    argv = ["--teachers", tmp_path / "net1", "--feats", toy["feats"], "--out", tmp_path / "targets.h5", *kept]
    assert run("soft-targets", *argv, "--device", "cpu") == 0
    argv = ["export-kaldi", "post", "--targets", tmp_path / "targets.h5", "--out", f"ark:{tmp_path}/post.ark"]
    assert run(*argv, "--min-post", 0) == 0
    assert ("% of the mass" in capsys.readouterr().err) == (top_k is not None)
    targets = TargetsReader(tmp_path / "targets.h5")
    prob = targets.prob.astype(np.float32)
    prob /= prob.sum(axis=1, keepdims=True)
    pdf = np.broadcast_to(np.arange(6), prob.shape) if targets.pdf is None else targets.pdf
    for utt_id, found in read_posteriors(tmp_path / "post.ark", 6).items():
        rows = targets.layout.rows(utt_id)
        np.testing.assert_array_equal(np.take_along_axis(found, pdf[rows].astype(np.int64), axis=1), prob[rows])
        np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-5)


def test_streamed_targets_are_those_of_the_reader_and_damage_leaves_no_table(tmp_path, capsys):
    layout, rng = Layout.from_lengths(["a", "b"], [4, 3]), np.random.default_rng(0)
    arrays = {"prob": rng.uniform(size=(7, 2)), "pdf": rng.integers(0, 5, (7, 2)), "tail": rng.uniform(size=7)}
    attributes = {"temperature": 1.0, "mean": "arithmetic", "members": ["x"], "content_digest": "", "model_digest": ""}
    path = tmp_path / "targets.h5"
    write_targets(path, layout, [(slice(0, 7), arrays)], num_pdfs=5, top_k=2, attributes=attributes)
    reader = TargetsReader(path)
    for utt in stream_targets(path):
        for name in ("prob", "pdf", "tail"):
            np.testing.assert_array_equal(getattr(utt, name), getattr(reader, name)[layout.rows(utt.utt_id)])
    content = path.read_bytes()
    at = content.index(reader.prob.tobytes())
    path.write_bytes(content[:at] + bytes(2) + content[at + 2 :])
    assert run("export-kaldi", "post", "--targets", path, "--out", f"ark:{tmp_path}/post.ark") == 1
    assert "not those of its values_digest" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["targets.h5"]


# --- export-kaldi loglik, log-post


def test_kaldi_reads_log_likelihoods(toy, nets, tmp_path):
    ali, counts, table = AliReader(toy["ali"]), tmp_path / "counts", f"{tmp_path}/l.ark,{tmp_path}/l.scp"
    write_counts(counts, np.where(np.arange(6) == 4, 0, count_pdfs(ali.pdf, 6)))
    argv = ["--nets", tmp_path / "net1", tmp_path / "net2", "--feats", toy["dev_feats"], "--device", "cpu"]
    argv += ["--precision", "float32"]
    assert run("export-kaldi", "loglik", *argv, "--counts", counts, "--out", f"ark,scp:{table}") == 0
    assert run("export-kaldi", "log-post", *argv, "--out", f"ark,t:{tmp_path}/p.ark") == 0
    layout, log_post = expected_log_post(nets, toy["dev_feats"])
    log_priors = read_decoding_priors(counts, 1e-5, 6)
    found = read_by_pydrobert(f"scp:{tmp_path}/l.scp", "fm")
    found_post = read_by_pydrobert(f"ark:{tmp_path}/p.ark", "fm")
    assert tuple(found) == tuple(found_post) == layout.utt_ids
    for utt_id in layout.utt_ids:
        expected = log_post[layout.rows(utt_id)]
        np.testing.assert_allclose(found_post[utt_id], expected, atol=1e-5)
        np.testing.assert_allclose(found[utt_id], expected - log_priors, atol=2e-3)  # a float32 at 1e4
        assert (found[utt_id][:, 4] < -9000).all(), "a state that training never saw is never decoded"
        np.testing.assert_allclose(found[utt_id][:, :4], (expected - log_priors)[:, :4], atol=1e-5)


def test_utterances_come_out_alike_in_blocks_of_any_size(toy, nets, tmp_path, monkeypatch):
    for number, frames in enumerate((1, 50, 1 << 16)):
        monkeypatch.setattr("asr_kd.scoring.set_posteriors.MAX_POSTERIORS", 6 * frames)
        argv = ["--nets", tmp_path / "net1", "--feats", toy["feats"], "--device", "cpu", "--precision", "float32"]
        assert run("export-kaldi", "log-post", *argv, "--out", f"ark:{tmp_path}/{number}.ark") == 0
    tables = [dict(read_matrices(f"{tmp_path}/{number}.ark")) for number in range(3)]
    for utt_id in tables[2]:
        for table in tables[:2]:
            np.testing.assert_allclose(table[utt_id], tables[2][utt_id], atol=1e-6)
    some = [*list(tables[2])[3:0:-1], *list(tables[2])[5:7]]  # neighbours and others
    net, reader = load_net(tmp_path / "net1"), FeatsReader(toy["feats"])
    asked = list(SetPosteriors([net], reader, "arithmetic", torch.device("cpu")).of(some))
    assert [utt_id for utt_id, _ in asked] == some
    for utt_id, log_post in asked:
        np.testing.assert_allclose(log_post, tables[2][utt_id], atol=1e-6)


def test_a_table_is_made_again_only_if_it_must(toy, nets, tmp_path, capsys):
    argv = ["export-kaldi", "log-post", "--nets", tmp_path / "net1", "--feats", toy["dev_feats"], "--device", "cpu"]
    argv += ["--out", f"ark,scp:{tmp_path}/a.ark,{tmp_path}/a.scp"]

    def up_to_date() -> bool:
        assert run(*argv) == 0
        return "up to date" in capsys.readouterr().err

    assert [up_to_date(), up_to_date()] == [False, True]
    (tmp_path / "a.scp").unlink()
    assert [up_to_date(), up_to_date()] == [False, True]
    argv += ["--compression-method", 2]
    assert not up_to_date()
    assert (tmp_path / "a.scp").is_file()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["loglik", "--nets", "net", "--feats", "f.h5"], "loglik is made from --nets and --feats and --counts"),
        (["post", "--ali", "a.h5"], "post is made from --nets and --feats, or from --targets"),
        (["ali", "--ali", "a.h5", "--seed", 1], "--seed is for post only"),
        (["pdf", "--ali", "a.h5", "--temperature", 2], "--temperature is for post only"),
        (["post", "--targets", "t.h5", "--compression-method", 2], "--compression-method is for loglik and log-post"),
        (["post", "--targets", "t.h5", "--temperature", 2], "t.h5 has that of asr-kd soft-targets"),
        (["post", "--nets", "net", "--feats", "f.h5", "--temperature", 0], "--temperature 0: must be above 0"),
        (["post", "--targets", "t.h5", "--min-post", 2], "--min-post 2: must be from 0 to 1"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(tmp_path, capsys, argv, message):
    assert run("export-kaldi", *argv, "--out", f"ark:{tmp_path}/x.ark") == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_counts_of_other_states_are_refused(toy, nets, tmp_path, capsys):
    write_counts(tmp_path / "counts", np.ones(5))
    argv = ["--nets", tmp_path / "net1", "--feats", toy["feats"], "--counts", tmp_path / "counts", "--device", "cpu"]
    assert run("export-kaldi", "loglik", *argv, "--out", f"ark:{tmp_path}/x.ark") == 1
    assert "counts of 5 states" in capsys.readouterr().err
    assert not (tmp_path / "x.ark").exists()


# --- export-kaldi ali, pdf


@IN_ONE_FOLDER
@given(data=st.data(), text=st.booleans())
def test_kaldi_reads_alignments(tmp_path, data, text):
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    layout = Layout.from_lengths([f"u{i}" for i in range(len(lengths))], lengths)
    tid = np.array(data.draw(st.lists(st.integers(1, 2**31 - 1), min_size=sum(lengths), max_size=sum(lengths))))
    failed = np.repeat(data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths))), lengths)
    tid, pdf = np.where(failed, -1, tid), np.where(failed, -1, tid % 7)
    write_ali(tmp_path / "ali.h5", layout, pdf, num_pdfs=7, model_digest="m", sil_pdfs=[], tid=tid)
    for transition_ids, values in ((True, tid), (False, pdf)):
        utts = alignments(AliReader(tmp_path / "ali.h5"), transition_ids=transition_ids)
        write_int_vectors(f"ark{',t' * text}:{tmp_path}/ali.ark", utts)
        found = read_by_pydrobert(f"ark:{tmp_path}/ali.ark", "iv")
        assert list(found) == [u for u in layout.utt_ids if not failed[layout.rows(u)][0]]
        for utt_id, vector in found.items():
            assert list(vector) == values[layout.rows(utt_id)].tolist()


def test_archives_of_kaldis_scripts_are_compressed(toy, tmp_path, capsys):
    """ali.1.gz, as steps/nnet/train.sh reads it."""
    ali, made = AliReader(toy["ali"]), tmp_path / "ali.h5"
    failed = np.arange(ali.layout.num_frames) < ali.layout.lengths[0]
    tid, pdf = np.where(failed, -1, 2 * ali.pdf + 1), np.where(failed, -1, ali.pdf)
    write_ali(made, ali.layout, pdf, num_pdfs=6, model_digest="toy", sil_pdfs=[], tid=tid)
    assert run("export-kaldi", "ali", "--ali", made, "--out", f"ark:{tmp_path}/ali.1.gz") == 0
    assert "1 utterances have no alignment" in capsys.readouterr().err
    found = read_by_pydrobert(f"ark:gunzip -c {tmp_path}/ali.1.gz|", "iv")
    assert tuple(found) == ali.layout.utt_ids[1:]
    assert np.concatenate(list(found.values())).tolist() == tid[~failed].tolist()


def test_states_without_transition_ids_are_no_alignment_of_kaldi(toy, tmp_path, capsys):
    assert run("export-kaldi", "ali", "--ali", toy["ali"], "--out", f"ark:{tmp_path}/ali.1.gz") == 1
    assert "no transition-ids" in capsys.readouterr().err
    assert run("export-kaldi", "pdf", "--ali", toy["ali"], "--out", f"ark:{tmp_path}/pdf.1.gz") == 0
    ali = AliReader(toy["ali"])
    found = np.concatenate([vector for _, vector in read_int_vectors(f"ark:{tmp_path}/pdf.1.gz")])
    np.testing.assert_array_equal(found, ali.pdf)


# --- the other tables that are written


@IN_ONE_FOLDER
@given(data=st.data(), text=st.booleans(), method=st.integers(0, 7))
def test_pydrobert_reads_matrices_and_whole_numbers(tmp_path, data, text, method):
    """Values of Kaldi's features; compression is compared with Kaldi's to the byte elsewhere."""
    num_rows, num_cols = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
    matrix = np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=(num_rows, num_cols)).astype(np.float32)
    kind, method = ("ark,t", 0) if text else ("ark", method)
    write_matrices(f"{kind}:{tmp_path}/m.ark", [("u", matrix)], method)
    ((_, ours),) = read_matrices(f"{tmp_path}/m.ark")
    np.testing.assert_allclose(read_by_pydrobert(f"ark:{tmp_path}/m.ark", "fm")["u"], ours, rtol=1e-6)
    numbers = data.draw(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=9))
    write_int_vectors(f"{kind}:{tmp_path}/i.ark", [("u", np.array(numbers, np.int64))])
    assert read_by_pydrobert(f"ark:{tmp_path}/i.ark", "iv")["u"].tolist() == numbers


# --- nnet1


def components(path: Path) -> Iterator[tuple[str, int, int, list[str]]]:
    """The components of a net of nnet1 as text, read as Kaldi does: tokens apart from each other by white space."""
    tokens = iter(path.read_text().split())
    assert next(tokens) == "<Nnet>"
    while (name := next(tokens)) != "</Nnet>":
        dim_out, dim_in, body = int(next(tokens)), int(next(tokens)), []
        while (token := next(tokens)) != "<!EndOfComponent>":
            body.append(token)
        yield name, dim_out, dim_in, body
    assert next(tokens, None) is None


def vectors(body: list[str]) -> list[np.ndarray]:
    """What stands in brackets."""
    return [np.array(part.split(), np.float64) for part in re.findall(r"\[([^]]*)\]", " ".join(body))]


def evaluate(path: Path, x: np.ndarray) -> np.ndarray:
    """nnet-forward on one utterance, x (num_frames, dim), in double precision."""
    for name, dim_out, dim_in, body in components(path):
        assert x.shape[1] == dim_in
        first, *others = vectors(body) or [None]
        if name == "<Splice>":  # cu::Splice: rows beyond the ends are the first and last
            rows = np.clip(np.arange(len(x))[:, None] + first.astype(int), 0, len(x) - 1)
            x = x[rows].reshape(len(x), -1)
        elif name == "<AddShift>":
            x = x + first
        elif name == "<Rescale>":
            x = x * first
        elif name == "<AffineTransform>":
            x = x @ first.reshape(dim_out, dim_in).T + others[0]
        elif name == "<ParametricRelu>":
            assert body[:6] == ["<BiasLearnRateCoef>", "0", "<LearnRateCoef>", "0", "<ClipGradient>", "0"]
            x = np.where(x >= 0, x * first, x * others[0])
        elif name == "<Softmax>":
            x = np.exp(x - x.max(axis=1, keepdims=True))
            x /= x.sum(axis=1, keepdims=True)
        else:
            raise AssertionError(f"nnet1 has no {name}")
        assert x.shape[1] == dim_out
    return x


@pytest.mark.parametrize("cmvn", ["global", "none", "utterance"])
def test_the_text_of_nnet1_computes_the_nets_posteriors(toy, tmp_path, cmvn):
    trained = make_net(tmp_path / "net", toy, 5, cmvn)
    assert run("export", "--format", "nnet1", "--nets", tmp_path / "net", "--out", tmp_path / "nnet1") == 0
    layout, log_post = expected_log_post([trained], toy["dev_feats"])
    reader = FeatsReader(toy["dev_feats"])
    opts = tmp_path / "nnet1" / "cmvn_opts"
    assert opts.is_file() == (cmvn == "utterance")
    for utt_id in layout.utt_ids:
        feats = reader[utt_id].astype(np.float64)
        if cmvn == "utterance":  # what apply-cmvn does with these options
            assert opts.read_text().split() == ["--norm-means=true", "--norm-vars=true"]
            feats = (feats - feats.mean(axis=0)) / feats.std(axis=0)
        found = evaluate(tmp_path / "nnet1/final.nnet", evaluate(tmp_path / "nnet1/final.feature_transform", feats))
        np.testing.assert_allclose(np.log(found), log_post[layout.rows(utt_id)], atol=1e-4)


def test_every_weight_is_in_the_text_to_the_last_bit(toy, tmp_path):
    trained = make_net(tmp_path / "net", toy, 5)
    assert run("export", "--format", "nnet1", "--nets", tmp_path / "net", "--out", tmp_path / "nnet1") == 0
    affine = [vectors(body) for name, _, _, body in components(tmp_path / "nnet1/final.nnet") if "Affine" in name]
    for layer, (weight, bias) in zip(trained.net.linear, affine, strict=True):
        np.testing.assert_array_equal(weight.astype(np.float32), layer.weight.detach().numpy().ravel())
        np.testing.assert_array_equal(bias.astype(np.float32), layer.bias.detach().numpy())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--format", "nnet1", "--nets", "net1", "net2"], "nnet1 holds one net"),
        (["--format", "nnet1", "--nets", "net1", "--graph", "g"], "--graph is not for --format nnet1"),
        (["--format", "onnx", "--nets", "net1", "--counts", "c"], "--counts is not for --format onnx"),
        (["--nets", "net1", "--hmm", "h", "--graph", "g", "--counts", "c"], "needs --scales or --acwt"),
        (["--nets", "net1", "--acwt", "0.1", "--scales", "s"], "--scales or --acwt, not both"),
        (["--nets", "net1", "--acwt", "0.1", "--graph", "g", "--counts", "c"], "model-dir needs --hmm"),
        (["--format", "nnet1", "--nets", "net1", "--counts", "five"], "counts of 5 states, but the net has 6"),
    ],
)
def test_exports_take_what_is_theirs(nets, tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    write_counts("five", np.ones(5))
    assert run("export", *argv, "--out", "out") == 1
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_folder_of_something_else_is_not_replaced(nets, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    assert run("export", "--format", "nnet1", "--nets", tmp_path / "net1", "--out", tmp_path / "mine") == 1
    assert "holds something else than what would replace it" in capsys.readouterr().err
    assert (tmp_path / "mine/letter.txt").read_text() == "dear"
