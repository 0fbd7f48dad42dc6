"""Training sets that are read while they are trained on: what comes when, and that it is what is resident elsewhere."""

import contextlib
import os
import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from conftest import train_in_pieces, write_set
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_kd.cli import main
from asr_kd.distill.soft_targets import StoredTargets
from asr_kd.distill.transfer import TransferChoice, TransferSet, choose
from asr_kd.errors import AsrKdError
from asr_kd.nnet.frames import STEP, as_held
from asr_kd.nnet.net_dir import load_card, load_net
from asr_kd.store.ali import FAILED, AliReader, AliRows
from asr_kd.store.feats import FeatsReader
from asr_kd.store.hdf5 import Layout, runs_of
from asr_kd.store.targets import TargetsReader, TargetsRows, write_targets
from asr_kd.training import loop, stream
from asr_kd.training.data import LabelledSet
from asr_kd.training.stream import Part, Stream, StreamedIndex, deal, load_or_stream, sizes_of_periods

SMALL = ["--hidden-dim", "16", "--num-hidden-layers", "1", "--left-context", "3", "--right-context", "1"]
SMALL += ["--batch-size", "32", "--warmup-steps", "5"]
SMALL += ["--device", "cpu", "--precision", "float32", "--learning-rate", "0.01"]
CPU = {"device": torch.device("cpu"), "dtype": torch.float32}
SHAPE = {"left_context": 3, "right_context": 1, **CPU}
MOST_OF_TOY = ["--resident-frames", 900]  # of 991 frames: no utterance is longer than half of an eighth of it


@pytest.fixture(params=[1, 3])
def readers(request, monkeypatch):
    """So many threads read a group, of however few frames."""
    monkeypatch.setitem(stream.READERS, "cpu", request.param)
    monkeypatch.setattr(stream, "READER_FRAMES", 1)


def sets(toy: dict) -> list[str]:
    return [item for key, path in toy.items() for item in (f"--{key.replace('_', '-')}", str(path))]


def run(*argv: object) -> None:
    assert main([str(arg) for arg in argv]) == 0


def load(toy: dict, resident_frames: int, cmvn: str = "utterance", **more: object) -> LabelledSet:
    how = {"cmvn": cmvn, **more, **SHAPE}
    return load_or_stream(toy["feats"], toy["ali"], resident_frames=resident_frames, **how)


def seen_in_pass(transfer: TransferSet, targets: StoredTargets | None = None) -> np.ndarray:
    """What a net sees in a pass of batches of 8, a row a frame, sorted: window, label, soft targets."""
    train, rows = transfer.train, []
    is_streamed = isinstance(transfer.index, StreamedIndex)
    order = transfer.index.order(1, 0, 8) if is_streamed else transfer.index
    for begin in range(0, len(transfer.index), 8):
        index = order[begin : begin + 8].long()
        windows = train.frames.windows(index)
        columns = [windows, train.labels_of(index)[:, None]]
        if targets:
            batch = targets.batch(index, windows)
            columns += [batch.prob] if batch.pdf is None else [batch.prob, batch.pdf, batch.tail[:, None]]
        rows.append(torch.cat([column.double() for column in columns], dim=1))
    seen = torch.cat(rows).numpy()
    return seen[np.lexsort(seen.T)]


def made_up_stream(lengths: list[int], failed: set[int], num_first: int, resident_frames: int) -> Stream:
    """Frames that hold their own numbers; from the utterance num_first on they lie in a second file, without labels."""
    parts, begin = [], 0
    for first, last in ((0, num_first), (num_first, len(lengths))):
        if first == last:
            continue
        names = [f"u{n}" for n in range(first, last)]
        layout = Layout.from_lengths(names, lengths[first:last])
        frames = begin + np.arange(layout.num_frames, dtype=np.float32)[:, None]
        pdf = np.repeat([FAILED if n in failed else n for n in range(first, last)], lengths[first:last])

        def rows(utts: slice, array: np.ndarray, offsets: np.ndarray = layout.offsets) -> np.ndarray:
            return array[offsets[utts.start] : offsets[utts.stop]].copy()

        reader = SimpleNamespace(layout=layout, path=Path(__file__), shards=[], feat_dim=1)
        ali = SimpleNamespace(path=Path(__file__), read=lambda utts, pdf=pdf, rows=rows: rows(utts, pdf))
        normalised = lambda utts, frames=frames, rows=rows: rows(utts, frames)  # noqa: E731
        parts.append(Part(reader, normalised, first, None if first else ali))
        begin += layout.num_frames
    whole = Layout.from_lengths([f"u{n}" for n in range(len(lengths))], lengths)
    return Stream(parts, whole, resident_frames, 1, 1, **CPU)


def refusal(index: StreamedIndex, number_of_pass: int, batch_size: int) -> str | None:
    try:
        for each in (number_of_pass, number_of_pass + 1):
            index.order(3, each, batch_size)
    except AsrKdError as error:
        return str(error)
    return None


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_every_frame_comes_once_a_pass_with_its_neighbours(data):
    lengths = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=40).filter(any))
    failed = data.draw(st.sets(st.integers(0, len(lengths) - 1), max_size=5))
    num_first = data.draw(st.integers(1, len(lengths)))
    stream = made_up_stream(lengths, failed, num_first, data.draw(st.integers(1, 2 * sum(lengths))))
    takes_unlabelled = data.draw(st.booleans())

    def select(utts, pdf):
        return pdf, (pdf >= 0) | takes_unlabelled

    index = StreamedIndex(stream, select, {})
    pdf = np.concatenate([labels for _, labels in stream.all_labels()])
    expected = np.flatnonzero((pdf >= 0) | takes_unlabelled)
    assert len(index) == len(expected)
    if not len(expected):
        return
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    first, last = np.repeat(offsets[:-1], lengths), np.repeat(offsets[1:], lengths) - 1
    numbers = np.arange(sum(lengths))
    windows = np.stack([np.maximum(numbers - 1, first), numbers, np.minimum(numbers + 1, last)], axis=1)
    number_of_pass = data.draw(st.integers(0, 3))
    batch_size = data.draw(st.integers(1, 12))
    complaint = refusal(index, number_of_pass, batch_size)
    if complaint:
        assert re.fullmatch(r"resident_frames: one part in 8 of so many holds as few as \d+ frames .*", complaint)
        batch_size = 1
    begin = data.draw(st.integers(0, len(expected) // batch_size))  # where a run that was killed goes on
    came = []
    for turn in (0, 1):
        order, whole = index.order(3, number_of_pass + turn, batch_size), []
        for place in range(0 if turn else begin * batch_size, len(expected), batch_size):
            rows = order[place : place + batch_size].long()
            seen = stream.frames.windows(rows).numpy().astype(int)
            np.testing.assert_array_equal(seen, windows[seen[:, 1]])
            np.testing.assert_array_equal(stream.pdf[rows], pdf[seen[:, 1]])
            whole += zip(rows.tolist(), seen[:, 1].tolist(), strict=True)
        came.append(whole)
    assert sorted(frame for _, frame in came[1]) == expected.tolist()
    # The same pass from its beginning goes on with the same frames, in the same rows.
    stream.stop()
    order, again = index.order(3, number_of_pass, batch_size), []
    for place in range(0, len(expected), batch_size):
        rows = order[place : place + batch_size].long()
        again += zip(rows.tolist(), stream.frames.windows(rows)[:, 1].int().tolist(), strict=True)
    assert again[begin * batch_size :] == came[0]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(1, 200))
def test_groups_are_alike_and_exceed_their_size_by_a_block_at_most(sizes, group_frames):
    group_frames = max(group_frames, *sizes)
    groups = deal(np.array(sizes), group_frames)
    assert np.concatenate(groups).tolist() == list(range(len(sizes)))
    assert len(groups) == -(-sum(sizes) // group_frames)
    held = [sum(sizes[block] for block in group) for group in groups]
    assert max(held) <= group_frames + max(sizes)
    if max(sizes) < group_frames // 4:
        assert min(held) >= max(held) / 4


@given(st.lists(st.integers(0, 100), min_size=1, max_size=30))
def test_after_its_first_groups_a_pass_goes_on_by_a_group_a_period_and_ends_with_a_window(takes):
    sizes = sizes_of_periods(np.array(takes))
    assert len(sizes) == len(takes)
    assert sizes.sum() == sum(takes)
    alike = sizes_of_periods(np.full(30, 700))
    assert alike[:3].tolist() == [100, 200, 300]
    assert set(alike[6:23]) == {700}
    assert alike[-1] == 700 + 350 + 234 + 175 + 140 + 117 + 100


def test_a_set_that_fits_is_resident_and_gives_the_very_same_net(toy, tmp_path):
    for resident_frames in (0, 991):
        run("train", *sets(toy), *SMALL, "--num-epochs", 1, "--resident-frames", resident_frames, "--out", tmp_path)
    assert load_card(tmp_path / "seed1")["training"]["config"]["resident_frames"] == 0  # not trained again


@pytest.mark.parametrize("cmvn", ["global", "speaker", "utterance", "none"])
@pytest.mark.usefixtures("readers")
def test_what_is_streamed_is_what_is_resident(toy, cmvn):
    everything = TransferChoice()
    wanted, got = (seen_in_pass(choose(load(toy, frames, cmvn), everything)) for frames in (0, 400))
    np.testing.assert_array_equal(got, wanted)


@given(st.lists(st.integers(0, 30), unique=True))
def test_runs_are_the_utterances_in_their_order(utts):
    runs = runs_of(np.array(utts, dtype=int))
    assert [utt for run in runs for utt in range(run.start, run.stop)] == utts
    assert all(one.stop != other.start for one, other in pairwise(runs))


def test_frames_in_eight_bits_are_the_frames_up_to_rounding(toy, tmp_path, capsys):
    """Held whole or streamed; and the key reaches the net's card."""
    exact, whole, part = (load(toy, n, held_as=kind) for n, kind in ((0, None), (0, torch.int8), (400, torch.int8)))
    assert as_held(torch.tensor([-50.0, 0.04, 0.05, 50.0]), torch.int8).tolist() == [-127, 0, 1, 127]
    assert whole.frames.windows(torch.arange(3)).dtype == torch.float32
    every = torch.arange(991)
    exact_windows, windows = (each.frames.windows(every) for each in (exact, whole))
    assert 0 < (exact_windows - windows).abs().max() <= STEP / 2 + 1e-6
    seen = [seen_in_pass(choose(each, TransferChoice())) for each in (whole, part)]
    np.testing.assert_array_equal(*seen)
    run("train", *sets(toy), *SMALL, "--num-epochs", 1, "--eight-bit-frames", "true", "--out", tmp_path)
    assert load_card(tmp_path / "seed1")["training"]["config"]["eight_bit_frames"] is True
    argv = ["train", *sets(toy), *SMALL, "--eight-bit-frames", "true", "--cmvn", "none", "--out", tmp_path]
    assert main([str(arg) for arg in argv]) == 1
    assert "do not fit into 8 bits" in capsys.readouterr().err


CHOICES = {
    "a share": {"share": 0.3, "share_seed": 2},
    "a share with labels": {"labelled_share": 0.4},
    "no labels": {"labelled_share": 0.0},
    "omitted states": {"omit_pdfs": (1, 2)},
    "only some states": {"only_pdfs": (0, 3, 4, 5)},
    "listed": {"utt_ids": frozenset([f"a1-utt{n:03d}" for n in range(1, 30, 2)])},
}


@pytest.mark.parametrize("name", CHOICES)
def test_the_transfer_set_is_that_of_a_resident_set(toy, tmp_path, name):
    extra, _ = write_set(tmp_path, "c", 5, seed=3)
    for extra_feats in (None, extra):
        transfers = [choose(load(toy, n, extra_feats=extra_feats), TransferChoice(**CHOICES[name])) for n in (0, 700)]
        wanted, got = map(seen_in_pass, transfers)
        np.testing.assert_array_equal(got, wanted)
        assert transfers[1].record == transfers[0].record
        assert transfers[1].has_unlabelled == transfers[0].has_unlabelled


@pytest.mark.parametrize(("top_k", "bits"), [(None, 16), (3, 16), (3, 8)])
@pytest.mark.usefixtures("readers")
def test_soft_targets_are_streamed_with_their_frames(toy, tmp_path, top_k, bits):
    extra, _ = write_set(tmp_path, "c", 5, seed=3)
    paths = []
    for number, feats in enumerate((toy["feats"], extra)):
        reader, rng = FeatsReader(feats), np.random.default_rng(number)
        n, width, num_pdfs = reader.layout.num_frames, top_k or 6, 50_000 if top_k else 6
        prob = rng.integers(0, 256, (n, width)) if bits == 8 else rng.dirichlet(np.ones(width), n)
        arrays = {"prob": prob, "pdf": rng.integers(0, num_pdfs, (n, width)), "tail": rng.random(n)}
        attributes = {"temperature": 2.0, "mean": "arithmetic", "members": ["m"], "model_digest": "toy"}
        attributes["content_digest"] = reader.content_digest
        paths.append(tmp_path / f"{number}.h5")
        blocks = [(slice(0, n), arrays)]
        shape = {"num_pdfs": num_pdfs, "top_k": top_k, "bits": bits}
        write_targets(paths[-1], reader.layout, blocks, **shape, attributes=attributes)
    whole, part = (choose(load(toy, n, extra_feats=extra), TransferChoice()) for n in (0, 600))
    wanted = seen_in_pass(whole, StoredTargets.from_readers(list(map(TargetsReader, paths)), CPU["device"]))
    rows = list(map(TargetsRows, paths))
    got = seen_in_pass(part, StoredTargets.from_stream(rows, part.train.stream))
    np.testing.assert_array_equal(got, wanted)


def test_a_pass_that_batches_do_not_fit_into_is_met_before_the_first(toy, tmp_path, capsys):
    train, seed = load(toy, 900), 2
    index = choose(train, TransferChoice()).index

    def largest_batch(number_of_pass: int) -> int:
        for batch in range(20, 400):
            try:
                index.order(seed, number_of_pass, batch)
            except AsrKdError:
                return batch - 1
        raise AssertionError

    largest = [largest_batch(number) for number in range(4)]
    worst = next(number for number in range(1, 4) if largest[number] < max(largest[:number]))
    batch = largest[worst] + 1
    assert batch <= largest[0], "of this seed the first pass is the one to fail"
    argv = [
        "train",
        *sets(toy),
        *SMALL,
        *MOST_OF_TOY,
        "--batch-size",
        batch,
        "--num-epochs",
        worst + 1,
        "--seeds",
        seed,
    ]
    assert main([str(arg) for arg in (*argv, "--out", tmp_path)]) == 1
    assert f"too few for batches of {batch}" in (said := capsys.readouterr().err)
    assert "train loss" not in said


def test_what_is_read_by_rows_is_checked_as_what_is_read_whole(toy, tmp_path):
    whole, rows = AliReader(toy["ali"]), AliRows(toy["ali"], block_frames=100)
    assert (rows.layout.digest, rows.num_labelled) == (whole.layout.digest, int((whole.pdf >= 0).sum()))
    np.testing.assert_array_equal(rows.read(slice(3, 9)), whole.pdf[whole.layout.offsets[3] : whole.layout.offsets[9]])
    for name, change in {"states 0 to 99": 99, "not those of its values_digest": 1, "only in part": -1}.items():
        path = tmp_path / "ali.h5"
        path.write_bytes(toy["ali"].read_bytes())
        with h5py.File(path, "r+") as file:
            file["pdf"][500] = change if file["pdf"][500] != change else 2
        for kind in (AliReader, AliRows):
            with pytest.raises(AsrKdError, match=name):
                kind(path)


WITH = {
    "dropout and masks": ["--dropout", 0.2, "--time-masks", 1],
    "a budget": ["--max-steps", 50, "--steps-per-epoch", 13],
    "members drawn, and some labels": ["--labelled-share", 0.5],
}


@pytest.mark.parametrize("name", WITH)
@pytest.mark.usefixtures("readers")
def test_a_kill_between_any_steps_changes_nothing(toy, tmp_path, name, monkeypatch):
    """Saved after every step; killed after 1, 2, 3, … saves until it ends by itself."""
    argv = ["train", "--num-epochs", 3]
    if name == "members drawn, and some labels":
        run("train", *sets(toy), *SMALL, "--num-epochs", 1, "--seeds", "1-3", "--out", tmp_path / "teachers")
        teachers = [tmp_path / f"teachers/seed{seed}" for seed in (1, 2, 3)]
        argv = ["distill", "--teachers", *teachers, "--student-epochs", 3, "--online-members", 1]
    argv += [*sets(toy), *SMALL, *MOST_OF_TOY, *WITH[name]]
    run(*argv, "--out", tmp_path / "whole")
    train_in_pieces([*argv, "--out", tmp_path / "broken"], monkeypatch)
    whole, pieces = (load_card(tmp_path / folder / "seed1") for folder in ("whole", "broken"))
    assert pieces["digest"] == whole["digest"]


def spoil(path: Path, dataset: str) -> None:
    """Overwrite the last rows of a data set, as a failing disk would."""
    with h5py.File(path, "r+") as file:
        file[dataset][-20:] = np.nan


# What happens to a file after so many checkpoints.
FAULTS = {
    "their digest is another": (0, lambda toy: spoil(toy["feats"], "feats")),
    "feats.h5: was changed or removed while it was trained on": (5, lambda toy: toy["feats"].unlink()),
    "ali.h5: was changed or removed while it was trained on": (5, lambda toy: os.utime(toy["ali"])),
}


@pytest.mark.parametrize("complaint", FAULTS)
@pytest.mark.usefixtures("readers")
def test_a_file_that_is_spoilt_is_a_sentence_and_once_it_is_mended_the_run_goes_on(
    toy, tmp_path, complaint, monkeypatch, capsys
):
    argv = ["train", *SMALL, *MOST_OF_TOY, "--num-epochs", 2, "--checkpoint-minutes", 1e-9]
    run(*argv, *sets(toy), "--out", tmp_path / "whole")
    here, saved = {key: tmp_path / f"{key}.h5" for key in toy}, []
    (after, fault), save = FAULTS[complaint], loop.save_checkpoint

    def mend() -> None:
        for key, path in toy.items():
            here[key].unlink(missing_ok=True)  # another file: the first may still be open
            here[key].write_bytes(path.read_bytes())

    def save_and_spoil(folder, checkpoint):
        save(folder, checkpoint)
        saved.append(1)
        if len(saved) == after:
            fault(here)

    mend()
    if not after:
        fault(here)
    monkeypatch.setattr(loop, "save_checkpoint", save_and_spoil)
    assert main([str(arg) for arg in (*argv, *sets(here), "--out", tmp_path / "spoilt")]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert complaint in errors[0]
    mend()
    run(*argv, *sets(here), "--out", tmp_path / "spoilt")
    assert "continuing after step" in capsys.readouterr().err or not after
    digests = [load_card(tmp_path / name / "seed1")["digest"] for name in ("whole", "spoilt")]
    assert digests[0] == digests[1]


def test_what_needs_all_frames_refuses_a_part(toy, tmp_path, capsys):
    run("train", *sets(toy), *SMALL, "--num-epochs", 1, "--out", tmp_path / "net")
    net = tmp_path / "net/seed1"
    refused = {
        "asr-kd sweep without online_targets needs all frames": ["sweep", "--teachers", net],
        "asr-kd train-specialists needs all frames": ["train-specialists", "--generalist", net],
        "too few for batches of 300": ["train", "--batch-size", 300],
    }
    for complaint, argv in refused.items():
        argv = [argv[0], *sets(toy), *SMALL, *argv[1:], *MOST_OF_TOY, "--out", tmp_path / "out"]
        assert main([str(arg) for arg in argv]) == 1
        assert complaint in capsys.readouterr().err


def test_members_that_lack_a_fold_lack_the_same_utterances(toy, tmp_path):
    argv = ["train-ensemble", *sets(toy), *SMALL, "--num-members", 2, "--num-seeds", 1, "--folds", 2, "--num-epochs", 1]
    run(*argv, "--out", tmp_path / "resident")
    run(*argv, *MOST_OF_TOY, "--out", tmp_path / "streamed")
    for seed in ("seed1", "seed2"):
        cards = [load_card(tmp_path / name / seed)["training"] for name in ("resident", "streamed")]
        assert cards[0]["transfer"] == cards[1]["transfer"]
        assert cards[0]["num_train_frames"] == cards[1]["num_train_frames"]


@pytest.mark.parametrize(
    "options", [["--top-k", 3, "--target-pruning", "random"], ["--top-k-kl", 0.01], ["--top-k", "null"]]
)
def test_soft_targets_of_frames_on_disk_are_the_same_file(toy, tmp_path, options, monkeypatch):
    monkeypatch.setattr("asr_kd.nnet.frames.BLOCK_FRAMES", 300)
    run("train", *sets(toy), *SMALL, "--num-epochs", 1, "--out", tmp_path)
    argv = ["soft-targets", "--teachers", tmp_path / "seed1", "--feats", toy["feats"], "--device", "cpu", *options]
    argv += ["--precision", "float32"]
    run(*argv, "--out", tmp_path / "whole.h5")
    run(*argv, "--resident-frames", 500, "--out", tmp_path / "read.h5")
    assert (tmp_path / "read.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_a_gpus_copies_wait_for_what_was_computed_and_are_waited_for(toy, tmp_path, monkeypatch):
    """With stand-ins for its streams and events: memory is pinned, and weights are those of copies without these."""
    happened, pinned, init = [], [], stream.Stream.__init__

    class Copies:
        def wait_event(self, event: str) -> None:
            happened.append(f"waited for {event}")

        def synchronize(self) -> None:
            happened.append("copied")

    class Computed:
        def record_event(self) -> str:
            happened.append(f"event {len(happened)}")
            return happened[-1]

    def with_copies(self, *args, **how) -> None:
        init(self, *args, **how)
        self._copies = Copies()

    train = ["train", *sets(toy), *SMALL, "--num-epochs", 2, *MOST_OF_TOY]
    run(*train, "--out", tmp_path / "plain")
    monkeypatch.setattr(stream.Stream, "__init__", with_copies)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Computed())
    for name in ("stream", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self.dtype) or self.clone())
    run(*train, "--out", tmp_path / "copied")
    plain, copied = (load_net(tmp_path / name / "seed1") for name in ("plain", "copied"))
    assert plain.digest == copied.digest
    events = [each for each in happened if each.startswith("event")]
    assert [each.removeprefix("waited for ") for each in happened if each.startswith("waited")] == events
    assert len(events) > 8  # slots are filled again
    assert happened.count("copied") >= 2 * len(events)  # what is read, and its order
    assert set(pinned) == {torch.float32, torch.int32}
