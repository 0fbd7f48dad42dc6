"""Corpora: data directories, numbers as words, the embedded corpus, FSDD joined into connected digits."""

import dataclasses
import hashlib
import http.server
import importlib.util
import io
import tarfile
import threading
import wave
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_kd.corpus import fsdd, numbers, simulate
from asr_kd.corpus.datadir import check_disjoint, read_data_dir
from asr_kd.corpus.lexicon import read_lexicon
from asr_kd.corpus.mini import SETS, UNLABELLED, MiniOptions, build_mini
from asr_kd.errors import AsrKdError

needs_espeak = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None, reason="espeakng_loader is absent: pip install '.[mini]'"
)
TINY = MiniOptions(hours_train=0.02, hours_dev=0.002, hours_test=0.002, seed=3)
SCRIPTS = Path(__file__).parent.parent / "data_prep"


def quiet(message: str) -> None:
    pass


def write_wav(path: Path, samples: np.ndarray, rate: int = 8000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(np.asarray(samples).astype("<i2").tobytes())


def wav_samples(path: Path) -> np.ndarray:
    with wave.open(str(path), "rb") as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def tree_digest(path: Path) -> dict[str, str]:
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


# Numbers


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (40, "forty"),
        (342, "three hundred and forty two"),
        (1000, "one thousand"),
        (1001, "one thousand and one"),
        (20_500, "twenty thousand five hundred"),
        (1_000_000, "one million"),
        (7_012_345, "seven million twelve thousand three hundred and forty five"),
    ],
)
def test_numbers_as_words(number: int, words: str):
    assert " ".join(numbers.number_words(number)) == words


@given(st.integers(0, numbers.LARGEST))
def test_number_words_give_the_number_back(number: int):
    units = {word: value for value, word in enumerate(numbers.ONES)}
    units |= {word: 10 * value for value, word in enumerate(numbers.TENS) if word}
    total = group = 0
    for word in numbers.number_words(number):
        assert word in numbers.VOCABULARY
        if word in units:
            group += units[word]
        elif word == "hundred":
            group *= 100
        elif word != "and":
            total, group = total + group * {"thousand": 10**3, "million": 10**6}[word], 0
    assert total + group == number


def test_what_is_no_number_is_refused():
    assert numbers.digit_words("407") == ["four", "zero", "seven"]
    for bad in ("", "4a", "٣"):
        with pytest.raises(ValueError, match="string of digits"):
            numbers.digit_words(bad)
    with pytest.raises(ValueError, match="is not in"):
        numbers.number_words(-1)


# Rooms and noise


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 0.6), st.floats(0, 12))
def test_a_room_keeps_time(seed: int, rt60: float, ratio_db: float):
    response = simulate.room_impulse_response(np.random.default_rng(seed), rt60, ratio_db, 16000)
    click = np.zeros(4000)
    click[1000] = 1.0
    heard = simulate.reverberate(click, response)
    assert len(heard) == len(click)
    assert np.allclose(heard[:1000], 0, atol=1e-9)
    assert heard[1000] == pytest.approx(1.0)
    assert 10 * np.log10(np.sum(response[1:] ** 2)) == pytest.approx(-ratio_db, abs=1e-6)


@pytest.mark.parametrize("kind", simulate.NOISE_KINDS)
@pytest.mark.parametrize("snr_db", [0.0, 15.0])
def test_noise_has_the_ratio_asked_for(kind: str, snr_db: float):
    rng = np.random.default_rng(1)
    speech = np.where(np.arange(8001) < 4000, rng.normal(0, 500, 8001), 0.0)
    noise = simulate.make_noise(rng, kind, 8001, 16000, [rng.normal(0, 1, 3000), rng.normal(0, 9, 9000)])
    assert noise.shape == (8001,)
    mixture = simulate.add_noise(speech, noise, snr_db, np.arange(8001) < 4000)
    measured = 10 * np.log10(np.mean(speech[:4000] ** 2) / np.mean((mixture - speech) ** 2))
    assert measured == pytest.approx(snr_db, abs=1e-6)


def test_level_is_set_without_clipping():
    samples = np.random.default_rng(0).normal(0, 1, 16000)
    level = 20 * np.log10(np.sqrt(np.mean(simulate.set_level(samples, -30.0).astype(float) ** 2)) / 32768)
    assert level == pytest.approx(-30.0, abs=0.05)
    assert np.abs(simulate.set_level(samples, 0.0).astype(int)).max() == pytest.approx(0.95 * 32767, abs=1)
    assert not simulate.set_level(np.zeros(5), -20.0).any()


# The embedded corpus


@pytest.fixture(scope="module")
def mini(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("mini") / "data"
    build_mini(out, TINY, 2, quiet)
    return out


@needs_espeak
def test_mini_does_not_depend_on_jobs_and_continues_after_a_kill(mini: Path, tmp_path: Path):
    # What a killed run leaves: finished units, half of one in tmp, no corpus.
    work = tmp_path / ".data.partial"
    (work / "tmp" / "half").mkdir(parents=True)
    (work / "recipe.json").write_bytes((mini / "mini.json").read_bytes())
    unit = sorted((mini / "wav" / "train_clean").iterdir())[0]
    kept = work / "wav" / "train_clean" / unit.name
    kept.mkdir(parents=True)
    for file in unit.iterdir():
        (kept / file.name).write_bytes(file.read_bytes())
    inode = (kept / "unit.json").stat().st_ino
    assert build_mini(tmp_path / "data", TINY, 1, quiet)
    assert tree_digest(tmp_path / "data") == tree_digest(mini)
    assert (tmp_path / "data" / "wav" / "train_clean" / unit.name / "unit.json").stat().st_ino == inode
    assert not work.exists()


@needs_espeak
def test_mini_is_made_once(mini: Path):
    assert not build_mini(mini, TINY, 1, quiet)


@needs_espeak
def test_unlabelled_speech_is_by_the_voices_of_training_and_changes_nothing_else(mini: Path, tmp_path: Path):
    out, options = tmp_path / "data", dataclasses.replace(TINY, hours_unlabelled=0.05)
    build_mini(out, options, 2, quiet)
    unlabelled, train = (read_data_dir(out / name, need_text=False) for name in (UNLABELLED, "train"))
    assert {utt.spk_id for utt in unlabelled} <= {utt.spk_id for utt in train}
    assert not {utt.utt_id for utt in unlabelled} & {utt.utt_id for utt in train}
    assert not (out / UNLABELLED / "text").exists()
    assert (out / "lexicon.txt").read_bytes() == (mini / "lexicon.txt").read_bytes()
    for name in (*SETS, *(f"{name}_clean" for name in SETS)):
        assert tree_digest(out / name) == tree_digest(mini / name)
        assert tree_digest(out / "wav" / name) == tree_digest(mini / "wav" / name)
    assert not build_mini(out, options, 2, quiet)


@needs_espeak
def test_mini_truth_covers_each_utterance_and_spells_its_words(mini: Path):
    lexicon = read_lexicon(mini / "lexicon.txt")
    assert set(lexicon.words) == set(numbers.VOCABULARY)
    for name in SETS:
        truth: dict[str, list] = {}
        for line in (mini / f"{name}_clean" / "truth.ctm").read_text().splitlines():
            utt_id, channel, start, duration, phone = line.split()
            assert channel == "1"
            truth.setdefault(utt_id, []).append((float(start), float(duration), phone))
        utts = read_data_dir(mini / f"{name}_clean")
        assert list(truth) == [utt.utt_id for utt in utts]
        for utt in utts:
            phones = truth[utt.utt_id]
            ends = np.cumsum([duration for _, duration, _ in phones])
            assert np.allclose([start for start, _, _ in phones], [0, *ends[:-1]], atol=1e-6)
            assert ends[-1] == pytest.approx(len(wav_samples(utt.recording.source)) / 16000, abs=1e-6)
            assert all(duration >= 0.02 for _, duration, _ in phones)
            assert phones[0][2] == phones[-1][2] == "SIL"
            spoken = [phone for _, _, phone in phones if phone != "SIL"]
            assert _spells(spoken, list(utt.words or ()), lexicon.entries)


def _spells(phones: list[str], words: list[str], entries: dict) -> bool:
    if not words:
        return not phones
    return any(
        tuple(phones[: len(p)]) == p and _spells(phones[len(p) :], words[1:], entries) for p in entries[words[0]]
    )


@needs_espeak
def test_mini_training_has_every_word_of_the_lexicon(mini: Path):
    assert {word for utt in read_data_dir(mini / "train") for word in utt.words or ()} == set(numbers.VOCABULARY)


@needs_espeak
def test_mini_truth_marks_where_the_sound_is(mini: Path):
    for utt in read_data_dir(mini / "test_clean"):
        samples = wav_samples(utt.recording.source).astype(float)
        loudest = np.sqrt(np.mean(samples**2))
        for line in (mini / "test_clean" / "truth.ctm").read_text().splitlines():
            utt_id, _, start, duration, phone = line.split()
            if utt_id != utt.utt_id:
                continue
            # 10 ms off the edges: a filter rings on after its sound.
            first = round((float(start) + 0.01) * 16000)
            part = samples[first : round((float(start) + float(duration) - 0.01) * 16000)]
            level = np.sqrt(np.mean(part**2))
            if phone == "SIL":
                assert level < 0.1 * loudest
            elif phone in ("AE", "AH", "AY", "EH", "ER", "OR", "OW"):
                assert level > 0.2 * loudest


@needs_espeak
def test_mini_noisy_copies_fit_and_sets_share_nothing(mini: Path):
    dirs = {name: read_data_dir(mini / name) for name in SETS}
    check_disjoint(dirs, by_speaker=True)
    for name in SETS:
        clean = read_data_dir(mini / f"{name}_clean")
        assert [(u.utt_id, u.words) for u in clean] == [(u.utt_id, u.words) for u in dirs[name]]
        for a, b in zip(clean, dirs[name], strict=True):
            x, y = wav_samples(a.recording.source), wav_samples(b.recording.source)
            assert len(x) == len(y)
            assert not np.array_equal(x, y)
            assert np.abs(y.astype(int)).max() < 32767


@needs_espeak
def test_mini_refuses_bad_options_and_foreign_folders(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(AsrKdError, match="holds something else"):
        build_mini(tmp_path, TINY, 1, quiet)
    assert (tmp_path / "thesis.txt").exists()
    for bad in (
        MiniOptions(hours_dev=0),
        MiniOptions(hours_unlabelled=-1),
        MiniOptions(snr_min=9, snr_max=3),
        MiniOptions(rt60_max=9),
        MiniOptions(seed=-1),
    ):
        with pytest.raises(AsrKdError, match="--"):
            build_mini(tmp_path / "new", bad, 1, quiet)


# FSDD


def fake_fsdd(folder: Path, speakers=("ann", "bob"), num_indexes: int = 12) -> Path:
    rng = np.random.default_rng(0)
    for speaker in speakers:
        for digit in range(10):
            for index in range(num_indexes):
                write_wav(folder / f"{digit}_{speaker}_{index}.wav", rng.normal(0, 300, 400 + digit))
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("fsdd")
    fake_fsdd(root / "recordings")
    return root


def sources(out: Path, name: str) -> dict[str, list[str]]:
    lines = (out / name / "utt2recordings").read_text().splitlines()
    return {line.split()[0]: line.split()[1:] for line in lines}


@pytest.mark.parametrize("holdout", [None, "bob"])
def test_fsdd_uses_each_recording_once_in_its_set(corpus: Path, tmp_path: Path, holdout: str | None):
    assert build(corpus, tmp_path / "out", holdout)
    assert not build(corpus / "recordings", tmp_path / "out", holdout)
    used = Counter()
    for name in SETS:
        words = {utt.utt_id: list(utt.words or ()) for utt in read_data_dir(tmp_path / "out" / name)}
        for utt_id, stems in sources(tmp_path / "out", name).items():
            used.update(stems)
            assert words[utt_id] == [numbers.DIGITS[int(stem[0])] for stem in stems]
            for stem in stems:
                _, speaker, index = stem.split("_")
                assert utt_id.startswith(f"{speaker}-")
                in_test = speaker == holdout if holdout else int(index) < 5
                assert name == ("test" if in_test else "dev" if 5 <= int(index) < 10 else "train")
    assert used == Counter(path.stem for path in (corpus / "recordings").iterdir())
    assert set(read_lexicon(tmp_path / "out" / "lexicon.txt").words) == set(numbers.DIGITS)


def build(corpus: Path, out: Path, holdout: str | None = None, seed: int = 0) -> bool:
    return fsdd.build_fsdd(corpus, out, seed, holdout, True, quiet)


def test_fsdd_tests_each_recording_in_one_of_its_folds():
    recordings = [fsdd.Recording(0, "bob", index, Path(f"0_bob_{index}.wav")) for index in range(50)]
    folds = [fsdd.split_recordings(recordings, None, fold) for fold in range(fsdd.NUM_FOLDS)]
    assert Counter(recording for sets in folds for recording in sets["test"]) == Counter(recordings)
    for sets in folds:
        assert {name: len(of_set) for name, of_set in sets.items()} == {"train": 40, "dev": 5, "test": 5}
        assert Counter(recording for of_set in sets.values() for recording in of_set) == Counter(recordings)
    with pytest.raises(AsrKdError, match="--fold 10 is not one of 0 to 9"):
        fsdd.split_recordings(recordings, None, 10)


def test_fsdd_is_the_same_for_a_seed(corpus: Path, tmp_path: Path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        build(corpus, tmp_path / name, seed=seed)
    assert tree_digest(tmp_path / "a") == tree_digest(tmp_path / "b")
    assert sources(tmp_path / "a", "train") != sources(tmp_path / "c", "train")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=4), st.integers(0, 2**31))
def test_grouping_is_a_partition_into_three_to_seven(counts: list[int], seed: int):
    recordings = [
        fsdd.Recording(i % 10, f"s{s}", i, Path(f"{s}-{i}")) for s, count in enumerate(counts) for i in range(count)
    ]
    groups = fsdd.group_recordings(recordings, np.random.default_rng(seed))
    assert Counter(r for group in groups for r in group) == Counter(recordings)
    for group in groups:
        assert len({r.speaker for r in group}) == 1
        in_all = counts[int(group[0].speaker[1:])]
        assert 3 <= len(group) <= 7 or len(group) == in_all < 3


def test_joined_recordings_are_left_as_they_are_and_pauses_are_not_digital_zero():
    rng = np.random.default_rng(0)
    parts = [rng.normal(0, 50, 800).astype(np.int16) for _ in range(3)]
    joined = fsdd.join_samples(parts, rng)
    places = [joined.tobytes().find(part.tobytes()) // 2 for part in parts]
    assert places == sorted(places)
    assert min(places) >= 800
    edges = [0, *(p for place in places for p in (place, place + 800)), len(joined)]
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        assert 0.05 * 8000 <= end - start <= 0.35 * 8000
        assert 20 < np.std(joined[start:end]) < 60


def test_fsdd_that_differs_is_refused_by_name(corpus: Path, tmp_path: Path):
    with pytest.raises(AsrKdError, match=r"0_george_0.wav, .* missing and 0_ann_0.wav, .* not in the version"):
        fsdd.find_recordings(corpus)
    with pytest.raises(AsrKdError, match="theo is not one of ann, bob"):
        build(corpus, tmp_path / "out", "theo")
    fake_fsdd(tmp_path / "same", fsdd.SPEAKERS, 50)
    with pytest.raises(AsrKdError, match="contents are not"):
        fsdd.find_recordings(tmp_path / "same")
    (tmp_path / "same" / "notes.wav").touch()
    with pytest.raises(AsrKdError, match=r"notes.wav is not named"):
        fsdd.find_recordings(tmp_path / "same", any_version=True)


def test_fsdd_refuses_broken_recordings(tmp_path: Path):
    fake_fsdd(tmp_path / "a")
    broken = tmp_path / "a" / "3_ann_7.wav"
    broken.write_bytes(broken.read_bytes()[:-100])
    with pytest.raises(AsrKdError, match=r"3_ann_7.wav: holds"):
        build(tmp_path / "a", tmp_path / "out")
    write_wav(broken, np.zeros(100), rate=16000)
    with pytest.raises(AsrKdError, match=r"3_ann_7.wav: 16-bit mono at 8000 Hz"):
        build(tmp_path / "a", tmp_path / "out")
    assert not (tmp_path / "out").exists()


class _Ranges(http.server.BaseHTTPRequestHandler):
    """Serves `content`; the first answer breaks off in the middle, later ones honour Range."""

    content = b""
    requests: list[str | None] = []  # noqa: RUF012

    def do_GET(self):
        asked = self.headers.get("Range")
        self.requests.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        body = self.content[start:]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if len(self.requests) == 1 else body)

    def log_message(self, *args):
        pass


def test_fsdd_download_continues_and_unpacks_only_recordings(corpus: Path, tmp_path: Path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(corpus / "recordings", "fsdd-1/recordings")
        for name in ("../../evil/recordings/escaped.py", "fsdd-1/README.wav"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("fsdd-1/recordings/9_link_9.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    _Ranges.content, _Ranges.requests = buffer.getvalue(), []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Ranges)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/fsdd.tar.gz"
    try:
        with pytest.raises(AsrKdError, match=r"the connection ended|could not be fetched"):
            fsdd.download(tmp_path / "downloads", url, True, quiet)
        folder = fsdd.download(tmp_path / "downloads", url, True, quiet)
        again = fsdd.download(tmp_path / "downloads", url, True, quiet)
    finally:
        server.shutdown()
        server.server_close()
    assert again == folder
    assert len(_Ranges.requests) == 2
    assert int(_Ranges.requests[1].removeprefix("bytes=").removesuffix("-")) > 0
    assert tree_digest(folder / "recordings") == tree_digest(corpus / "recordings")
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == [folder.name]


def test_fsdd_download_refuses_other_contents_and_broken_archives(corpus: Path, tmp_path: Path):
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz") as tar:
        tar.add(corpus / "recordings", "fsdd-1/recordings")
    with pytest.raises(AsrKdError, match="differs from commit 26eb9aaf76e8"):
        fsdd.download(tmp_path / "downloads", (tmp_path / "other.tar.gz").as_uri(), False, quiet)
    (tmp_path / "half.tar.gz").write_bytes((tmp_path / "other.tar.gz").read_bytes()[:5000])
    with pytest.raises(AsrKdError, match="no complete archive"):
        fsdd.download(tmp_path / "downloads", (tmp_path / "half.tar.gz").as_uri(), True, quiet)
    assert not list((tmp_path / "downloads").glob("fsdd*"))
