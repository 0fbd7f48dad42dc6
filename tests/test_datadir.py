"""Kaldi data directories: what is refused, and what comes back as it went in."""

import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from asr_kd.corpus.datadir import Recording, Utterance, check_disjoint, read_data_dir, write_data_dir
from asr_kd.errors import AsrKdError

SCRIPTS = Path(__file__).parent.parent / "data_prep"


def write_wav(path: Path, samples: np.ndarray, rate: int = 8000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(np.asarray(samples).astype("<i2").tobytes())


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    utts = []
    for utt_id in ("a-2", "b-1", "a-1"):
        write_wav(tmp_path / "wav" / f"{utt_id}.wav", np.zeros(80))
        utts.append(
            Utterance(
                utt_id, utt_id[0], Recording(utt_id, str(tmp_path / "wav" / f"{utt_id}.wav")), words=("one", "two")
            )
        )
    write_data_dir(tmp_path / "data", utts)
    return tmp_path / "data"


def test_data_dir_round_trip(data_dir: Path):
    utts = read_data_dir(data_dir)
    assert [(utt.utt_id, utt.spk_id, utt.words) for utt in utts] == [
        ("a-1", "a", ("one", "two")),
        ("a-2", "a", ("one", "two")),
        ("b-1", "b", ("one", "two")),
    ]
    assert (data_dir / "spk2utt").read_text() == "a a-1 a-2\nb b-1\n"
    assert not (data_dir / "utt2uniq").exists()


def test_moved_corpus_is_found_again(data_dir: Path, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    for name in ("data", "wav"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    assert all(Path(utt.recording.source).is_file() for utt in read_data_dir(tmp_path / "elsewhere" / "data"))


def test_recordings_far_away_are_written_as_absolute_paths(tmp_path: Path):
    write_wav(tmp_path / "corpus" / "a-1.wav", np.zeros(80))
    utt = Utterance("a-1", "a", Recording("a-1", str(tmp_path / "corpus" / "a-1.wav")), words=("one",))
    write_data_dir(tmp_path / "exp" / "data" / "train", [utt])
    assert (tmp_path / "exp/data/train/wav.scp").read_text() == f"a-1 {tmp_path / 'corpus' / 'a-1.wav'}\n"


def test_text_is_optional_where_asked(data_dir: Path):
    (data_dir / "text").unlink()
    assert [utt.words for utt in read_data_dir(data_dir, need_text=False)] == [None, None, None]
    with pytest.raises(AsrKdError, match=r"text: .*missing"):
        read_data_dir(data_dir)


def test_perturbed_copies_keep_their_original(data_dir: Path):
    copies = [
        Utterance(f"sp0.9-{u.utt_id}", f"sp0.9-{u.spk_id}", u.recording, words=u.words, uniq_id=u.utt_id)
        for u in read_data_dir(data_dir)
    ]
    write_data_dir(data_dir, copies)
    assert [utt.uniq_id for utt in read_data_dir(data_dir)] == ["a-1", "a-2", "b-1"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text", b"a-1 one\na-2 one\r\nb-1 one\n", r"text:2: .*CR LF"),
        ("text", b"\xef\xbb\xbfa-1 one\na-2 one\nb-1 one\n", r"text:1: .*byte order mark"),
        ("text", b"a-1 one\na-2\nb-1 one\n", r"text:2: a-2 has nothing after it"),
        ("text", b"a-1 one\n\nb-1 one\n", r"text:2: the line is empty"),
        ("text", b"a-1 one\na-2 \xff\nb-1 one\n", r"text:2: .*UTF-8"),
        ("text", "a-1 one\na-2 one\u00a0two\nb-1 one\n".encode(), r"text:2: .*blank other than"),
        ("text", b"a-1 one\na-1 one\nb-1 one\n", r"text:2: a-1 is there twice"),
        ("text", b"a-2 one\na-1 one\nb-1 one\n", r"text:2: a-1 comes after a-2.*LC_ALL=C"),
        ("text", b"a-1 one\nb-1 one\n", r"wav.scp:2: a-2 is not in .*text"),
        ("text", b"a-1 one\na-2 one\na-3 one\nb-1 one\n", r"text:3: a-3 is not in .*wav.scp"),
        ("text", b"", r"text:1: the file is empty"),
        ("wav.scp", b"a-1 sox in.wav -t wav - |\na-2 x\nb-1 x\n", r"wav.scp:1: commands \(pipes\) are not run"),
        ("wav.scp", b"a-1 nowhere.wav\na-2 x\nb-1 x\n", r"wav.scp:1: there is no recording nowhere.wav"),
        ("utt2spk", b"a-1 a\na-2 b\nb-1 b\n", r"utt2spk:2: the id a-2 does not start with"),
        ("utt2spk", b"a-1 a c\na-2 a\nb-1 b\n", r"utt2spk:1: a-1 has more than one speaker"),
        ("spk2utt", b"a a-1\nb b-1\n", r"spk2utt:1: the utterances of speaker a"),
        ("spk2utt", b"a a-1 a-2\n", r"spk2utt:1: speaker b of utt2spk is missing"),
        ("segments", b"a-1 rec 0 1\n", r"segments: .*not supported"),
    ],
)
def test_bad_data_dir_is_refused_by_file_and_line(data_dir: Path, name: str, content: bytes, message: str):
    (data_dir / name).write_bytes(content)
    with pytest.raises(AsrKdError, match=message):
        read_data_dir(data_dir)


@pytest.mark.parametrize("name", ["wav.scp", "utt2spk", "spk2utt"])
def test_missing_file_is_named(data_dir: Path, name: str):
    (data_dir / name).unlink()
    with pytest.raises(AsrKdError, match=rf"{name}: .*missing"):
        read_data_dir(data_dir)


@pytest.mark.parametrize(
    ("utts", "message"),
    [
        ([], "no utterance"),
        ([("a-1", "a", ("x",)), ("a-1", "a", ("x",))], "there twice"),
        ([("a-1", "a", ("x",)), ("a-2", "a", None)], "has no words"),
        ([("a 1", "a", ("x",))], "cannot be an id"),
        ([("u1", "a", ("x",))], "does not start with"),
        ([("a-1", "a", ("x",)), ("a-b-1", "a-b", ("x",)), ("a-c", "a", ("x",))], "speaker a comes after a-b"),
    ],
)
def test_bad_utterances_are_not_written(tmp_path: Path, utts, message: str):
    with pytest.raises(AsrKdError, match=message):
        write_data_dir(
            tmp_path / "data", [Utterance(u, s, Recording(u, str(tmp_path / "x.wav")), words=w) for u, s, w in utts]
        )
    assert not (tmp_path / "data").exists()


def test_disjoint_by_utterance_original_recording_and_speaker():
    def utt(utt_id: str, spk_id: str, path: str, uniq_id: str = "") -> list[Utterance]:
        return [Utterance(utt_id, spk_id, Recording(utt_id, path), uniq_id=uniq_id)]

    train = utt("a-1", "a", "1.wav")
    copy = utt("sp0.9-a-1", "sp0.9-a", "2.wav", "a-1")
    recording = utt("b-1", "b", "./1.wav")
    speaker = utt("a-2", "a", "3.wav")
    with pytest.raises(AsrKdError, match="utterance a-1 is in both train and test"):
        check_disjoint({"train": train, "test": copy}, by_speaker=False)
    with pytest.raises(AsrKdError, match=r"recording .* is in both train and test"):
        check_disjoint({"train": train, "test": recording}, by_speaker=False)
    check_disjoint({"train": train, "test": speaker}, by_speaker=False)
    with pytest.raises(AsrKdError, match="speaker a is in both train and test"):
        check_disjoint({"train": train, "test": speaker}, by_speaker=True)


def test_validate_script_reports_in_one_line(data_dir: Path):
    script = [sys.executable, str(SCRIPTS / "validate_data_dir.py")]
    good = subprocess.run([*script, str(data_dir)], capture_output=True, text=True, check=False)
    assert (good.returncode, good.stdout) == (0, f"{data_dir}: 3 utterances by 2 speakers\n")
    (data_dir / "text").write_bytes(b"a-1 one\r\n")
    bad = subprocess.run([*script, str(data_dir)], capture_output=True, text=True, check=False)
    assert bad.returncode == 1
    assert bad.stderr.splitlines()[1:] == [
        f"error: {data_dir / 'text'}:1: the line ends in CR LF, convert the file to Unix line ends"
    ]
