import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from asr_kd.cli import main
from asr_kd.distill.bias import bias_for_shares, common_bias_for_accuracy
from asr_kd.distill.out_of_fold import Folds
from asr_kd.distill.transfer import (
    TransferChoice,
    TransferSet,
    choose,
    original_of,
    pdfs_of_phones,
    read_utt_list,
)
from asr_kd.errors import AsrKdError
from asr_kd.features.options import FbankOptions
from asr_kd.nnet.frames import Frames
from asr_kd.nnet.inference import mean_log_posteriors
from asr_kd.nnet.net_dir import UTTS, load_card, load_net
from asr_kd.nnet.priors import count_pdfs, write_counts
from asr_kd.scoring.decoding import load_nets
from asr_kd.scoring.set_posteriors import SetPosteriors
from asr_kd.store.ali import AliReader, write_ali
from asr_kd.store.feats import FeatsReader
from asr_kd.store.feats_writer import FeatsWriter
from asr_kd.store.targets import TargetsReader
from asr_kd.training.data import LabelledSet, load_set

SMALL = ["--hidden-dim", "16", "--num-hidden-layers", "1", "--left-context", "3", "--right-context", "1"]
SMALL += ["--batch-size", "64", "--warmup-steps", "5"]
SMALL += ["--device", "cpu", "--precision", "float32", "--learning-rate", "0.01"]
CPU = ["--device", "cpu", "--precision", "float32"]
NUM_PDFS = 6


def sets(toy: dict) -> list[str]:
    return [item for key, path in toy.items() for item in (f"--{key.replace('_', '-')}", str(path))]


def run(*argv: object) -> None:
    assert main([str(arg) for arg in argv]) == 0


def refused(capsys: pytest.CaptureFixture, *argv: object) -> str:
    capsys.readouterr()
    assert main([str(arg) for arg in argv]) == 1
    return capsys.readouterr().err.splitlines()[-1]


def log_posteriors(net_dir: Path, feats: Path) -> torch.Tensor:
    trained, reader = load_net(net_dir), FeatsReader(feats)
    a = trained.net.architecture
    frames = Frames.from_reader(reader, trained.cmvn, a.left_context, a.right_context, torch.device("cpu"))
    return torch.cat([log_post for _, log_post in mean_log_posteriors([trained.net], frames)])


@pytest.fixture(scope="module")
def teachers(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("teachers")
    run("train-ensemble", *sets(toy), "--out", out, "--num-members", 3, "--num-epochs", 4, *SMALL)
    return [out / f"seed{seed}" for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def targets(toy, teachers):
    out = teachers[0].parent / "targets.h5"
    run("soft-targets", "--teachers", *teachers, "--feats", toy["feats"], "--temperature", 1, "--out", out, *CPU)
    return out


# Biases


@given(st.integers(0, 1000), st.sampled_from([1.0, 5.0, 20.0]), st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_a_known_shift_of_some_biases_is_found_again(seed, sharpness, num_classes):
    """Of some classes jointly, and of all, where biases are known up to a constant."""
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(300, 7, generator=generator, dtype=torch.float64)
    classes = torch.randperm(7, generator=generator)[:num_classes].tolist()
    shift = torch.zeros(7, dtype=torch.float64)
    shift[classes] = 8 * torch.rand(num_classes, generator=generator, dtype=torch.float64) - 6
    shares = logits.softmax(-1).mean(0)[classes]
    biases = bias_for_shares((logits + shift).log_softmax(-1), classes, shares, tolerance=1e-9)
    expected = -shift[classes]
    if num_classes == 7:
        expected = expected - expected.mean()
    torch.testing.assert_close(biases, expected, atol=1e-3, rtol=1e-3)


@given(st.integers(0, 1000), st.lists(st.floats(0.01, 0.3), min_size=1, max_size=3))
@settings(max_examples=40, deadline=None)
def test_mean_posteriors_become_the_shares_whatever_they_are(seed, shares):
    logits = 30 * torch.randn(200, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    classes = list(range(1, 1 + len(shares)))
    logits[:, classes] -= 40
    biases = bias_for_shares(logits.log_softmax(-1), classes, shares)
    logits[:, classes] += biases
    expected = torch.tensor(shares, dtype=torch.float64)
    torch.testing.assert_close(logits.softmax(-1).mean(0)[classes], expected, atol=0, rtol=1e-5)


@pytest.mark.parametrize(
    ("classes", "shares", "message"),
    [
        ([0, 1], [0.5, 0.5], "less than 1"),
        ([0], [0.0], "above 0"),
        ([0, 1, 2], [0.2, 0.2, 0.2], "sum to 1"),
        ([0, 0], [0.2, 0.2], "different"),
        ([3], [0.2], "from 0 to 2"),
        ([0], [0.2, 0.3], "2 shares"),
    ],
)
def test_shares_that_no_bias_gives_are_refused(classes, shares, message):
    with pytest.raises(AsrKdError, match=message):
        bias_for_shares(torch.zeros(4, 3).log_softmax(-1), classes, shares)


@given(st.integers(0, 1000), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_no_common_bias_is_better_on_its_labels_than_the_test_tuned_one(seed, num_classes):
    generator = torch.Generator().manual_seed(seed)
    log_post = (3 * torch.randn(60, 5, generator=generator)).log_softmax(-1)
    labels = torch.randint(-1, 5, (60,), generator=generator)
    classes = list(range(num_classes))

    def num_correct(bias: float) -> int:
        shifted = log_post.double().clone()
        shifted[:, classes] += bias
        return int((shifted.argmax(-1) == labels).sum())

    best = common_bias_for_accuracy(log_post, labels, classes)
    assert num_correct(best) >= max(num_correct(bias) for bias in np.linspace(-25, 25, 401))


def test_where_nothing_can_be_gained_the_test_tuned_bias_stays_near_0():
    log_post = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()
    assert common_bias_for_accuracy(log_post, torch.tensor([0, 1]), [0]) == pytest.approx(0, abs=1e-6)
    assert common_bias_for_accuracy(log_post, torch.tensor([0, 0]), [0]) == pytest.approx(np.log(9) + 1, abs=1e-5)


def test_correct_bias_gives_the_states_the_teachers_shares(toy, teachers, targets, tmp_path):
    argv = ["correct-bias", "--net", teachers[0], "--feats", toy["feats"], "--classes", "2,4", *CPU]
    run(*argv, "--targets", targets, "--out", tmp_path / "net")
    before, after = (log_posteriors(net, toy["feats"]) for net in (teachers[0], tmp_path / "net"))
    wanted = TargetsReader(targets).prob.astype(np.float64).mean(0)
    np.testing.assert_allclose(after.exp().mean(0)[[2, 4]], wanted[[2, 4]], rtol=1e-4)
    # Nothing else changed: the ratios of the other states are as they were.
    torch.testing.assert_close((after - before)[:, 0], (after - before)[:, 5], atol=1e-4, rtol=0)
    record = load_card(tmp_path / "net")["training"]["bias_correction"]
    assert record["by"] == "unlabelled statistics"
    assert record["net"] == load_card(teachers[0])["digest"]
    made = (tmp_path / "net/net.json").stat().st_mtime_ns
    run(*argv, "--targets", targets, "--out", tmp_path / "net")
    assert (tmp_path / "net/net.json").stat().st_mtime_ns == made


def test_dense_targets_that_do_not_sum_to_one_are_refused(toy, targets, tmp_path, capsys):
    shutil.copy(targets, tmp_path / "t.h5")
    with h5py.File(tmp_path / "t.h5", "r+") as file:
        file["prob"][5] = 0.0
    argv = ["distill", "--targets", tmp_path / "t.h5", *sets(toy), *SMALL, "--out", tmp_path / "net"]
    assert "do not sum to 1 in every frame" in refused(capsys, *argv)


def test_biases_from_targets_with_a_tail_are_warned_of(toy, teachers, tmp_path, capsys):
    argv = ["soft-targets", "--teachers", *teachers, "--feats", toy["feats"], *CPU, "--top-k", 2]
    run(*argv, "--out", tmp_path / "top.h5")
    argv = ["correct-bias", "--net", teachers[0], "--feats", toy["feats"], "--classes", "2", *CPU]
    run(*argv, "--targets", tmp_path / "top.h5", "--out", tmp_path / "net")
    assert re.search(r"warning: .*top\.h5: [\d.]+ % of the mass is in tails", capsys.readouterr().err)


def test_a_corrected_net_takes_the_place_of_no_other(toy, teachers, targets, tmp_path, capsys):
    net = shutil.copytree(teachers[0], tmp_path / "trained")
    argv = ["correct-bias", "--net", net, "--feats", toy["feats"], "--targets", targets, *CPU, "--out", net]
    before = (net / "net.json").read_bytes()
    assert "holds a net that correct-bias did not make" in refused(capsys, *argv, "--classes", "2")
    assert (net / "net.json").read_bytes() == before


def test_a_corrected_net_takes_no_folder_of_something_else(toy, teachers, targets, tmp_path, capsys):
    foreign = tmp_path / "theirs"
    foreign.mkdir()
    (foreign / "final.safetensors").write_text("somebody's weights")
    argv = ["correct-bias", "--net", teachers[0], "--feats", toy["feats"], "--targets", targets, *CPU, "--classes", "2"]
    assert "exists, and is not replaced" in refused(capsys, *argv, "--out", foreign)
    assert [each.name for each in foreign.iterdir()] == ["final.safetensors"]
    run(*argv, "--out", tmp_path / "net")
    capsys.readouterr()
    run(*argv, "--out", tmp_path / "net")
    assert "up to date" in capsys.readouterr().err


def test_correct_bias_by_counts_and_test_tuned_is_named_so(toy, teachers, tmp_path, capsys):
    ali = AliReader(toy["ali"])
    write_counts(tmp_path / "counts", count_pdfs(ali.pdf, NUM_PDFS))
    argv = ["correct-bias", "--net", teachers[0], "--feats", toy["feats"], "--classes", "3", *CPU]
    run(*argv, "--counts", tmp_path / "counts", "--out", tmp_path / "counted")
    share = (ali.pdf == 3).mean()
    assert log_posteriors(tmp_path / "counted", toy["feats"]).exp().mean(0)[3] == pytest.approx(share, rel=1e-4)
    run(*argv, "--test-tuned", "--ali", toy["ali"], "--out", tmp_path / "tuned")
    assert load_card(tmp_path / "tuned")["training"]["bias_correction"]["by"] == "test-tuned"
    labels = torch.from_numpy(ali.pdf)
    accuracy = {
        net: (log_posteriors(net, toy["feats"]).argmax(-1) == labels).sum() for net in (teachers[0], tmp_path / "tuned")
    }
    assert accuracy[tmp_path / "tuned"] >= accuracy[teachers[0]]
    assert "give --ali" in refused(capsys, *argv, "--test-tuned", "--out", tmp_path / "x")
    assert "the net has 0 to 5" in refused(
        capsys, *argv[:-6], "--classes", "6", *CPU, "--counts", tmp_path / "counts", "--out", tmp_path / "x"
    )


def test_top_k_targets_and_dense_ones_have_the_same_means_where_all_is_kept(toy, teachers, targets, tmp_path):
    run("soft-targets", "--teachers", *teachers, "--feats", toy["feats"], "--temperature", 1, "--top-k", 6, *CPU,
        "--out", tmp_path / "top.h5")  # fmt: skip
    rows = np.arange(0, TargetsReader(targets).layout.num_frames, 3)
    np.testing.assert_allclose(TargetsReader(tmp_path / "top.h5").mean(rows), TargetsReader(targets).mean(rows))


# Choices of frames


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """A training set of 20 utterances and a copy of each at another speed, a dev set, and 12 utterances more."""
    folder = tmp_path_factory.mktemp("copied")
    rng = np.random.default_rng(3)
    means = rng.normal(size=(NUM_PDFS, 40))
    names = [f"a{u % 2}-utt{u:02d}" for u in range(20)]
    sets = {
        "train": names + [f"sp0.9-{name}" for name in names],
        "dev": [f"b-utt{u}" for u in range(6)],
        "extra": [f"c-utt{u:02d}" for u in range(12)],
    }
    for name, utt_ids in sets.items():
        pdfs = [np.repeat(rng.integers(0, NUM_PDFS, 6), rng.integers(3, 9, 6)) for _ in utt_ids]
        with FeatsWriter(folder / f"{name}.h5", kind="fbank", options=FbankOptions(), sample_rate=16000) as writer:
            for utt_id, pdf in sorted(zip(utt_ids, pdfs, strict=True), key=lambda pair: pair[0]):
                feats = means[pdf] + rng.normal(scale=1.5, size=(len(pdf), 40))
                writer.append(utt_id, utt_id.rsplit("-", 1)[0], feats.astype(np.float32))
        layout = FeatsReader(folder / f"{name}.h5").layout
        pdf_of = dict(zip(utt_ids, pdfs, strict=True))
        pdf = np.concatenate([pdf_of[utt_id] for utt_id in layout.utt_ids])
        if name == "train":
            pdf[layout.rows("sp0.9-a0-utt04")] = -1
        phone = np.where(pdf < 0, -1, pdf // 2)
        write_ali(folder / f"{name}.ali.h5", layout, pdf, num_pdfs=NUM_PDFS, model_digest="toy", sil_pdfs=[0, 1],
                  phone=phone, phones=["SIL", "AH_B", "AH_E"])  # fmt: skip
    return folder


def copied_sets(folder: Path) -> list:
    pairs = [("--feats", "train.h5"), ("--ali", "train.ali.h5"), ("--dev-feats", "dev.h5"), ("--dev-ali", "dev.ali.h5")]
    return [item for option, name in pairs for item in (option, folder / name)]


def load(folder: Path, extra: bool = False) -> LabelledSet:
    return load_set(
        folder / "train.h5", folder / "train.ali.h5", cmvn="global", left_context=3, right_context=1,
        device=torch.device("cpu"), dtype=torch.float32, extra_feats=folder / "extra.h5" if extra else None,
    )  # fmt: skip


def utts_of(transfer: TransferSet) -> set[str]:
    layout = transfer.train.frames.layout
    return {layout.utt_ids[np.searchsorted(layout.offsets, row, side="right") - 1] for row in transfer.index.tolist()}


@given(st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_shares_are_of_whole_utterances_nested_and_with_their_copies(copied, one, other, seed):
    train = load(copied)
    small, large = (choose(train, TransferChoice(share=s, share_seed=seed)) for s in sorted((one, other)))
    assert utts_of(small) <= utts_of(large)
    unlabelled = "sp0.9-a0-utt04"
    for transfer, share in ((small, min(one, other)), (large, max(one, other))):
        utts = utts_of(transfer)
        assert len({original_of(utt_id) for utt_id in utts}) == max(round(20 * share), 1)
        assert utts | {unlabelled} == {c for u in utts for c in (original_of(u), f"sp0.9-{original_of(u)}")} | {
            unlabelled
        }
        lengths = dict(zip(train.frames.layout.utt_ids, train.frames.layout.lengths.tolist(), strict=True))
        assert len(transfer.index) == sum(lengths[utt_id] for utt_id in utts)
    assert choose(train, TransferChoice()).record == {}
    assert torch.equal(choose(train, TransferChoice()).index, train.labelled)


def test_states_lists_and_labels_are_chosen_as_asked_for(copied, tmp_path):
    train, ali = load(copied), AliReader(copied / "train.ali.h5")
    states = lambda choice: set(train.pdf[choose(train, choice).index.long()].tolist())  # noqa: E731
    assert states(TransferChoice(omit_pdfs=(2, 3))) == {0, 1, 4, 5}
    assert states(TransferChoice(only_pdfs=(2, 3))) == {2, 3}
    assert pdfs_of_phones(ali, "AH") == [2, 3, 4, 5]
    assert pdfs_of_phones(ali, "AH_E,SIL") == [0, 1, 4, 5]
    (tmp_path / "list").write_text("a0-utt00\nsp0.9-a1-utt05 anything\n")
    listed = TransferChoice(utt_ids=read_utt_list(tmp_path / "list"))
    assert utts_of(choose(train, listed)) == {"a0-utt00", "sp0.9-a1-utt05"}
    none = choose(train, TransferChoice(labelled_share=0, omit_pdfs=(2,)))
    assert (none.train.pdf == -1).all()
    assert "sp0.9-a0-utt04" in utts_of(none)
    assert not (train.pdf[none.index.long()] == 2).any()
    some = choose(train, TransferChoice(share=0.5, labelled_share=0.4))
    labelled = {u for u in utts_of(some) if (some.train.pdf[rows_of(train, u)] >= 0).all()}
    assert labelled == utts_of(choose(train, TransferChoice(share=0.2)))
    assert (train.pdf[rows_of(train, "a0-utt00")] >= 0).all(), "the set itself stays as it is"


def rows_of(train: LabelledSet, utt_id: str) -> slice:
    return train.frames.layout.rows(utt_id)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train-share", 0], "above 0"),
        (["--omit-pdfs", "1,x"], "expected states"),
        (["--omit-pdfs", "1,9"], "the alignment has 0 to 5"),
        (["--omit-pdfs", "1", "--only-pdfs", "2"], "not both"),
        (["--omit-phones", "ZH"], "no frame of phone 'ZH'"),
        (["--omit-pdfs", "0,1,2,3,4,5", "--utt-list", "LIST"], "not one frame"),
        (["--utt-list", "UNKNOWN"], "utterance nobody is not in the training set"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(copied, tmp_path, capsys, options, message):
    (tmp_path / "LIST").write_text("a0-utt00\n")
    (tmp_path / "UNKNOWN").write_text("a0-utt00\nnobody\n")
    options = [tmp_path / o if o in ("LIST", "UNKNOWN") else o for o in options]
    assert message in refused(capsys, "train", *copied_sets(copied), *options, *SMALL, "--out", tmp_path)


def test_a_copy_of_a_training_utterance_in_dev_is_refused(copied, toy, tmp_path, capsys):
    (tmp_path / "utt2uniq").write_text("b-utt3 a0-utt00\n")
    argv = ["train", *copied_sets(copied), *SMALL, "--out", tmp_path, "--utt2uniq", tmp_path / "utt2uniq"]
    assert "utterance a0-utt00 is in the training set too" in refused(capsys, *argv)


def training(folder: Path) -> dict:
    return load_card(folder / "seed1")["training"]


def test_every_choice_is_in_the_fingerprint_and_in_net_json(copied, tmp_path):
    argv = ["train", *copied_sets(copied), *SMALL, "--num-epochs", 1, "--out", tmp_path / "x"]
    prints = []
    for options in ([], ["--train-share", 0.5], ["--train-share", 0.5, "--share-seed", 2], ["--omit-pdfs", "2,3"]):
        run(*argv, *options)
        prints.append(training(tmp_path / "x")["fingerprint"])
    assert len(set(prints)) == 4
    run(*argv, "--omit-phones", "AH_B")
    assert training(tmp_path / "x")["fingerprint"] == prints[3], "the same frames by another name"
    assert training(tmp_path / "x")["transfer"]["omitted_pdfs"] == [2, 3]
    run(*argv, "--train-share", 1)
    assert training(tmp_path / "x")["fingerprint"] == prints[0]
    assert training(tmp_path / "x")["transfer"] == {}


def test_accuracy_on_the_transfer_frames_is_that_of_these_frames(copied, tmp_path):
    run("train", *copied_sets(copied), *SMALL, "--num-epochs", 3, "--train-share", 0.3, "--out", tmp_path)
    record, ali = training(tmp_path), AliReader(copied / "train.ali.h5")
    index = choose(load(copied), TransferChoice(share=0.3)).index.numpy()
    assert record["num_train_frames"] == len(index)
    best = log_posteriors(tmp_path / "seed1", copied / "train.h5").argmax(-1).numpy()
    assert record["transfer_frame_acc"] == pytest.approx(100 * (best[index] == ali.pdf[index]).mean())


# Folds


def test_folds_are_disjoint_cover_all_and_keep_copies_together(copied):
    train = load(copied)
    whole = choose(train, TransferChoice())
    folds = Folds(train.frames.layout, 3, seed=1)
    held_out = [utts_of(whole) - utts_of(folds.without(whole, fold)) for fold in range(3)]
    assert set.union(*held_out) == utts_of(whole)
    assert sum(map(len, held_out)) == len(utts_of(whole))
    originals = [{original_of(utt_id) for utt_id in utts} for utts in held_out]
    assert sorted(map(len, originals)) == [6, 7, 7]
    assert len(set.union(*originals)) == 20
    with pytest.raises(AsrKdError, match="number of utterances, 20"):
        Folds(train.frames.layout, 21, seed=1)


@pytest.fixture(scope="module")
def folded(copied, tmp_path_factory):
    out = tmp_path_factory.mktemp("folded")
    run("train-ensemble", *copied_sets(copied), "--out", out, "--num-members", 4, "--num-seeds", 1, "--folds", 2,
        "--num-epochs", 2, *SMALL)  # fmt: skip
    return [out / f"seed{seed}" for seed in (1, 2, 3, 4)]


@pytest.mark.parametrize("combination", ["arithmetic", "geometric"])
def test_out_of_fold_targets_come_from_members_that_have_not_seen_the_utterance(copied, folded, tmp_path, combination):
    run("soft-targets", "--teachers", *folded, "--feats", copied / "train.h5", "--out-of-fold", "--temperature", 2,
        "--combination", combination, "--out", tmp_path / "t.h5", *CPU)  # fmt: skip
    targets, reader = TargetsReader(tmp_path / "t.h5"), FeatsReader(copied / "train.h5")
    logits = [log_posteriors(member, copied / "train.h5") / 2 for member in folded]
    for utt_id in reader.layout.utt_ids:
        rows = reader.layout.rows(utt_id)
        unseen = [
            member_logits[rows]
            for member, member_logits in zip(folded, logits, strict=True)
            if original_of(utt_id) not in {original_of(seen) for seen in (member / UTTS).read_text().split()}
        ]
        assert len(unseen) == 2
        mean = torch.stack(unseen).softmax(-1).mean(0)
        if combination == "geometric":
            mean = torch.stack(unseen).mean(0).softmax(-1)
        np.testing.assert_allclose(targets.prob[rows], mean.numpy(), atol=2e-3)
    assert [training_of(member)["transfer"]["held_out_fold"] for member in folded] == [1, 0, 1, 0]


def training_of(folder: Path) -> dict:
    return load_card(folder)["training"]


def test_what_every_member_has_seen_is_not_labelled_out_of_fold(copied, folded, teachers, toy, tmp_path, capsys):
    argv = ["soft-targets", "--out-of-fold", "--out", tmp_path / "t.h5", *CPU]
    same_fold = [folded[0], folded[2]]
    assert "all 2 members were trained on" in refused(
        capsys, *argv, "--teachers", *same_fold, "--feats", copied / "train.h5"
    )
    assert "all 3 members" in refused(capsys, *argv, "--teachers", *teachers, "--feats", toy["feats"])
    run(*argv, "--teachers", *same_fold, "--feats", copied / "extra.h5")  # nobody has seen these
    listed = (folded[0] / UTTS).read_text()
    try:
        (folded[0] / UTTS).write_text(listed.split("\n", 1)[1])
        assert "it was changed" in refused(capsys, *argv, "--teachers", *folded, "--feats", copied / "train.h5")
    finally:
        (folded[0] / UTTS).write_text(listed)


# Students


@pytest.fixture(scope="module")
def labelled_by_teacher(copied, tmp_path_factory):
    """One net of all labels, and its targets of the training set and of the extra speech."""
    out = tmp_path_factory.mktemp("teacher")
    run("train", *copied_sets(copied), "--out", out, "--num-epochs", 8, *SMALL)
    for name in ("train", "extra"):
        run("soft-targets", "--teachers", out / "seed1", "--feats", copied / f"{name}.h5", "--temperature", 1,
            "--out", out / f"{name}.targets.h5", *CPU)  # fmt: skip
    return out


def student(copied: Path, out: Path, *options: object) -> dict:
    run("distill", *copied_sets(copied), "--soft-weight", 0.5, "--student-epochs", 6, "--student-learning-rate", 0.01,
        *SMALL, *options, "--out", out)  # fmt: skip
    return training(out)


def test_without_labels_a_student_is_what_the_soft_targets_alone_make_it(copied, labelled_by_teacher, tmp_path):
    """Wrong labels change nothing: they are not looked at."""
    targets = ["--targets", labelled_by_teacher / "train.targets.h5"]
    one = student(copied, tmp_path / "one", *targets, "--unlabelled")
    assert one["transfer_frame_acc"] is None
    assert one["num_train_frames"] == FeatsReader(copied / "train.h5").layout.num_frames
    assert one["transfer"]["labelled_share"] == 0
    assert one["history"][-1]["dev_frame_acc"] > 50
    ali = AliReader(copied / "train.ali.h5")
    write_ali(tmp_path / "wrong.h5", ali.layout, np.where(ali.pdf < 0, -1, (ali.pdf + 1) % NUM_PDFS),
              num_pdfs=NUM_PDFS, model_digest="toy", sil_pdfs=[0])  # fmt: skip
    student(copied, tmp_path / "other", *targets, "--unlabelled", "--ali", tmp_path / "wrong.h5")
    digests = [load_card(tmp_path / name / "seed1")["digest"] for name in ("one", "other")]
    assert digests[0] == digests[1]
    some = student(copied, tmp_path / "some", *targets, "--labelled-share", 0.3)
    assert load_card(tmp_path / "some/seed1")["digest"] != digests[0]
    assert 0 < some["transfer_frame_acc"] <= 100


def test_extra_speech_is_trained_on_from_its_own_targets(copied, labelled_by_teacher, tmp_path, capsys):
    out = labelled_by_teacher
    extra = ["--extra-feats", copied / "extra.h5", "--extra-targets", out / "extra.targets.h5"]
    targets = ["--targets", out / "train.targets.h5"]
    record = student(copied, tmp_path / "more", *targets, *extra, "--train-share", 0.2)
    alone = student(copied, tmp_path / "alone", *targets, "--train-share", 0.2)
    num_extra = FeatsReader(copied / "extra.h5").layout.num_frames
    assert record["num_train_frames"] == alone["num_train_frames"] + num_extra
    assert record["transfer"]["num_extra_frames"] == num_extra
    assert record["fingerprint"] != alone["fingerprint"]
    few = student(copied, tmp_path / "few", *targets, *extra, "--only-pdfs", "1,2")
    assert few["num_train_frames"] == np.isin(AliReader(copied / "train.ali.h5").pdf, (1, 2)).sum() + num_extra
    seen = (tmp_path / "more/seed1" / UTTS).read_text().split()
    assert set(FeatsReader(copied / "extra.h5").layout.utt_ids) <= set(seen)
    # The members' own answers to the very windows are the targets that were stored.
    online = student(copied, tmp_path / "online", "--teachers", out / "seed1", *extra[:2], "--train-share", 0.2,
                     "--temperature", 1)  # fmt: skip
    assert online["history"][0]["train_loss"] == pytest.approx(record["history"][0]["train_loss"], rel=1e-3)
    argv = ["distill", *copied_sets(copied), *SMALL, "--out", tmp_path / "no"]
    assert "nothing else to learn from" in refused(capsys, *argv, *targets, "--unlabelled", "--soft-weight", 0)
    assert "give it to train-ensemble" in refused(capsys, *argv, *targets, "--label-smoothing", 0.1)
    swept = ["sweep", *argv[1:], "--teachers", out / "seed1", "--label-smoothing", 0.1]
    assert "give it to train-ensemble" in refused(capsys, *swept)
    assert "go together" in refused(capsys, *argv, *targets, *extra[:2])
    wrong = [*extra[:2], "--extra-targets", out / "train.targets.h5"]
    assert "made for other utterances" in refused(capsys, *argv, *targets, *wrong)
    dev = ["--extra-feats", copied / "dev.h5", "--extra-targets", out / "extra.targets.h5"]
    assert "is in the training set too" in refused(capsys, *argv, *targets, *dev)


def test_frames_of_two_files_are_those_of_each(copied):
    both, own = load(copied, extra=True), load(copied)
    num_own = own.frames.layout.num_frames
    index = torch.arange(num_own)
    assert torch.equal(both.frames.windows(index), own.frames.windows(index))
    with FeatsReader(copied / "extra.h5") as reader:
        extra = Frames.from_reader(reader, own.cmvn, 3, 1, torch.device("cpu"))
    index = torch.arange(reader.layout.num_frames)
    assert torch.equal(both.frames.windows(num_own + index), extra.windows(index))
    assert (both.pdf[num_own:] == -1).all()


def test_omitted_states_come_back_from_soft_targets_and_a_corrected_bias(copied, labelled_by_teacher, tmp_path):
    """The paper's omitted 3, end to end: no frame of two states is trained on, and their biases are then repaired."""
    out = tmp_path / "student"
    targets = ["--targets", labelled_by_teacher / "train.targets.h5"]
    record = student(copied, out, *targets, "--omit-phones", "AH_B", "--unlabelled", "--student-epochs", 20)
    ali = AliReader(copied / "dev.ali.h5")
    omitted = np.isin(ali.pdf, (2, 3))
    run("correct-bias", "--net", out / "seed1", "--feats", copied / "train.h5", *targets, "--phones", "AH_B",
        "--ali", copied / "train.ali.h5", "--out", tmp_path / "corrected", *CPU)  # fmt: skip
    right = {
        net: log_posteriors(net, copied / "dev.h5").argmax(-1).numpy() == ali.pdf
        for net in (out / "seed1", tmp_path / "corrected")
    }
    assert right[tmp_path / "corrected"][omitted].mean() > right[out / "seed1"][omitted].mean()
    assert right[tmp_path / "corrected"].mean() > right[out / "seed1"].mean()
    assert record["transfer"]["omitted_pdfs"] == [2, 3]


# Experiments


@pytest.mark.parametrize("name", ["regularisers", "transfer_sets", "temperature_size", "keep_the_gain"])
def test_an_experiment_says_what_it_is_and_refuses_what_it_does_not_know(name, tmp_path):
    script = Path(__file__).parents[1] / "recipes/paper" / f"{name}.sh"
    shown = subprocess.run(["bash", script, "--help"], capture_output=True, text=True)
    assert shown.returncode == 0
    assert "Hinton, Vinyals & Dean 2015" in shown.stdout
    without_base = subprocess.run(["bash", script, "--out", tmp_path], capture_output=True, text=True)
    assert without_base.returncode == 2
    assert "--base is needed" in without_base.stderr


def test_the_table_averages_over_seeds_and_names_the_papers_figures(copied, tmp_path):
    run("train", *copied_sets(copied), *SMALL, "--num-epochs", 1, "--seeds", "1-2", "--out", tmp_path / "nets")
    nets = [tmp_path / f"nets/seed{seed}" for seed in (1, 2)]
    run("count-errors", "--nets", *nets, "--feats", copied / "dev.h5", "--ali", copied / "dev.ali.h5", *CPU,
        "--out", tmp_path / "errors.json")  # fmt: skip
    (tmp_path / "kinds").write_text(f"labels\t{tmp_path / 'nets'}\t67.3\t-\n")
    script = Path(__file__).parents[1] / "recipes/paper/net_table.py"
    argv = ["--kinds", tmp_path / "kinds", "--errors", tmp_path / "errors.json", "--states", "2,3"]
    done = subprocess.run(
        [sys.executable, script, *argv, "--out", tmp_path / "rows.json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    [row] = json.loads((tmp_path / "rows.json").read_text())
    ali = AliReader(copied / "dev.ali.h5")
    right = [log_posteriors(net, copied / "dev.h5").argmax(-1).numpy() == ali.pdf for net in nets]
    assert row["accuracy"] == pytest.approx([100 * each.mean() for each in right])
    assert row["accuracy_on_states"] == pytest.approx([100 * each[np.isin(ali.pdf, (2, 3))].mean() for each in right])
    assert "| 67.3 % |" in done.stdout


@pytest.fixture(scope="module")
def base(copied, tmp_path_factory) -> Path:
    """What recipes leave after stage 4: sets, and two members of two epochs whose students would start from them."""
    base = tmp_path_factory.mktemp("base")
    (base / "feats").mkdir()
    (base / "ali").mkdir()
    for name in ("train", "dev"):
        (base / f"feats/{name}.fbank.h5").symlink_to(copied / f"{name}.h5")
        (base / f"ali/{name}.h5").symlink_to(copied / f"{name}.ali.h5")
    small = [*SMALL, "--num-epochs", 2, "--num-seeds", 2]
    run("train-ensemble", *copied_sets(copied), *small, "--num-members", 2, "--out", base / "nnet/member")
    options = {option[2:].replace("-", "_"): value for option, value in zip(small[::2], small[1::2], strict=True)}
    options["student_start"] = "member"  # which nets that start from random weights do not follow
    (base / "config.yaml").write_text("".join(f"{k}: {v}\n" for k, v in options.items() if k != "device"))
    return base


def experiment(name: str, base: Path, out: Path, *options) -> subprocess.CompletedProcess:
    script = Path(__file__).parents[1] / "recipes/paper" / f"{name}.sh"
    argv = ["bash", script, "--base", base, "--out", out, "--device", "cpu", *options]
    env = {**os.environ, "ASR_KD_PYTHON": sys.executable}
    return subprocess.run([str(arg) for arg in argv], capture_output=True, text=True, env=env)


def test_soft_targets_regularise_nets_that_start_from_random_weights(base, tmp_path):
    done = experiment("regularisers", base, tmp_path, "--seeds", 1, "--shares", 50)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "regularisers.json").read_text())
    assert [row["system"].split(", ", 1)[-1] for row in rows] == [
        "labels",
        "labels, early stopping",
        "labels, last epoch",
        "soft targets, last epoch",
    ]
    soft = load_card(tmp_path / "soft-50/seed1")["training"]
    assert soft["started_from"] is None
    assert soft["history"][-1]["step"] == load_card(base / "nnet/member/seed1")["training"]["history"][-1]["step"]


def test_every_size_has_every_temperature_and_transfer_sets_their_repairs(base, tmp_path):
    done = experiment("temperature_size", base, tmp_path / "t", "--seeds", 1, "--sizes", 8, "--temperatures", "1,2.5")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "t/temperature_size.json").read_text())
    assert [row["system"] for row in rows] == ["8 units, labels", "8 units, T = 1", "8 units, T = 2.5"]
    done = experiment(
        "transfer_sets", base, tmp_path / "s", "--seeds", 1, "--student-epochs", 2, "--labelled-share", 0.5
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "s/transfer_sets.json").read_text())
    assert len(rows) == 9
    assert {"without", "without-corrected", "without-test-tuned"} <= {path.name for path in (tmp_path / "s").iterdir()}


def test_the_share_of_the_gain_is_told_for_every_arm_beside_its_cost(base, tmp_path):
    """The experiment whole, on a base of two members of two epochs, up to its table."""
    arms = "hard-x2,start-hard,soft,views,averaged-start-soft,start-sequence"
    options = ["--seeds", "1-2", "--arms", arms, "--view-options", "--time-warp 0.1 --view-share 0.5"]
    done = experiment("keep_the_gain", base, tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    views = load_card(tmp_path / "out/views/seed1")["training"]["config"]
    assert (views["time_warp"], views["freq_warp"], views["view_share"]) == (0.1, 0, 0.5)
    rows = {row["arm"]: row for row in json.loads((tmp_path / "out/keep_the_gain.dev.json").read_text())}
    assert list(rows) == ["members", "ensemble", *arms.split(",")]
    assert sum(row["baseline"] for row in rows.values()) == 1
    # A pass of two teachers is two thirds of a step of training, in every epoch or once.
    assert [rows[arm]["cost"] for arm in ("hard-x2", "soft", "views")] == pytest.approx([2, 1 + 1 / 3, 1 + 2 / 3])
    for arm in ("soft", "views", "averaged-start-soft", "start-sequence"):
        assert set(rows[arm]["share"]) == {"value", "ci95", "p_at_least_086", "reason"}
    dev = [load_card(tmp_path / f"out/soft/seed{seed}")["training"] for seed in (1, 2)]
    best = [max(row["dev_frame_acc"] for row in each["history"]) for each in dev]
    averaged = load_card(tmp_path / "out/averaged-start-soft/seed1")["training"]
    assert averaged["config"]["average_share"] == 0.7
    assert averaged["started_from"] is not None
    assert rows["soft"]["per_seed"] == pytest.approx(best)
    paths = [[base / f"nnet/member/seed{seed}" for seed in (1, 2)], *([tmp_path / f"out/soft/seed{n}"] for n in (1, 2))]
    reader, cpu = FeatsReader(base / "feats/dev.fbank.h5"), torch.device("cpu")
    answers = [SetPosteriors(load_nets(each, cpu), reader, "arithmetic", cpu) for each in paths]
    ensemble, *students = (torch.from_numpy(np.concatenate(list(each.blocks()))) for each in answers)
    expected = [functional.kl_div(each, ensemble, reduction="batchmean", log_target=True) for each in students]
    assert rows["soft"]["kl"] == pytest.approx(float(sum(expected)) / 2, rel=1e-4)
    assert rows["ensemble"]["kl"] == 0
    smoothed = TargetsReader(tmp_path / "out/targets/T1-sequence.h5")
    assert smoothed.attributes["sequence_weight"] == 0.5
    unknown = experiment("keep_the_gain", base, tmp_path / "out", "--seeds", "1-2", "--arms", "hrad")
    assert unknown.returncode == 2
    assert "there is no arm hrad" in unknown.stderr


def test_every_arm_is_trained_as_its_name_says(base, tmp_path):
    of_loss = {
        "smoothing": {},
        "hard-views": {},
        "T2": {"temperature": 2.0, "soft_weight": 1.0},
        "geometric": {"temperature": 1.0, "combination": "geometric"},
        "mixed": {"soft_weight": 0.5},
        "logits": {"matching": "logits", "temperature": 5.0},
        "conditional": {"label_use": "conditional"},
        "swap": {"label_use": "swap"},
        "born-again": {},
        "born-again-sequence": {},
        "fold": {},
    }
    view = "--time-warp 0.1 --online-members 1 --temperature 2"  # of which labels take the first alone
    options = ["--seeds", 1, "--arms", ",".join(of_loss), "--folds", 2, "--view-options", view]
    done = experiment("keep_the_gain", base, tmp_path, *options, "--student-epochs", 1)
    assert done.returncode == 0, done.stderr
    rows = {row["arm"]: row for row in json.loads((tmp_path / "keep_the_gain.dev.json").read_text())}
    assert list(rows) == ["members", "ensemble", *of_loss]
    for arm, keys in of_loss.items():
        training = load_card(tmp_path / arm / "seed1")["training"]
        assert {key: training["loss"].get(key) for key in keys} == keys, arm
        assert training["config"]["time_warp"] == (0.1 if arm == "hard-views" else 0)
        assert training["config"]["label_smoothing"] == (0.1 if arm == "smoothing" else 0)
    losses = {arm: load_card(tmp_path / arm / "seed1")["training"]["loss"] for arm in of_loss}
    for arm in ("born-again", "born-again-sequence"):
        assert losses[arm]["members"] == [load_card(base / "nnet/member/seed1")["digest"]]
    assert "sequence" in losses["born-again-sequence"]
    assert "sequence" not in losses["born-again"]
    assert losses["fold"]["members"] == [load_card(tmp_path / f"fold-member/seed{n}")["digest"] for n in (1, 2)]


def test_labels_are_not_smoothed_where_the_members_were(base, tmp_path):
    smoothed = tmp_path / "base"
    shutil.copytree(base, smoothed, symlinks=True)
    with (smoothed / "config.yaml").open("a") as config:
        config.write("label_smoothing: 0.2\n")
    options = [
        "--seeds",
        1,
        "--arms",
        "hard,smoothing,hard-views",
        "--view-options",
        "--time-warp=0.1 --online-members=1",
    ]
    done = experiment("keep_the_gain", smoothed, tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    of = [load_card(tmp_path / f"out/{arm}/seed1")["training"]["config"] for arm in ("hard", "smoothing", "hard-views")]
    assert [(each["label_smoothing"], each["time_warp"]) for each in of] == [(0, 0), (0.1, 0), (0, 0.1)]
    options[-1] = "--online-members 1"
    refused = experiment("keep_the_gain", smoothed, tmp_path / "other", *options)
    assert refused.returncode == 2
    assert "says nothing of windows" in refused.stderr
