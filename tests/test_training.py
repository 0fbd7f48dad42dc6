import json
import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import torch

from asr_kd.cli import main
from asr_kd.nnet.frames import Cmvn, Frames
from asr_kd.nnet.model import Architecture, new_net
from asr_kd.nnet.net_dir import load_card, load_net, weights_digest
from asr_kd.store.feats import FeatsReader
from asr_kd.store.hdf5 import Layout
from asr_kd.store.targets import TargetsReader
from asr_kd.training import loop

SMALL = ["--hidden-dim", "16", "--num-hidden-layers", "1", "--left-context", "3", "--right-context", "1"]
SMALL += ["--batch-size", "64", "--warmup-steps", "5"]
SMALL += ["--device", "cpu", "--precision", "float32", "--learning-rate", "0.01"]


def sets(toy: dict) -> list[str]:
    return [item for key, path in toy.items() for item in (f"--{key.replace('_', '-')}", str(path))]


def run(*argv: object) -> None:
    assert main([str(arg) for arg in argv]) == 0


@pytest.fixture(scope="module")
def members(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("members")
    run("train-ensemble", *sets(toy), "--out", out, "--num-members", 3, "--num-epochs", 4, *SMALL)
    return [out / f"seed{seed}" for seed in (1, 2, 3)]


def test_windows_are_those_of_splice_feats(toy):
    with FeatsReader(toy["feats"]) as reader:
        cmvn = Cmvn.from_training_set("utterance", reader)
        frames = Frames.from_reader(reader, cmvn, 4, 2, torch.device("cpu"))
        normalised = np.concatenate([feats for _, feats in cmvn.normalised_blocks(reader, block_frames=50)])
        for utt_id in reader.layout.utt_ids[:5]:
            rows = reader.layout.rows(utt_id)
            feats = normalised[rows]
            index = np.clip(np.arange(len(feats))[:, None] + np.arange(-4, 3), 0, len(feats) - 1)
            expected = feats[index].reshape(len(feats), -1)
            got = frames.windows(torch.arange(rows.start, rows.stop)).numpy()
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("mode", ["global", "speaker", "utterance"])
def test_cmvn_gives_zero_mean_and_unit_variance_over_its_groups(toy, mode):
    with FeatsReader(toy["feats"]) as reader:
        blocks = Cmvn.from_training_set(mode, reader).normalised_blocks(reader)
        feats = np.concatenate([feats for _, feats in blocks])
        keys = {"global": ["all"] * reader.layout.num_utts, "speaker": reader.spk_ids}.get(mode, reader.layout.utt_ids)
        group = np.repeat(np.array(keys), reader.layout.lengths)
        for key in set(keys):
            np.testing.assert_allclose(feats[group == key].mean(0), 0, atol=1e-3)
            np.testing.assert_allclose(feats[group == key].std(0), 1, atol=1e-3)


def test_an_ensemble_learns_and_its_members_differ_by_seed_alone(members, toy, tmp_path):
    cards = [load_card(member) for member in members]
    assert len({card["digest"] for card in cards}) == 3
    assert all(card["training"]["history"][-1]["dev_frame_acc"] > 50 for card in cards)
    # A member trained alone is the member trained among others.
    run("train", *sets(toy), "--out", tmp_path, "--seeds", "2", "--num-epochs", 4, *SMALL)
    assert load_card(tmp_path / "seed2")["digest"] == cards[1]["digest"]


def test_the_best_epoch_by_dev_is_kept(members, toy):
    card = load_card(members[0])
    history = card["training"]["history"]
    best = max(row["dev_frame_acc"] for row in history)
    assert history[card["training"]["best_epoch"] - 1]["dev_frame_acc"] == best


def test_a_complete_net_is_not_trained_again(members, toy, capsys):
    out = members[0].parent
    before = (members[0] / "net.json").stat().st_mtime_ns
    run("train-ensemble", *sets(toy), "--out", out, "--num-members", 3, "--num-epochs", 4, *SMALL)
    assert (members[0] / "net.json").stat().st_mtime_ns == before
    assert capsys.readouterr().err.count("up to date") == 3


def test_another_configuration_trains_anew(toy, tmp_path):
    for dim in (8, 12):
        run("train", *sets(toy), "--out", tmp_path, "--num-epochs", 1, *SMALL, "--hidden-dim", dim)
    assert load_card(tmp_path / "seed1")["architecture"]["hidden_dim"] == 12


def test_an_interrupted_run_ends_with_the_same_weights(toy, tmp_path, monkeypatch):
    """Stop after every epoch in turn; dropout too must draw what an unbroken run would have drawn."""
    options = [*sets(toy), "--num-epochs", 4, *SMALL, "--dropout", 0.2]
    run("train", *options, "--out", tmp_path / "whole")
    wanted = load_card(tmp_path / "whole" / "seed1")["digest"]
    evaluate = loop.evaluate
    for broken_epoch in range(1, 5):
        calls = []

        def stop(net, dev, dtype, calls=calls, broken_epoch=broken_epoch):
            calls.append(1)
            if len(calls) == broken_epoch:
                raise KeyboardInterrupt
            return evaluate(net, dev, dtype)

        out = tmp_path / f"broken{broken_epoch}"
        monkeypatch.setattr(loop, "evaluate", stop)
        assert main([str(a) for a in ("train", *options, "--out", out)]) == 130
        monkeypatch.setattr(loop, "evaluate", evaluate)
        run("train", *options, "--out", out)
        assert load_card(out / "seed1")["digest"] == wanted


def test_a_killed_run_ends_with_the_same_weights(toy, tmp_path):
    options = ["train", *sets(toy), "--num-epochs", 15, "--seeds", "1-2", *SMALL]
    command = [sys.executable, "-m", "asr_kd.cli", *map(str, options), "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(tmp_path / "whole")], check=True, env=environment, capture_output=True)
    killed = subprocess.Popen([*command, str(tmp_path / "killed")], env=environment, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "killed" / "seed1" / "checkpoint.safetensors"
    while killed.poll() is None and not checkpoint.exists():
        time.sleep(0.01)
    assert killed.poll() is None, "the run ended before it could be killed"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    subprocess.run([*command, str(tmp_path / "killed")], check=True, env=environment, capture_output=True)
    for seed in ("seed1", "seed2"):
        assert load_card(tmp_path / "killed" / seed)["digest"] == load_card(tmp_path / "whole" / seed)["digest"]


def test_a_loss_that_is_no_number_is_an_error_that_says_what_to_do(toy, tmp_path, capsys):
    options = [*sets(toy), *SMALL, "--optimizer", "sgd", "--learning-rate", "1e9", "--max-grad-norm", "0"]
    assert main([str(a) for a in ("train", *options, "--out", tmp_path)]) == 1
    assert "lower the learning rate" in capsys.readouterr().err


def test_a_changed_weight_file_is_refused(members, tmp_path, capsys):
    import shutil

    from asr_kd.errors import AsrKdError

    shutil.copytree(members[0], tmp_path / "net")
    path = tmp_path / "net" / "final.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(AsrKdError, match="does not hold the weights"):
        load_net(tmp_path / "net")
    path.write_bytes(bytes(data[:100]))
    with pytest.raises(AsrKdError, match="cannot be loaded"):
        load_net(tmp_path / "net")


@pytest.mark.parametrize("combination", ["arithmetic", "geometric"])
def test_stored_targets_are_the_members_mean_and_train_the_student_that_online_ones_do(
    members, toy, tmp_path, combination
):
    common = ["--temperature", 2, "--combination", combination, "--teachers", *members]
    run("soft-targets", *common, "--feats", toy["feats"], "--out", tmp_path / "targets.h5", "--device", "cpu")
    reader = TargetsReader(tmp_path / "targets.h5")
    np.testing.assert_allclose(reader.prob.astype(np.float64).sum(1), 1, atol=4e-3)
    student = [*sets(toy), *SMALL, "--student-epochs", 3, "--soft-weight", 1]
    run("distill", *student, "--targets", tmp_path / "targets.h5", "--out", tmp_path / "stored")
    run("distill", *student, *common, "--out", tmp_path / "online")
    accuracy = [
        load_card(tmp_path / way / "seed1")["training"]["history"][-1]["dev_xent"] for way in ("stored", "online")
    ]
    # float16 targets are lossless in effect, not in bits.
    assert accuracy[0] == pytest.approx(accuracy[1], rel=1e-3)


def test_top_k_of_all_states_equals_dense(members, toy, tmp_path):
    for k in ("null", "6", "3"):
        run(
            "soft-targets", "--teachers", *members, "--feats", toy["feats"], "--top-k", k, "--temperature", 1,
            "--out", tmp_path / f"{k}.h5", "--device", "cpu",
        )  # fmt: skip
    dense, whole, top = (TargetsReader(tmp_path / f"{k}.h5") for k in ("null", "6", "3"))
    spread = np.zeros_like(dense.prob)
    np.put_along_axis(spread, whole.pdf, whole.prob, axis=1)
    np.testing.assert_array_equal(spread, dense.prob)
    mass = top.prob.astype(np.float64).sum(1) + top.tail
    np.testing.assert_allclose(mass, 1, atol=1e-3)
    np.testing.assert_array_equal(top.prob, np.sort(dense.prob, axis=1)[:, :2:-1])


def test_targets_of_other_frames_or_values_are_refused(members, toy, tmp_path, capsys):
    run("soft-targets", "--teachers", *members, "--feats", toy["dev_feats"], "--out", tmp_path / "dev.h5")
    student = [*sets(toy), *SMALL, "--student-epochs", 1, "--out", tmp_path / "student"]
    assert main([str(a) for a in ("distill", *student, "--targets", tmp_path / "dev.h5")]) == 1
    assert "made for other utterances" in capsys.readouterr().err
    run("soft-targets", "--teachers", *members, "--feats", toy["feats"], "--out", tmp_path / "train.h5")
    with h5py.File(tmp_path / "train.h5", "r+") as file:
        file.attrs["content_digest"] = "0" * 64
    assert main([str(a) for a in ("distill", *student, "--targets", tmp_path / "train.h5")]) == 1
    assert "other feature values" in capsys.readouterr().err
    run("distill", *student, "--targets", tmp_path / "train.h5", "--allow-views")


def test_the_sweep_tries_every_setting_and_names_the_best(members, toy, tmp_path):
    run(
        "sweep", *sets(toy), *SMALL, "--teachers", *members, "--sweep-epochs", 1, "--sweep-temperatures", "1,4",
        "--sweep-soft-weights", "1,0.5", "--sweep-combinations", "arithmetic,geometric", "--out", tmp_path,
    )  # fmt: skip
    rows = json.loads((tmp_path / "sweep.json").read_text())
    assert len(rows) == len({(r["temperature"], r["soft_weight"], r["combination"]) for r in rows}) == 8
    best = max(rows, key=lambda row: row["dev_frame_acc"])
    chosen = (tmp_path / "best.yaml").read_text()
    assert f"temperature: {best['temperature']}" in chosen
    assert best["combination"] in chosen


def test_baseline_and_student_leave_out_frames_without_a_label(members, toy, tmp_path):
    import shutil

    shutil.copy(toy["ali"], tmp_path / "ali.h5")
    with h5py.File(tmp_path / "ali.h5", "r+") as file:
        end = int(file["utt/offset"][1])
        file["pdf"][:end] = -1
    options = [*sets({**toy, "ali": tmp_path / "ali.h5"}), *SMALL]
    run("train", *options, "--num-epochs", 1, "--out", tmp_path / "hard")
    run("distill", *options, "--teachers", *members, "--student-epochs", 1, "--out", tmp_path / "soft")
    with FeatsReader(toy["feats"]) as reader:
        total = reader.layout.num_frames
    assert load_card(tmp_path / "hard/seed1")["training"]["num_train_frames"] == total - end
    assert load_card(tmp_path / "soft/seed1")["training"]["num_train_frames"] == total - end


def test_an_alignment_of_other_utterances_is_refused(toy, tmp_path, capsys):
    crossed = {**toy, "ali": toy["dev_ali"]}
    assert main([str(a) for a in ("train", *sets(crossed), *SMALL, "--out", tmp_path)]) == 1
    assert str(toy["dev_ali"]) in capsys.readouterr().err


def test_dev_must_not_hold_training_utterances(toy, tmp_path, capsys):
    leaky = {**toy, "dev_feats": toy["feats"], "dev_ali": toy["ali"]}
    assert main([str(a) for a in ("train", *sets(leaky), *SMALL, "--out", tmp_path)]) == 1
    assert "is in the training set too" in capsys.readouterr().err


def test_initial_weights_follow_from_the_seed():
    shape = Architecture(1, 1, 4, 2, 8, 5)
    assert weights_digest(new_net(shape, 1)) == weights_digest(new_net(shape, 1)) != weights_digest(new_net(shape, 2))


def test_an_utterance_of_one_frame_has_a_window():
    layout = Layout.from_lengths(["a", "b"], [1, 3])
    frames = Frames(np.arange(8, dtype=np.float32).reshape(4, 2), layout, 2, 1, torch.device("cpu"))
    assert frames.windows(torch.tensor([0])).tolist() == [[0, 1] * 4]
    assert frames.windows(torch.tensor([3])).tolist() == [[2, 3, 4, 5, 6, 7, 6, 7]]


def test_the_training_side_imports_without_librosa_torchaudio_and_the_kaldi_wheels():
    blocked = ["librosa", "torchaudio", "kaldi_hmm_gmm", "kaldifst", "kaldi_decoder", "espeakng_loader"]
    program = (
        f"import sys; [sys.modules.__setitem__(name, None) for name in {blocked}]; "
        "from asr_kd.cli import main; import asr_kd.scoring.report, asr_kd.scoring.results, asr_kd.features.fbank; "
        "raise SystemExit(main(['config']))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


def test_nets_are_not_applied_to_features_of_another_front_end(members, toy, tmp_path, capsys):
    import shutil

    shutil.copy(toy["feats"], tmp_path / "other.h5")
    with h5py.File(tmp_path / "other.h5", "r+") as file:
        file.attrs["sample_rate"] = 8000
    argv = ["soft-targets", "--teachers", *members, "--feats", tmp_path / "other.h5", "--out", tmp_path / "t.h5"]
    assert main([str(arg) for arg in argv]) == 1
    assert "another front end" in capsys.readouterr().err


def test_targets_over_states_of_another_hmm_are_refused(members, toy, tmp_path, capsys):
    run("soft-targets", "--teachers", *members, "--feats", toy["feats"], "--out", tmp_path / "t.h5")
    with h5py.File(tmp_path / "t.h5", "r+") as file:
        file.attrs["model_digest"] = "another"
    argv = ["distill", *sets(toy), *SMALL, "--targets", tmp_path / "t.h5", "--out", tmp_path / "student"]
    assert main([str(arg) for arg in argv]) == 1
    assert "another HMM" in capsys.readouterr().err


def test_a_stamp_does_not_outlive_the_start_of_other_work(tmp_path):
    from asr_kd.runinfo import make

    output = tmp_path / "output"
    runs = []

    def work():
        runs.append(1)
        output.write_text("a")

    def fail():
        raise KeyboardInterrupt

    assert make(output, work, command="test", source="a")
    assert not make(output, work, command="test", source="a")
    with pytest.raises(KeyboardInterrupt):  # overwritten from here on, perhaps killed
        make(output, fail, command="test", source="b")
    assert make(output, work, command="test", source="a")
    assert len(runs) == 2


@pytest.mark.parametrize("option", ["--num-epochs", "--batch-size", "--hidden-dim"])
def test_sizes_of_nothing_are_refused(toy, tmp_path, option, capsys):
    assert main([str(a) for a in ("train", *sets(toy), *SMALL, option, 0, "--out", tmp_path)]) == 1
    assert "must be at least 1" in capsys.readouterr().err
