"""Mboshi: its layouts, transcripts and headers, on a made-up corpus named and laid out as the public one."""

import shutil
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from asr_kd.corpus import mboshi
from asr_kd.corpus.datadir import read_data_dir
from asr_kd.corpus.letters import letters_of
from asr_kd.corpus.lexicon import read_lexicon
from asr_kd.errors import AsrKdError
from asr_kd.features.audio import read_audio

SHARED = Path(__file__).parents[2] / "shared" / "data" / "mboshi"
WORDS = ["kyéma", "yeékirá", "ikóó", "wó", "adí", "sωndω", "mbέ", "lekyε", "moro", "apií"]


def quiet(message: str) -> None:
    pass


def name_of(speaker: str, number: int) -> str:
    return f"{speaker}_2015-09-08-11-18-39_samsung-SM-T530_mdw_elicit_Dico18_{number}"


def write_recording(folder: Path, name: str, sentence: str, form: str = "wav") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    seed = int.from_bytes(name.encode()[-8:], "big") % 2**32
    samples = np.random.default_rng(seed).normal(0, 300, 3200).astype(np.int16)
    path = folder / f"{name}.{form}"
    soundfile.write(path, samples, 16000)
    (folder / f"{name}.mb.cleaned").write_text(f"{sentence}\n", encoding="utf-8")
    (folder / f"{name}.fr").write_text("une phrase\n", encoding="utf-8")
    return path


def write_corpus(root: Path, form: str = "wav") -> Path:
    """Sixty training recordings of forty sentences, and four of test; one word of test is in no other."""
    rng = np.random.default_rng(5)
    sentences = [" ".join(rng.choice(WORDS, 4)) for _ in range(40)]
    for number in range(60):
        speaker = mboshi.SPEAKERS[number % 3]
        write_recording(root / "train", name_of(speaker, number), sentences[number % 40], form)
    for number in range(4):
        write_recording(root / "dev", name_of("martial", 900 + number), f"wó adí{' obándá' * (number == 0)} moro", form)
    return root


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("mboshi")
    write_corpus(root / mboshi.FOLDER)
    return root


def build(corpus: Path, out: Path, log=quiet) -> Path:
    mboshi.write_sets(mboshi.read_corpus(corpus, True, log), out, 0.2, log)
    return out


def texts(out: Path) -> dict[str, set[str]]:
    return {n: {" ".join(u.words) for u in read_data_dir(out / n)} for n in ("train", "dev", "test")}


def test_the_official_dev_is_test_and_dev_shares_no_sentence_with_training(corpus: Path, tmp_path: Path):
    lines: list[str] = []
    out = build(corpus, tmp_path / "out", lines.append)
    sets = {name: read_data_dir(out / name) for name in ("train", "dev", "test")}
    assert {u.utt_id for u in sets["test"]} == {name_of("martial", 900 + number) for number in range(4)}
    assert len(sets["train"]) + len(sets["dev"]) == 60
    assert not texts(out)["train"] & texts(out)["dev"]
    assert {u.spk_id for u in sets["train"]} == set(mboshi.SPEAKERS)
    assert lines[-1].startswith(
        "test: 4 utterances (4 of martial), 13 words, 7.7 % of them not in training; 0 utterances"
    )


def test_a_share_of_the_sentences_goes_without_transcripts_and_leaves_dev_as_it_is(corpus: Path, tmp_path: Path):
    out = build(corpus, tmp_path / "out")
    mboshi.write_sets(mboshi.read_corpus(corpus, True, quiet), tmp_path / "part", 0.2, quiet, 0.4)
    part, whole = texts(tmp_path / "part"), texts(out)
    assert part["dev"] == whole["dev"]
    assert part["train"] < whole["train"]
    untold = {u.utt_id: u.words for u in read_data_dir(tmp_path / "part/unlabelled", need_text=False)}
    told = {u.utt_id: " ".join(u.words) for u in read_data_dir(out / "train")}
    assert set(untold.values()) == {None}
    assert {told.pop(utt_id) for utt_id in untold} == whole["train"] - part["train"]
    assert set(told) == {u.utt_id for u in read_data_dir(tmp_path / "part/train")}
    trained = read_lexicon(tmp_path / "part/lexicon.txt").words
    assert set(trained) == {word for sentence in part["train"] for word in sentence.split()}


def test_both_lexicons_spell_and_only_that_of_the_alignment_knows_words_of_test(corpus: Path, tmp_path: Path):
    out = build(corpus, tmp_path / "out")
    trained = read_lexicon(out / "lexicon.txt")
    spelled = read_lexicon(out / "lexicon_align.txt")
    assert set(trained.words) == {word for sentence in texts(out)["train"] for word in sentence.split()}
    assert "obándá" not in trained.entries
    assert spelled.entries["obándá"] == [("o", "b", "á", "n", "d", "á")]
    assert trained.entries["ikóó"] == [("i", "k", "ó", "ó")]
    letters = read_lexicon(out / "lexicon_letters.txt")
    assert all(spelling == [(letter,)] for letter, spelling in letters.entries.items())
    for whole, spelled in zip(read_data_dir(out / "test"), read_data_dir(out / "test_letters"), strict=True):
        assert "".join(spelled.words) == "".join(whole.words)
        assert set(spelled.words) <= set(letters.words)


def test_repository_folder_and_flac_give_the_same_sets(corpus: Path, tmp_path: Path):
    write_corpus(tmp_path / "flac", "flac")
    read = [mboshi.read_corpus(c, True, quiet) for c in (corpus, corpus / mboshi.FOLDER, tmp_path / "flac")]
    assert len({each.digest for each in read}) == 1
    mboshi.write_sets(read[2], tmp_path / "out", 0.2, quiet)
    assert all(u.recording.source.endswith(".flac") for u in read_data_dir(tmp_path / "out" / "test"))


def test_a_part_of_training_keeps_its_place(corpus: Path, tmp_path: Path):
    whole = build(corpus, tmp_path / "whole")
    part = shutil.copytree(corpus, tmp_path / "corpus")
    for number in range(0, 60, 2):
        (part / mboshi.FOLDER / "train" / f"{name_of(mboshi.SPEAKERS[number % 3], number)}.wav").unlink()
        (part / mboshi.FOLDER / "train" / f"{name_of(mboshi.SPEAKERS[number % 3], number)}.mb.cleaned").unlink()
    of_part = build(part, tmp_path / "part")
    for name in ("train", "dev"):
        assert texts(of_part)[name] <= texts(whole)[name]


def test_a_header_that_declares_too_much_is_mended(tmp_path: Path):
    write_corpus(tmp_path / "corpus")
    broken = tmp_path / "corpus" / "dev" / f"{name_of('martial', 900)}.wav"
    broken.write_bytes(broken.read_bytes()[:-1000])
    out = build(tmp_path / "corpus", tmp_path / "out")
    source = next(u.recording.source for u in read_data_dir(out / "test") if u.utt_id == name_of("martial", 900))
    assert Path(source).is_relative_to(out)
    held = read_audio(broken, 16000, accept_truncated=True)
    assert len(held) == 3200 - 500
    assert np.array_equal(read_audio(source, 16000), held)


def test_what_cannot_be_used_is_left_out_with_its_reason(tmp_path: Path):
    folder = write_corpus(tmp_path / "corpus")
    names = [name_of(mboshi.SPEAKERS[number % 3], number) for number in range(6)]
    (folder / "train" / f"{names[0]}.mb.cleaned").unlink()
    (folder / "train" / f"{names[1]}.mb.cleaned").write_text("\n")
    (folder / "train" / f"{names[2]}.wav").unlink()
    half = folder / "train" / f"{names[3]}.wav"
    half.write_bytes(half.read_bytes()[:2000])
    (folder / "train" / f"{names[4]}.mb.cleaned").write_text("moro 7\n")
    (folder / "train" / f"{names[5]}.mb.cleaned").write_bytes(b"\xff\xfe")
    lines: list[str] = []
    read = mboshi.read_corpus(folder, True, lines.append)
    reasons = ("no transcript", "empty", "no audio", "s are missing", "'7', which is no letter", "cannot be read")
    for name, reason in zip(names, reasons, strict=True):
        assert reason in read.left_out[name]
        assert any(name in line and reason in line for line in lines)
    assert len(read.sets["train"]) == 54


def test_what_is_not_the_corpus_is_refused(corpus: Path, tmp_path: Path):
    with pytest.raises(AsrKdError, match=r"dev: 4 recordings that are not the 514 of commit 83c5b428a825"):
        mboshi.read_corpus(corpus, False, quiet)
    with pytest.raises(AsrKdError, match="train: there is no such folder"):
        mboshi.read_corpus(tmp_path, True, quiet)
    folder = write_corpus(tmp_path / "corpus")
    write_recording(folder / "train", name_of("stranger", 1), "moro")
    with pytest.raises(AsrKdError, match="stranger is not a speaker of the corpus"):
        mboshi.read_corpus(folder, False, quiet)
    assert len(mboshi.read_corpus(folder, True, quiet).sets["train"]) == 61
    write_recording(folder / "train", "notes", "moro")
    with pytest.raises(AsrKdError, match=r"train/notes: is not named \{speaker\}"):
        mboshi.read_corpus(folder, True, quiet)
    for shares, empty in (((0.0, 0.0), "dev"), ((0.2, 0.8), "train"), ((0.2, 1e-9), "unlabelled")):
        with pytest.raises(AsrKdError, match=f"nothing is left for {empty}"):
            mboshi.write_sets(mboshi.read_corpus(corpus, True, quiet), tmp_path / "out", shares[0], quiet, shares[1])
    assert not (tmp_path / "out").exists()


def test_download_unpacks_transcripts_and_audio_of_the_two_sets(corpus: Path, tmp_path: Path):
    with tarfile.open(tmp_path / "corpus.tar.gz", "w:gz") as tar:
        tar.add(corpus / mboshi.FOLDER, f"mboshi-1/{mboshi.FOLDER}")
        tar.add(corpus / mboshi.FOLDER / "dev", f"mboshi-1/{mboshi.FOLDER}/all")
    url = (tmp_path / "corpus.tar.gz").as_uri()
    folder = mboshi.download(tmp_path / "downloads", url, True, quiet)
    assert mboshi.read_corpus(folder, True, quiet).digest == mboshi.read_corpus(corpus, True, quiet).digest
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".wav", ".cleaned"}
    with pytest.raises(AsrKdError, match=r"are not the 514"):
        mboshi.download(tmp_path / "again", url, False, quiet)


@given(st.text(st.sampled_from("aáeéεέωώgbɔ\u0301\u0302 "), max_size=12))
def test_letters_are_the_same_however_marks_are_written(text: str):
    letters = letters_of(text)
    assert letters == letters_of(unicodedata.normalize("NFD", text))
    joined = unicodedata.normalize("NFC", "".join(text.split()))
    assert "".join(letters) == joined
    assert all(not unicodedata.combining(letter[0]) for letter in letters[1:])


@pytest.mark.skipif(not SHARED.is_dir(), reason="Mboshi is not in ../shared/data/mboshi")
def test_the_public_part_is_read_and_known():
    lines: list[str] = []
    read = mboshi.read_corpus(SHARED, False, lines.append)
    assert (len(read.sets["train"]), len(read.sets["test"]), read.left_out) == (1523, 514, {})
    assert "1523 of 4616 training recordings" in lines[1]
    assert len({letter for each in read.sets["test"] for word in each.words for letter in letters_of(word)}) == 31
