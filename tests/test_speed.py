"""Copies of a data directory at other speeds."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr_kd.corpus.datadir import (
    Recording,
    Utterance,
    check_disjoint,
    load_data_dir,
    read_data_dir,
    write_data_dir,
)
from asr_kd.corpus.fix import fix_data_dir
from asr_kd.errors import AsrKdError
from asr_kd.features import speed
from asr_kd.features.audio import read_audio, read_samples
from asr_kd.features.speed import perturb_speed

pytest.importorskip("soxr", reason="soxr is absent: pip install '.[audio]'")
SCRIPT = Path(__file__).parent.parent / "data_prep" / "data_dir.py"
RATE = 8000


def quiet(message: str) -> None:
    pass


def make_data(path: Path, segments: bool, num_recordings: int = 3) -> Path:
    """Tones of 400, 800, … Hz, a second each, stereo with the tone in channel B; with segments two utterances each."""
    utts = []
    for i in range(num_recordings):
        wav = path.parent / "corpus" / f"{i}.flac"
        wav.parent.mkdir(exist_ok=True)
        tone = 0.5 * np.sin(2 * np.pi * 400 * (i % 9 + 1) * np.arange(RATE) / RATE)
        soundfile.write(wav, np.stack([np.zeros(RATE), tone], axis=1), RATE)
        spk_id = f"s{i // 2}"
        if segments:
            recording = Recording(f"{spk_id}-rec{i}", str(wav), 1)
            utts += [Utterance(f"{spk_id}-u{i}-{t}", spk_id, recording, t, t + 0.45, ("x",)) for t in (0.0, 0.5)]
        else:
            utts.append(Utterance(f"{spk_id}-u{i}", spk_id, Recording(f"{spk_id}-u{i}", str(wav), 1), words=("x",)))
    write_data_dir(path, utts)
    return path


def perturb(data: Path, out: Path, factors=(0.9, 1.0, 1.1), **options) -> list[Utterance]:
    perturb_speed(load_data_dir(data), out, factors, **{"log": quiet, **options})
    return read_data_dir(out, allow_pipes=False)


def tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def pitch(samples: np.ndarray) -> float:
    """The strongest frequency in Hz."""
    return float(np.argmax(np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 16 * RATE)))) / 16


@pytest.mark.parametrize("segments", [False, True])
def test_copies_are_longer_and_lower_or_shorter_and_higher(tmp_path: Path, segments: bool):
    data = make_data(tmp_path / "data", segments)
    originals = {utt.utt_id: utt for utt in read_data_dir(data)}
    utts = perturb(data, tmp_path / "out")
    assert len(utts) == 3 * len(originals)
    assert fix_data_dir(tmp_path / "out") == []
    for utt in utts:
        original = originals[utt.uniq_id]
        factor = float(utt.utt_id[2 : utt.utt_id.index("-")]) if utt.utt_id.startswith("sp") else 1.0
        prefix = "" if factor == 1 else f"sp{factor:g}-"
        assert (utt.utt_id, utt.spk_id) == (prefix + original.utt_id, prefix + original.spk_id)
        assert utt.words == original.words
        before, after = read_samples(original, RATE), read_samples(utt, RATE)
        assert len(after) == pytest.approx(len(before) / factor, abs=2)
        assert pitch(after) == pytest.approx(pitch(before) * factor, rel=5e-3)
        assert np.abs(after).max() == pytest.approx(16384, rel=0.12)
        if factor == 1:
            np.testing.assert_array_equal(after, before)


def test_copies_of_copies_keep_their_first_original(tmp_path: Path):
    data = make_data(tmp_path / "data", segments=False)
    perturb(data, tmp_path / "slow", [0.9])
    twice = perturb(tmp_path / "slow", tmp_path / "slower", [0.9])
    assert twice[0].utt_id == "sp0.9-sp0.9-s0-u0"
    train = perturb(data, tmp_path / "train")
    assert {utt.uniq_id for utt in twice} == {utt.uniq_id for utt in train} == {"s0-u0", "s0-u1", "s1-u2"}


@pytest.mark.parametrize("segments", [False, True])
def test_no_copy_may_stand_in_another_set_than_its_original(tmp_path: Path, segments: bool):
    """train/dev/test cut by speaker stay disjoint after perturbation; a copy in the wrong one is found."""
    data = read_data_dir(make_data(tmp_path / "data", segments))
    sets = {}
    for name, spk_id in (("train", "s0"), ("test", "s1")):
        write_data_dir(tmp_path / name, [utt for utt in data if utt.spk_id == spk_id])
        sets[name] = perturb(tmp_path / name, tmp_path / f"{name}_sp")
    check_disjoint(sets, by_speaker=True)
    for number, copy in enumerate(sets["train"]):
        moved = {"train": sets["train"][:number] + sets["train"][number + 1 :], "test": [*sets["test"], copy]}
        with pytest.raises(AsrKdError, match=r"is in both train and test"):
            check_disjoint(moved, by_speaker=False)


def test_other_files_follow(tmp_path: Path):
    data = make_data(tmp_path / "data", segments=True)
    utt_ids = [utt.utt_id for utt in read_data_dir(data)]
    (data / "utt2dur").write_text("".join(f"{utt_id} 0.45\n" for utt_id in utt_ids))
    (data / "utt2lang").write_text("".join(f"{utt_id} en\n" for utt_id in utt_ids))
    (data / "spk2gender").write_text("s0 f\ns1 m\n")
    (data / "feats.scp").write_text("".join(f"{utt_id} f.ark:1\n" for utt_id in utt_ids))
    perturb(data, tmp_path / "out", [0.9])
    assert (tmp_path / "out" / "utt2dur").read_text().splitlines()[0] == f"sp0.9-{utt_ids[0]} 0.5"
    # As Kaldi's perturb_data_dir_speed.sh 0.9 made it of the same directory, but for its two decimals.
    segments = [line.split() for line in (tmp_path / "out" / "segments").read_text().splitlines()]
    assert [(utt_id, rec_id, f"{float(a):.2f} {float(b):.2f}") for utt_id, rec_id, a, b in segments] == [
        ("sp0.9-s0-u0-0.0", "sp0.9-s0-rec0", "0.00 0.50"),
        ("sp0.9-s0-u0-0.5", "sp0.9-s0-rec0", "0.56 1.06"),
        ("sp0.9-s0-u1-0.0", "sp0.9-s0-rec1", "0.00 0.50"),
        ("sp0.9-s0-u1-0.5", "sp0.9-s0-rec1", "0.56 1.06"),
        ("sp0.9-s1-u2-0.0", "sp0.9-s1-rec2", "0.00 0.50"),
        ("sp0.9-s1-u2-0.5", "sp0.9-s1-rec2", "0.56 1.06"),
    ]
    assert (tmp_path / "out" / "reco2file_and_channel").read_text().startswith("sp0.9-s0-rec0 s0-rec0 B\n")
    assert (tmp_path / "out" / "utt2uniq").read_text().startswith("sp0.9-s0-u0-0.0 s0-u0-0.0\n")
    assert (tmp_path / "out" / "spk2gender").read_text() == "sp0.9-s0 f\nsp0.9-s1 m\n"
    assert (tmp_path / "out" / "utt2lang").read_text().startswith(f"sp0.9-{utt_ids[0]} en\n")
    assert not (tmp_path / "out" / "feats.scp").exists()  # those are the originals'


def test_processes_make_no_difference(tmp_path: Path):
    data = make_data(tmp_path / "data", segments=False, num_recordings=12)
    perturb(data, tmp_path / "one", [0.9], nj=1)
    perturb(data, tmp_path / "two", [0.9], nj=2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


@pytest.mark.parametrize("survived", [0, 1, 4])
def test_what_a_killed_run_has_finished_is_kept(tmp_path: Path, monkeypatch, survived: int):
    data = make_data(tmp_path / "data", segments=True)
    perturb(data, tmp_path / "whole")
    written = []
    write_one = speed._write_one

    def write_some(task, allow_pipes):
        if len(written) == survived:
            raise KeyboardInterrupt
        written.append(task[2])
        return write_one(task, allow_pipes)

    monkeypatch.setattr(speed, "_write_one", write_some)
    with pytest.raises(KeyboardInterrupt):
        perturb(data, tmp_path / "out")
    with pytest.raises(AsrKdError, match="missing"):
        read_data_dir(tmp_path / "out")
    monkeypatch.undo()
    before = {path: path.stat().st_mtime_ns for path in written}
    perturb(data, tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in written} == before
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def _wait_for_the_end_of(group: int) -> None:
    """Fail unless all processes of a group end by themselves."""
    for _ in range(400):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.killpg(group, signal.SIGKILL)
    pytest.fail("a process of the killed run is still there")


def test_kill_9_leaves_no_half_recording_and_no_process(tmp_path: Path):
    data = make_data(tmp_path / "data", segments=False, num_recordings=60)
    command = [sys.executable, SCRIPT, "perturb-speed", data, tmp_path / "out", "--nj", "2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    while len(list((tmp_path / "out").glob("wav/*.wav"))) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _wait_for_the_end_of(process.pid)  # until which a recording may be at work still, and a second run is refused
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "wav").glob("*.wav")}
    for path in finished:
        assert len(read_audio(path, RATE)) in (8889, 7273)
    utts = perturb(data, tmp_path / "out")
    assert len(utts) == 180
    assert {path: path.stat().st_mtime_ns for path in finished} == finished


def test_changed_recordings_and_factors_are_made_anew(tmp_path: Path):
    data = make_data(tmp_path / "data", segments=False)
    perturb(data, tmp_path / "out", [0.9])
    assert [utt.utt_id[:6] for utt in perturb(data, tmp_path / "out", [1.1])] == ["sp1.1-"] * 3
    assert len(list((tmp_path / "out" / "wav").iterdir())) == 3
    first = tree(tmp_path / "out")["wav/sp1.1-s0-u0.wav"]
    soundfile.write(tmp_path / "corpus" / "0.flac", np.zeros((100, 2)), RATE)
    perturb(data, tmp_path / "out", [1.1])
    assert tree(tmp_path / "out")["wav/sp1.1-s0-u0.wav"] != first


def test_recordings_of_others_are_not_touched(tmp_path: Path):
    data = make_data(tmp_path / "data", segments=False)
    (tmp_path / "corpus2" / "wav").mkdir(parents=True)
    (tmp_path / "corpus2" / "wav" / "only copy.wav").touch()
    with pytest.raises(AsrKdError, match="corpus2: holds something else than perturbed speech"):
        perturb(data, tmp_path / "corpus2")
    assert (tmp_path / "corpus2" / "wav" / "only copy.wav").exists()


def test_bad_recordings_are_listed_and_left_out_up_to_a_share(tmp_path: Path):
    data = make_data(tmp_path / "data", segments=True, num_recordings=4)
    flac = tmp_path / "corpus" / "1.flac"
    flac.write_bytes(flac.read_bytes()[:3000])
    with pytest.raises(AsrKdError, match=r"1 of 4 recordings .* share of 0.1 .* the first is s0-rec1: .*1.flac"):
        perturb(data, tmp_path / "out", max_bad_share=0.1)
    lines: list[str] = []
    utts = perturb(data, tmp_path / "out", max_bad_share=0.25, log=lines.append)
    assert {utt.uniq_id[:5] for utt in utts} == {"s0-u0", "s1-u2", "s1-u3"}
    assert any(line.startswith(f"left out s0-rec1: {flac}") for line in lines)


def test_commands_only_where_allowed(tmp_path: Path):
    data = make_data(tmp_path / "data", segments=False, num_recordings=1)
    utt = read_data_dir(data)[0]
    recording = dataclasses.replace(utt.recording, source=f"cat {utt.recording.source} |")
    write_data_dir(data, [dataclasses.replace(utt, recording=recording)])
    with pytest.raises(AsrKdError, match="not run unless that is allowed"):
        perturb(data, tmp_path / "out", [0.9])
    assert len(perturb(data, tmp_path / "out", [0.9], allow_pipes=True)) == 1


def test_full_disk_is_one_sentence_and_the_next_run_continues(tmp_path: Path):
    """A limit on the size of files stands for the disk: the stamp fits, a recording does not."""
    data = make_data(tmp_path / "data", segments=False)
    command = [sys.executable, SCRIPT, "perturb-speed", data, tmp_path / "out"]
    limit = (5000, 5000)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path / 'out' / 'wav'}")
    assert "could not be written" in done.stderr
    assert list((tmp_path / "out" / "wav").iterdir()) == []
    assert json.loads((tmp_path / "out" / "speed.json").read_text())["factors"] == [0.9, 1.0, 1.1]
    assert len(perturb(data, tmp_path / "out")) == 9
