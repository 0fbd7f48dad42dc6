"""Kaldi data directories: what is refused, and what comes back as it went in."""

import contextlib
import dataclasses
import importlib
import os
import shutil
import tempfile
import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asr_kd.cli_common import run_main
from asr_kd.corpus.datadir import (
    Recording,
    Utterance,
    check_disjoint,
    load_data_dir,
    original_id,
    read_data_dir,
    read_words,
    write_data_dir,
)
from asr_kd.corpus.fix import fix_data_dir
from asr_kd.corpus.subsets import combine, split, write_selection
from asr_kd.errors import AsrKdError
from asr_kd.store.atomic import write_text

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


def test_relative_paths_are_the_directorys_before_they_are_ours(data_dir: Path, tmp_path: Path, monkeypatch):
    write_wav(tmp_path / "other" / "wav" / "a-1.wav", np.ones(80))
    (tmp_path / "other" / "here").mkdir()
    monkeypatch.chdir(tmp_path / "other" / "here")
    assert read_data_dir(data_dir)[0].recording.source == str(tmp_path / "wav" / "a-1.wav")
    (tmp_path / "wav" / "a-1.wav").unlink()
    assert read_data_dir(data_dir)[0].recording.source == "../wav/a-1.wav"  # as in Kaldi


def test_text_is_optional_where_asked(data_dir: Path):
    (data_dir / "text").unlink()
    assert [utt.words for utt in read_data_dir(data_dir, need_text=False)] == [None, None, None]
    with pytest.raises(AsrKdError, match=r"text: .*missing"):
        read_data_dir(data_dir)


def test_words_alone_need_no_other_file(data_dir: Path):
    words = {utt.utt_id: utt.words for utt in read_data_dir(data_dir)}
    for name in ("wav.scp", "spk2utt", "utt2spk"):
        (data_dir / name).unlink()
    assert read_words(data_dir) == words
    (data_dir / "text").write_text("a-1 one\na-2\n")
    with pytest.raises(AsrKdError, match=r"text:2: a-2 has nothing after it"):
        read_words(data_dir)
    (data_dir / "text").unlink()
    with pytest.raises(AsrKdError, match=r"text: could not be read"):
        read_words(data_dir)


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
        ("text", b"a-1 one\nb-1 one\n", r"utt2spk:2: a-2 is not in .*text"),
        ("text", b"a-1 one\na-2 one\na-3 one\nb-1 one\n", r"text:3: a-3 is not in .*utt2spk"),
        ("text", b"", r"text:1: the file is empty"),
        ("wav.scp", b"a-1 sox in.wav |\na-2 sox in.wav |\nb-1 true |\n", r"wav.scp:1: commands \(pipes\) are not run"),
        ("wav.scp", b"a-1 nowhere.wav\na-2 x\nb-1 x\n", r"wav.scp:1: there is no recording nowhere.wav"),
        ("utt2spk", b"a-1 a\na-2 b\nb-1 b\n", r"utt2spk:2: the id a-2 does not start with"),
        ("utt2spk", b"a-1 a c\na-2 a\nb-1 b\n", r"utt2spk:1: a-1 has more than one speaker"),
        ("spk2utt", b"a a-1\nb b-1\n", r"spk2utt:1: the utterances of speaker a"),
        ("spk2utt", b"a a-1 a-2\n", r"spk2utt:1: speaker b of utt2spk is missing"),
        ("spk2utt", b"a a-2 a-1\nb b-1\n", r"spk2utt:1: .*order"),
        ("text", b"a-1 one\na-2 one\nb-1 one", r"text:3: .*no newline"),
        ("text", b"a-1 one\na-2 <s> one\nb-1 one\n", r"text:2: .*<s>, which cannot be a word"),
        ("wav.scp", b"a-1 ~/x.wav\na-2 x\nb-1 x\n", r"wav.scp:1: .*tilde"),
        ("wav.scp", b"a-1 | cat\na-2 x\nb-1 x\n", r"wav.scp:1: .*starts with it"),
        ("wav.scp", b"a-1 x.ark:12\na-2 x\nb-1 x\n", r"wav.scp:1: .*archive"),
        ("segments", b"a-1 a-1 0 1\na-2 a-2 0\nb-1 b-1 0 1\n", r"segments:2: a-2 has “a-2 0”, not a recording"),
        ("segments", b"a-1 a-1 0 1\na-2 a-2 1 0.5\nb-1 b-1 0 1\n", r"segments:2: a-2 goes from 1 to 0.5 s"),
        ("segments", b"a-1 a-1 0 1\na-2 a-2 nan 1\nb-1 b-1 0 1\n", r"segments:2: a-2 goes from nan"),
        ("segments", b"a-1 a-1 0 1\na-2 x 0 1\nb-1 b-1 0 1\n", r"segments:2: the recording x of a-2 is not in"),
        ("segments", b"a-1 a-1 0 1\na-2 a-1 1 2\nb-1 b-1 0 1\n", r"wav.scp:2: no utterance of .* is in the recording"),
        ("segments", b"a-1 a-1 0 1\n", r"utt2spk:2: a-2 is not in .*segments"),
        ("reco2file_and_channel", b"a-1 x A\na-2 x C\nb-1 x A\n", r"channel:2: .*A or B"),
        ("reco2file_and_channel", b"a-1 x A\na-2 x A\n", r"wav.scp:3: b-1 is not in .*channel"),
        ("utt2uniq", b"a-1 a-1\nb-1 b-1\n", r"utt2spk:2: a-2 is not in .*utt2uniq"),
        ("utt2dur", b"a-1 1\na-2 0\nb-1 1\n", r"utt2dur:2: a-2 has 0, but a number"),
        ("utt2num_frames", b"a-1 1\na-2 1.5\nb-1 1\n", r"utt2num_frames:2: a-2 has 1.5, but a whole number"),
        ("spk2gender", b"a m\nb x\n", r"spk2gender:2: b has x, but m or f"),
        ("cmvn.scp", b"a x.ark:1\n", r"spk2utt:2: b is not in .*cmvn.scp"),
        ("feats.scp", b"a-1 x\nb-1 x\n", r"utt2spk:2: a-2 is not in .*feats.scp"),
    ],
)
def test_bad_data_dir_is_refused_by_file_and_line(data_dir: Path, name: str, content: bytes, message: str):
    (data_dir / name).write_bytes(content)
    with pytest.raises(AsrKdError, match=message):
        read_data_dir(data_dir, allow_pipes=False)


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
    with pytest.raises(AsrKdError, match=r"file .*1.wav is in both train and test"):
        check_disjoint({"train": train, "test": recording}, by_speaker=False)
    check_disjoint({"train": train, "test": speaker}, by_speaker=False)
    with pytest.raises(AsrKdError, match="speaker a is in both train and test"):
        check_disjoint({"train": train, "test": speaker}, by_speaker=True)


# Mending, and parts of a directory


def contents(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(path.iterdir()) if p.is_file()}


def canonical(utts: list[Utterance]) -> list[Utterance]:
    """With the recordings' paths as they are in the file system."""
    return [
        dataclasses.replace(u, recording=dataclasses.replace(u.recording, source=os.path.realpath(u.recording.source)))
        for u in utts
    ]


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Files that are there; what they hold is not looked at."""
    folder = tmp_path_factory.mktemp("recordings")
    paths = [folder / f"r {i}.wav" for i in range(4)]
    for path in paths:
        path.touch()
    return [str(path) for path in paths]


@st.composite
def utterance_lists(draw, paths: list[str]) -> list[Utterance]:
    """Utterances of several speakers, whole recordings or segments, with copies at other speeds, with words or not."""
    has_words, has_segments, has_copies = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    has_channels = draw(st.booleans())
    seconds = st.floats(0, 1e4).map(lambda s: round(s, 3))
    utts = []
    for spk_id in draw(st.lists(st.text("aZ9é", min_size=1, max_size=3), min_size=1, max_size=4, unique=True)):
        channel = draw(st.sampled_from([0, 1])) if has_channels else None
        recording = Recording(f"{spk_id}-rec", draw(st.sampled_from(paths)), channel)
        for number in range(draw(st.integers(1, 3))):
            utt_id, start_s, end_s = f"{spk_id}-{number}", None, None
            if has_segments:
                start_s = draw(seconds)
                end_s = draw(st.none() | st.just(start_s + 0.5))
                if start_s == 0 and end_s is None:
                    start_s = None
            else:
                recording = Recording(utt_id, draw(st.sampled_from(paths)), channel)
            words = tuple(draw(st.lists(st.text("abé'", min_size=1), min_size=1, max_size=3))) if has_words else None
            utts.append(Utterance(utt_id, spk_id, recording, start_s, end_s, words))
    if has_copies:
        utts += [
            dataclasses.replace(
                utt,
                utt_id=f"sp0.9-{utt.utt_id}",
                spk_id=f"sp0.9-{utt.spk_id}",
                recording=dataclasses.replace(utt.recording, rec_id=f"sp0.9-{utt.recording.rec_id}"),
            )
            for utt in utts
        ]
    return sorted(utts, key=lambda utt: utt.utt_id)


def fresh(tmp_path: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=tmp_path)) / "data"


SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SETTINGS
@given(data=st.data())
def test_what_is_written_is_read(tmp_path: Path, recordings: list[str], data):
    utts = data.draw(utterance_lists(recordings))
    path = fresh(tmp_path)
    write_data_dir(path, utts)
    assert canonical(read_data_dir(path, need_text=False, allow_pipes=False)) == canonical(utts)
    assert fix_data_dir(path) == []
    assert not (path / ".backup").exists()


@SETTINGS
@given(data=st.data())
def test_parts_combined_are_the_whole(tmp_path: Path, recordings: list[str], data):
    path = fresh(tmp_path)
    utts = data.draw(utterance_lists(recordings))
    write_data_dir(path, utts)
    by_utterance = data.draw(st.booleans())
    num_groups = len({utt.uniq_id for utt in utts} if by_utterance else {original_id(utt, utt.spk_id) for utt in utts})
    num = data.draw(st.integers(1, num_groups))
    out = split(load_data_dir(path, need_text=False), num, by_utterance)
    assert out == path / (f"split{num}utt" if by_utterance else f"split{num}")
    parts = {str(i): read_data_dir(out / str(i), need_text=False) for i in range(1, num + 1)}
    assert all(parts.values())
    owner = {utt.uniq_id: i for i, part in parts.items() for utt in part}
    assert all(owner[utt.uniq_id] == i for i, part in parts.items() for utt in part)
    combined = path.with_name("combined")
    combine([load_data_dir(out / i, need_text=False) for i in parts], combined)
    assert canonical(read_data_dir(combined, need_text=False)) == canonical(utts)
    # Beside each other, so their relative paths are the same too.
    assert contents(combined) == contents(path)


def damage(path: Path, draw) -> None:
    """Lose, repeat and mix up lines of some files, and what editors of other systems do to them."""
    for name in draw(st.lists(st.sampled_from(sorted(contents(path))), min_size=1, max_size=4, unique=True)):
        lines = draw(st.permutations((path / name).read_bytes().splitlines()))
        lines = [line for line in lines for _ in range(draw(st.sampled_from([1, 1, 1, 0, 2])))]
        lines += draw(st.lists(st.sampled_from([b"x-9 y", b"", b" a", b"\xff\xfe x", b"a-0"]), max_size=1))
        end = draw(st.sampled_from([b"\n", b"\r\n"]))
        content = draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + end.join(lines) + draw(st.sampled_from([end, b""]))
        (path / name).write_bytes(content)


@SETTINGS
@given(data=st.data())
def test_what_is_mended_is_valid_and_stays_so(tmp_path: Path, recordings: list[str], data):
    path = fresh(tmp_path)
    utts = data.draw(utterance_lists(recordings))
    write_data_dir(path, utts)
    damage(path, data.draw)
    damaged = contents(path)
    try:
        messages = fix_data_dir(path)
    except AsrKdError:
        assert contents(path) == damaged
        return
    mended = contents(path)
    assert {u.utt_id for u in read_data_dir(path, need_text=False)} <= {u.utt_id for u in utts}
    changed = {name for name in damaged if mended[name] != damaged[name]}
    assert {name: damaged[name] for name in changed} == (contents(path / ".backup") if changed else {})
    assert bool(messages) == (mended != damaged)
    assert fix_data_dir(path) == []
    assert contents(path) == mended


def test_mending_tells_what_was_dropped_and_why(data_dir: Path):
    (data_dir / "text").write_bytes(b"b-1 one\r\na-1 one\r\na-1 two\r\nc-1 one\r\n")
    (data_dir / "utt2dur").write_text("a-1 1.0\n")
    messages = fix_data_dir(data_dir)
    told = [message.removeprefix(f"{data_dir}/") for message in messages]
    assert told[:3] == [
        "text:1: the line ends in CR LF, convert the file to Unix line ends",
        "text:2: a-1 comes after b-1, sort the file with LC_ALL=C sort",
        "text:3: a-1 is there twice (first in line 2)",
    ]
    assert "utt2spk:2: a-2 was dropped, it is not in text" in told
    assert "text:4: c-1 was dropped, no utterance has it" in told
    assert "utt2dur: does not have every id and was removed, make it anew" in told
    assert (data_dir / "text").read_text() == "a-1 one\nb-1 one\n"
    assert (data_dir / ".backup" / "utt2dur").read_text() == "a-1 1.0\n"
    assert [utt.utt_id for utt in read_data_dir(data_dir)] == ["a-1", "b-1"]


def test_mending_drops_recordings_that_are_not_there(data_dir: Path):
    (data_dir.parent / "wav" / "a-2.wav").unlink()
    assert any("a-2 was dropped, there is no recording ../wav/a-2.wav" in message for message in fix_data_dir(data_dir))
    assert [utt.utt_id for utt in read_data_dir(data_dir)] == ["a-1", "b-1"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("utt2spk", b"a-1 a\na-2 b\nb-1 b\n", r"utt2spk:2: .*does not start with.*by hand, nothing was changed"),
        ("wav.scp", b"b-1 c\na-1 b\n", r"nothing was changed.*wav.scp:2: a-1 comes after.*there is no recording b"),
        ("text", b"x one\n", r"no utterance would remain, nothing was changed; .*utt2spk:1: a-1"),
        ("text", b"", r"no utterance would remain, nothing was changed; .*text:1: the file is empty"),
    ],
)
def test_what_cannot_be_mended_is_left_as_it_is(data_dir: Path, name: str, content: bytes, message: str):
    (data_dir / name).write_bytes(content)
    before = contents(data_dir)
    with pytest.raises(AsrKdError, match=message):
        fix_data_dir(data_dir)
    assert contents(data_dir) == before


@pytest.mark.parametrize("survived", range(6))
def test_mending_that_was_killed_goes_on_and_keeps_the_first_backup(data_dir: Path, monkeypatch, survived: int):
    (data_dir / "text").write_bytes(b"b-1 one\r\na-1 one\r\n")
    twin = data_dir.with_name("twin")
    shutil.copytree(data_dir, twin)
    fix_data_dir(twin)
    written = []

    def write_some(path: Path, text: str) -> None:
        if len(written) == survived:
            raise KeyboardInterrupt
        written.append(path)
        write_text(path, text)

    monkeypatch.setattr("asr_kd.corpus.fix.write_text", write_some)
    with contextlib.suppress(KeyboardInterrupt):
        fix_data_dir(data_dir)
    monkeypatch.undo()
    fix_data_dir(data_dir)
    assert contents(data_dir) == contents(twin)
    assert contents(data_dir / ".backup") == contents(twin / ".backup")


def test_files_of_features_and_speakers_are_carried_over(data_dir: Path, tmp_path: Path):
    files = {"spk2gender": "a f\nb m\n", "feats.scp": "a-1 f.ark:1\na-2 f.ark:9\nb-1 f.ark:20\n"}
    for name, content in files.items():
        (data_dir / name).write_text(content)
    data = load_data_dir(data_dir)
    write_selection(data, ["a-2", "b-1"], tmp_path / "some")
    assert (tmp_path / "some" / "feats.scp").read_text() == "a-2 f.ark:9\nb-1 f.ark:20\n"
    write_selection(data, ["a-1"], tmp_path / "one")
    assert (tmp_path / "one" / "spk2gender").read_text() == "a f\n"
    combine([load_data_dir(tmp_path / "one"), load_data_dir(tmp_path / "some")], tmp_path / "all")
    assert {name: (tmp_path / "all" / name).read_text() for name in files} == files


def test_combining_refuses_what_two_directories_disagree_on(data_dir: Path, tmp_path: Path):
    data = load_data_dir(data_dir)
    write_selection(data, ["a-1", "a-2"], tmp_path / "one")
    write_selection(data, ["a-2", "b-1"], tmp_path / "two")
    with pytest.raises(AsrKdError, match=r"two/utt2spk:1: a-2 is there too: .*one/utt2spk:2$"):
        combine([load_data_dir(tmp_path / name) for name in ("one", "two")], tmp_path / "all")
    (tmp_path / "two" / "text").unlink()
    with pytest.raises(AsrKdError, match=r"two/text: is missing, but .*one has it"):
        combine([load_data_dir(tmp_path / name, need_text=False) for name in ("one", "two")], tmp_path / "all")
    with pytest.raises(AsrKdError, match="over itself"):
        combine([data], data_dir)
    assert not (tmp_path / "all").exists()


def test_disjoint_follows_copies_of_segments_to_their_recording():
    """Two parts of one recording, one of them perturbed: other utterances, but the same voice in the same room."""
    train = [Utterance("a-1", "a", Recording("a-rec", "1.wav"), 0.0, 1.0)]
    copy = [Utterance("sp0.9-a-2", "sp0.9-a", Recording("sp0.9-a-rec", "2.wav"), 1.0, 2.0, uniq_id="a-2")]
    with pytest.raises(AsrKdError, match="recording a-rec is in both train and test"):
        check_disjoint({"train": train, "test": copy}, by_speaker=False)
    other = [Utterance("sp0.9-a-3", "sp0.9-a", Recording("sp0.9-a-3", "3.wav"), uniq_id="a-3")]
    check_disjoint({"train": train, "test": other}, by_speaker=False)
    with pytest.raises(AsrKdError, match="speaker a is in both train and test"):
        check_disjoint({"train": train, "test": other}, by_speaker=True)


# The script


@pytest.fixture
def run(monkeypatch, capsys):
    """data_dir.py in this process: (status, stdout, the last line of stderr)."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    script = importlib.import_module("data_dir")

    def run(*arguments: object) -> tuple[int, str, str]:
        status = run_main(script.main, script.build_parser(), [str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err.splitlines()[-1]

    return run


def test_validate_shows_all_problems_and_fails(run, data_dir: Path, capsys):
    assert run("validate", data_dir)[:2] == (0, f"{data_dir}: 3 utterances by 2 speakers\n")
    (data_dir / "text").write_bytes(b"a-1 one\na-1 two\nb-1\n")
    status = run("validate", data_dir)
    assert status[0] == 1
    assert status[2] == f"error: {data_dir / 'text'}:3: b-1 has nothing after it"
    (data_dir / "text").write_bytes(b"a-1 one\na-2 two\nb-1 one\n")
    (data_dir / "wav.scp").write_bytes(b"a-1 true |\na-2 true |\nb-1 true |\n")
    assert "wav.scp:3: commands (pipes) are not run unless that is allowed" in run("validate", data_dir)[2]
    assert run("validate", data_dir, "--allow-pipes")[0] == 0


def test_every_way_to_choose_a_subset(run, data_dir: Path, tmp_path: Path):
    write_wav(tmp_path / "wav" / "b-1.wav", np.zeros(8))
    (tmp_path / "utts").write_text("b-1 anything\na-1\n")
    (tmp_path / "spks").write_text("a\n")
    for option, expected in (
        (["--first", 2], "a-1 a-2"),
        (["--last", 2], "a-2 b-1"),
        (["--shortest", 1], "b-1"),
        (["--per-speaker", 1], "a-1 b-1"),
        (["--utt-list", tmp_path / "utts"], "a-1 b-1"),
        (["--spk-list", tmp_path / "spks"], "a-1 a-2"),
    ):
        assert run("subset", data_dir, tmp_path / "out", *option)[0] == 0
        assert " ".join(utt.utt_id for utt in read_data_dir(tmp_path / "out")) == expected
    chosen = set()
    for seed in range(8):
        assert run("subset", data_dir, tmp_path / "out", "--random", 2, "--seed", seed)[0] == 0
        chosen.add(tuple(utt.utt_id for utt in read_data_dir(tmp_path / "out")))
        assert run("subset", data_dir, tmp_path / "out", "--speakers", 2, "--seed", seed)[0] == 0
        assert [utt.utt_id for utt in read_data_dir(tmp_path / "out")] in (["a-1", "a-2"], ["a-1", "a-2", "b-1"])
    assert len(chosen) > 1
    assert {len(utt_ids) for utt_ids in chosen} == {2}


def test_the_script_fails_with_one_sentence(run, data_dir: Path, tmp_path: Path):
    (tmp_path / "utts").write_text("a-1\nx\n")
    out = tmp_path / "out"
    shutil.copytree(data_dir, tmp_path / "twin")
    for arguments, message in (
        (["subset", data_dir, out, "--first", 4], "4 utterances were asked for, there are 3"),
        (["subset", data_dir, out, "--utt-list", tmp_path / "utts"], f"{tmp_path / 'utts'}:2: x is not in"),
        (["subset", data_dir, out, "--utt-list", tmp_path / "none"], "could not be read as a list"),
        (["subset", data_dir, data_dir, "--first", 1], "exists, and is not replaced"),
        (["split", data_dir, "--num", 3], "3 parts cannot be made, there are 2 speakers"),
        (["combine", out, data_dir, data_dir], "a-1 is there too"),
        (["validate", tmp_path / "none"], "there is no such data directory"),
        (["validate", data_dir, data_dir], "is given twice"),
        (["validate", data_dir, tmp_path / "twin"], "which must be disjoint"),
        (["fix", tmp_path], "utt2spk: this file of the data directory is missing"),
        (["perturb-speed", data_dir, out, "--factors", "0.9,0.9"], "different ones between 0.1 and 10"),
        (["perturb-speed", data_dir, data_dir], "over itself"),
    ):
        status, _, last = run(*arguments)
        assert status == 1
        assert last.startswith("error: ")
        assert message in last
    assert not out.exists()
    with pytest.raises(SystemExit):
        run("subset", data_dir, out)
    with pytest.raises(SystemExit):
        run("split", data_dir, "--num", 0)
