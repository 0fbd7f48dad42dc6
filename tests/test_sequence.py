"""Soft targets in the light of their utterance: against all paths, one by one."""

import itertools

import h5py
import numpy as np
import pytest
import torch

from asr_kd.cli import main
from asr_kd.distill.sequence import StateBigram, smoothed, state_posteriors, whole_utterances
from asr_kd.errors import AsrKdError
from asr_kd.inspection import describe
from asr_kd.nnet.net_dir import load_card
from asr_kd.store.ali import FAILED, AliReader, write_ali
from asr_kd.store.hdf5 import Layout
from asr_kd.store.targets import TargetsReader, write_targets

SMALL = ["--hidden-dim", 16, "--num-hidden-layers", 1, "--left-context", 3, "--right-context", 1, "--batch-size", 64]
SMALL += ["--warmup-steps", 5, "--device", "cpu", "--precision", "float32", "--learning-rate", 0.01, "--num-epochs", 2]

NUM_PDFS = 3
# One frame, none that follow; longer ones in any order.
LENGTHS = [2, 5, 1, 4, 5]


def run(*argv):
    assert main([str(arg) for arg in argv]) == 0


def layout_of(lengths):
    ids = [f"utt{number}" for number in range(len(lengths))]
    return Layout.from_lengths(ids, lengths, frame_shift_ms=10.0, snip_edges=True)


def random_bigram(rng):
    first, last, prior = (rng.random(NUM_PDFS) + 0.1 for _ in range(3))
    then = rng.random((NUM_PDFS, NUM_PDFS)) + 0.1
    parts = first / first.sum(), then, last, prior / prior.sum()
    return StateBigram(*(torch.from_numpy(part).float() for part in parts))


def by_enumeration(likelihoods, bigram):
    """P(state of each frame | all frames): the sum over all paths that pass through it."""
    first, then, last = (part.double().numpy() for part in (bigram.first, bigram.then, bigram.last))
    found = np.zeros(likelihoods.shape)
    frames = np.arange(len(likelihoods))
    for path in itertools.product(range(NUM_PDFS), repeat=len(frames)):
        path = np.array(path)
        weight = first[path[0]] * then[path[:-1], path[1:]].prod() * last[path[-1]] * likelihoods[frames, path].prod()
        found[frames, path] += weight
    return found / found.sum(axis=1, keepdims=True)


def test_posteriors_are_those_of_all_paths_together():
    rng = np.random.default_rng(1)
    bigram, likelihoods = random_bigram(rng), rng.random((sum(LENGTHS), NUM_PDFS)) + 1e-3
    found = state_posteriors(torch.from_numpy(likelihoods).float(), LENGTHS, bigram).numpy()
    ends = np.cumsum(LENGTHS)
    for begin, end in zip(ends - LENGTHS, ends, strict=True):
        np.testing.assert_allclose(found[begin:end], by_enumeration(likelihoods[begin:end], bigram), atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_smoothed_targets_are_the_weighted_mean_of_both_at_their_temperature(temperature):
    rng = np.random.default_rng(2)
    bigram, layout = random_bigram(rng), layout_of(LENGTHS)
    logits = rng.normal(size=(layout.num_frames, NUM_PDFS))
    post = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = post ** (1 / temperature)
    targets /= targets.sum(axis=1, keepdims=True)
    blocks = [(slice(begin, end), torch.from_numpy(targets[begin:end]).float()) for begin, end in [(0, 7), (7, 17)]]
    how = {"weight": 0.3, "acwt": 0.25, "temperature": temperature}
    found = list(smoothed(iter(blocks), layout, bigram, **how))
    assert [rows for rows, _ in found] == [rows for rows, _ in blocks]
    found = torch.cat([values for _, values in found]).numpy()
    for begin, end in zip(layout.offsets[:-1], layout.offsets[1:], strict=True):
        likelihoods = (post[begin:end] / bigram.prior.numpy()) ** 0.25
        expected = (0.7 * post[begin:end] + 0.3 * by_enumeration(likelihoods, bigram)) ** (1 / temperature)
        np.testing.assert_allclose(found[begin:end], expected / expected.sum(axis=1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 20.0])
def test_many_frames_and_answers_without_doubt_stay_finite(temperature):
    bigram = random_bigram(np.random.default_rng(3))
    sure = torch.eye(NUM_PDFS)[torch.randint(NUM_PDFS, (3000,), generator=torch.Generator().manual_seed(1))]
    how = {"weight": 1.0, "acwt": 1.0, "temperature": temperature}
    ((_, found),) = smoothed(iter([(slice(0, 3000), sure)]), layout_of([3000]), bigram, **how)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.sum(dim=1), torch.ones(3000))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 20.0])
def test_a_weight_of_nothing_leaves_targets_as_they_are(temperature):
    """Those of teachers that are sure, at T, as float16 holds them."""
    rng = np.random.default_rng(4)
    logits = torch.from_numpy(rng.normal(scale=8.0, size=(50, NUM_PDFS)))
    targets = (logits / temperature).softmax(dim=1).half().float()
    targets /= targets.sum(dim=1, keepdim=True)
    how = {"weight": 0.0, "acwt": 0.25, "temperature": temperature}
    ((_, found),) = smoothed(iter([(slice(0, 50), targets)]), layout_of([50]), random_bigram(rng), **how)
    torch.testing.assert_close(found, targets, atol=2e-4, rtol=0)


def written_ali(path, states, lengths):
    layout = layout_of(lengths)
    write_ali(path, layout, np.array(states), num_pdfs=NUM_PDFS, model_digest="m", sil_pdfs=[])
    return AliReader(path)


def test_the_bigram_counts_what_follows_what_and_leaves_nothing_impossible(tmp_path):
    states = [0, 0, 1, 1, 1, 0, *[FAILED] * 4, 1, 1]
    bigram = StateBigram.counted(written_ali(tmp_path / "ali.h5", states, [6, 4, 2]))
    # Entered are 0 twice, 1 twice, the end twice; state 2, which no frame has, is taken to be once.
    np.testing.assert_allclose(bigram.first, np.array([1 + 2 / 7, 1 + 2 / 7, 1 / 7]) / 3, rtol=1e-6)
    np.testing.assert_allclose(bigram.then[0], np.array([1 + 2 / 7, 1 + 2 / 7, 1 / 7]) / 4, rtol=1e-6)
    np.testing.assert_allclose(bigram.then[2], np.array([2, 2, 1]) / 7, rtol=1e-6)
    np.testing.assert_allclose(bigram.last, np.array([(1 + 2 / 7) / 4, (1 + 2 / 7) / 6, 2 / 7]), rtol=1e-6)
    np.testing.assert_allclose(bigram.prior, np.array([3, 5, 1]) / 8, rtol=1e-6)


def test_an_alignment_of_failed_utterances_alone_is_refused(tmp_path):
    with pytest.raises(AsrKdError, match="no utterance of it is aligned"):
        StateBigram.counted(written_ali(tmp_path / "ali.h5", [FAILED] * 3, [3]))


def test_blocks_hold_whole_utterances_and_all_of_them():
    blocks = list(whole_utterances(layout_of([9] * 1000), num_pdfs=1 << 20))
    assert len(blocks) > 1
    assert [block.start for block in blocks] == [0, *(block.stop for block in blocks[:-1])]
    assert blocks[-1].stop == 1000


@pytest.fixture(scope="module")
def labelled(toy, tmp_path_factory):
    """Soft targets of the toy's training set, of all states and of the 3 largest, in 8 bits too; and what gave them."""
    folder = tmp_path_factory.mktemp("labelled")
    sets = ["--feats", toy["feats"], "--ali", toy["ali"], "--dev-feats", toy["dev_feats"], "--dev-ali", toy["dev_ali"]]
    run("train", *sets, *SMALL, "--out", folder / "nnet")
    teacher = ["--teachers", folder / "nnet/seed1", "--feats", toy["feats"], "--device", "cpu", "--temperature", 1]
    run("soft-targets", *teacher, "--out", folder / "dense.h5")
    run("soft-targets", *teacher, "--top-k", 3, "--out", folder / "top3.h5")
    run("soft-targets", *teacher, "--top-k", 3, "--target-bits", 8, "--out", folder / "bits8.h5")
    return {"sets": sets, "teacher": teacher, **{name: folder / f"{name}.h5" for name in ("dense", "top3", "bits8")}}


def test_smoothed_targets_take_the_place_of_those_that_they_were_made_of(labelled, toy, tmp_path, capsys):
    argv = ["smooth-targets", "--targets", labelled["dense"], "--ali", toy["ali"], "--device", "cpu"]
    argv += ["--sequence-weight", 0.5, "--out", tmp_path / "targets.h5"]
    run(*argv)
    before, after = TargetsReader(labelled["dense"]), TargetsReader(tmp_path / "targets.h5")
    assert after.sequence == {
        "sequence_weight": 0.5,
        "sequence_acwt": 0.25,
        "sequence_ali": after.sequence["sequence_ali"],
    }
    assert after.attributes.keys() == before.attributes.keys() | after.sequence.keys()
    told = describe(tmp_path / "targets.h5")
    assert (told["sequence_weight"], told["sequence_acwt"]) == (0.5, 0.25)
    ali = AliReader(toy["ali"])
    assert (after.prob.argmax(axis=1) == ali.pdf).mean() > (before.prob.argmax(axis=1) == ali.pdf).mean()
    np.testing.assert_allclose(after.prob.astype(np.float64).sum(axis=1), 1, atol=4e-3)
    how = ["--temperature", 1, "--soft-weight", 1, "--student-epochs", 1, "--out", tmp_path / "student"]
    run("distill", *labelled["sets"], *SMALL, "--targets", tmp_path / "targets.h5", *how)
    assert load_card(tmp_path / "student/seed1")["training"]["loss"]["sequence"] == [after.sequence]
    capsys.readouterr()
    run(*argv)
    assert "targets.h5: up to date" in capsys.readouterr().err


@pytest.mark.parametrize("kept", ["top3", "bits8"])
def test_of_the_largest_targets_as_many_are_kept_and_their_tail_counts(labelled, toy, tmp_path, kept):
    for kind in ("dense", kept):
        how = ["--ali", toy["ali"], "--device", "cpu", "--sequence-weight", 1]
        run("smooth-targets", "--targets", labelled[kind], *how, "--out", tmp_path / f"{kind}.h5")
    dense, largest = (TargetsReader(tmp_path / f"{kind}.h5") for kind in ("dense", kept))
    assert largest.prob.shape[1] == 3
    assert largest.stored_prob.dtype == TargetsReader(labelled[kept]).stored_prob.dtype
    total = largest.prob.astype(np.float64).sum(axis=1) + largest.tail
    np.testing.assert_allclose(total, 1, atol=4e-3)
    # What a tail says of a state is its share in training: near enough for the best one.
    assert (largest.pdf[:, 0] == dense.prob.argmax(axis=1)).mean() > 0.9


def test_older_readers_refuse_targets_of_eight_bits(labelled):
    versions = {}
    for name in ("dense", "top3", "bits8"):
        with h5py.File(labelled[name]) as file:
            versions[name] = int(file.attrs["version"])
    assert versions == {"dense": 1, "top3": 1, "bits8": 2}


def test_foreign_targets_that_name_one_state_keep_it(toy, tmp_path):
    """Posteriors of fewer states than others name their best one again, with no mass."""
    ali = AliReader(toy["ali"])
    best = np.repeat(ali.pdf[:, None], 2, axis=1)
    prob, tail = np.repeat([[0.9, 0.0]], len(best), axis=0), np.full(len(best), 0.1)
    arrays = {"prob": prob, "pdf": best, "tail": tail}
    origin = {"temperature": 1.0, "mean": "arithmetic", "members": ["x"], "content_digest": "x"}
    write_targets(
        tmp_path / "in.h5", ali.layout, [(slice(0, len(best)), arrays)], num_pdfs=ali.num_pdfs, top_k=2,
        attributes=origin | {"model_digest": ali.model_digest},
    )  # fmt: skip
    how = ["--ali", toy["ali"], "--device", "cpu", "--sequence-weight", 0.001, "--out", tmp_path / "out.h5"]
    run("smooth-targets", "--targets", tmp_path / "in.h5", *how)
    after = TargetsReader(tmp_path / "out.h5")
    assert (after.pdf[:, 0] == ali.pdf).all()
    np.testing.assert_allclose(after.prob[:, 0], 0.9, atol=3e-3)


def test_what_cannot_be_smoothed_is_refused_in_a_sentence(labelled, toy, tmp_path, capsys):
    ali = AliReader(toy["ali"])
    other = tmp_path / "other.h5"
    write_ali(other, ali.layout, ali.pdf, num_pdfs=ali.num_pdfs, model_digest="other", sil_pdfs=[])
    done, given = tmp_path / "done.h5", ["smooth-targets", "--device", "cpu", "--out", str(tmp_path / "out.h5")]
    drawn = tmp_path / "drawn.h5"
    run("soft-targets", *labelled["teacher"], "--top-k", 3, "--target-pruning", "random", "--out", drawn)
    run(*given[:3], "--targets", labelled["dense"], "--ali", toy["ali"], "--sequence-weight", 0.5, "--out", done)
    for more, said in (
        (["--targets", labelled["dense"], "--ali", toy["ali"]], "give --sequence-weight, 0.5 for instance"),
        (["--targets", labelled["dense"], "--ali", other, "--sequence-weight", 0.5], "another HMM than"),
        (["--targets", drawn, "--ali", toy["ali"], "--sequence-weight", 0.5], "was drawn at random"),
        (["--targets", done, "--ali", toy["ali"], "--sequence-weight", 0.5], "is smoothed already"),
        (["--targets", toy["ali"], "--ali", toy["ali"], "--sequence-weight", 0.5], "targets' was expected"),
        (["--targets", labelled["dense"], "--ali", toy["ali"], "--sequence-weight", 2], "sequence_weight 2"),
        (["--targets", labelled["dense"], "--ali", toy["ali"], "--sequence-acwt", 0], "sequence_acwt 0"),
    ):
        assert main([*given, *map(str, more)]) == 1
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out.h5").exists()
