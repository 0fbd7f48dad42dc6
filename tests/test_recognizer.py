"""Model directories, and words from them alone: a tiny experiment on tones, each phone a chord of its own."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from made_up_speech import LEXICON, RATE, speak, write_set

from asr_kd.cli import main
from asr_kd.corpus.datadir import read_data_dir
from asr_kd.corpus.lexicon import Lexicon, write_lexicon
from asr_kd.errors import AsrKdError
from asr_kd.features.extract import extract
from asr_kd.features.options import FbankOptions, MfccOptions
from asr_kd.hmm import wheels
from asr_kd.hmm.decode import Decoder
from asr_kd.hmm.graph import Graph
from asr_kd.hmm.lang import Lang
from asr_kd.hmm.model import HmmModel
from asr_kd.hmm.word_times import PhoneTable, word_frames
from asr_kd.model_dir import Scales, export_model, load_model
from asr_kd.recognizer import Recognizer
from asr_kd.store.ali import AliReader
from asr_kd.store.kaldi_ark import read_int_vectors, read_matrices


def run(*argv: object) -> int:
    return main([str(arg) for arg in argv])


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that asr-kd export takes, and what asr-kd decode recognised: two nets, alone and as an ensemble."""
    try:
        wheels.kaldi()
    except AsrKdError:
        pytest.skip("the Kaldi wheels (asr_kd[hmm]) are not installed")
    exp = tmp_path_factory.mktemp("experiment")
    write_lexicon(exp / "lexicon.txt", LEXICON)
    options = FbankOptions(sample_frequency=RATE, num_mel_bins=24)
    for number, (name, size) in enumerate({"train": 40, "dev": 8}.items()):
        data = read_data_dir(write_set(exp, name, size, seed=number + 1))
        extract(data, exp / f"{name}.fbank.h5", options)
        extract(data, exp / f"{name}.mfcc.h5", MfccOptions(sample_frequency=RATE))
    argv = ["--feats", exp / "train.mfcc.h5", "--data", exp / "train", "--lexicon", exp / "lexicon.txt"]
    argv += ["--gmm-num-iters", 4, "--gmm-total-gauss", 40, "--position-dependent-phones", "true"]
    assert run("train-hmm", *argv, "--out", exp / "hmm") == 0
    for name in ("train", "dev"):
        argv = ["--feats", exp / f"{name}.mfcc.h5", "--data", exp / name, "--hmm", exp / "hmm"]
        assert run("align", *argv, "--out", exp / f"{name}.ali.h5", "--counts", exp / f"{name}.counts") == 0
    assert run("make-graph", "--hmm", exp / "hmm", "--data", exp / "train", "--out", exp / "graph") == 0
    for mode in ("speaker", "utterance"):
        argv = ["--feats", exp / "train.fbank.h5", "--ali", exp / "train.ali.h5"]
        argv += ["--dev-feats", exp / "dev.fbank.h5", "--dev-ali", exp / "dev.ali.h5", "--out", exp / mode]
        argv += ["--hidden-dim", 48, "--num-hidden-layers", 1, "--num-epochs", 12, "--left-context", 3]
        argv += ["--right-context", 3, "--cmvn", mode, "--warmup-steps", 5, "--device", "cpu", "--seeds", "1-2"]
        assert run("train", *argv) == 0
    (exp / "systems.yaml").write_text(
        "- {name: speaker, role: student, nets: [[speaker/seed1]]}\n"
        "- {name: utterance, role: student, nets: [[utterance/seed1]]}\n"
        "- {name: both, role: ensemble, combination: geometric, nets: [[utterance/seed1, utterance/seed2]]}\n"
    )
    argv = ["--systems", exp / "systems.yaml", "--graph", exp / "graph", "--counts", exp / "train.counts"]
    for name in ("dev", "test"):
        argv += [f"--{name}-feats", exp / "dev.fbank.h5", f"--{name}-data", exp / "dev"]
    assert run("decode", *argv, "--device", "cpu", "--precision", "float32", "--out", exp / "decode") == 0
    return exp


def exported(exp: Path, out: Path, *nets: str, system: str, extra: tuple = ()) -> Path:
    argv = ["--hmm", exp / "hmm", "--graph", exp / "graph", "--counts", exp / "train.counts", "--out", out]
    argv += ["--scales", exp / "decode" / system / "scales.json", *extra]
    assert run("export", "--nets", *(exp / net for net in nets), *argv) == 0
    return out


@pytest.fixture(scope="session")
def model(experiment, tmp_path_factory) -> Path:
    """A model directory of one net, far from the experiment."""
    folder = tmp_path_factory.mktemp("away")
    exported(
        experiment,
        folder / "made",
        "utterance/seed1",
        system="utterance",
        extra=("--license", "CC0-1.0", "--trained-on", "made-up tones"),
    )
    (folder / "made").rename(folder / "moved")
    return folder / "moved"


def recognized(capsys: pytest.CaptureFixture, *argv: object) -> tuple[int, list[str], str]:
    """Exit code, lines on stdout, and stderr of asr-kd recognize."""
    capsys.readouterr()
    code = run("recognize", *argv)
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err


# --- words


@pytest.mark.parametrize(
    ("system", "nets"),
    [
        ("utterance", ["utterance/seed1"]),
        ("speaker", ["speaker/seed1"]),
        ("both", ["utterance/seed1", "utterance/seed2"]),
    ],
)
def test_words_are_those_of_decode(experiment, tmp_path, capsys, system, nets):
    extra = ("--combination", "geometric") if system == "both" else ()
    out = exported(experiment, tmp_path / "model", *nets, system=system, extra=extra)
    code, lines, _ = recognized(capsys, "--model", out, "--data", experiment / "dev")
    assert code == 0
    decoded = (experiment / "decode" / system / "seed1" / "test.txt").read_text().splitlines()
    assert lines == decoded
    said = {utt.utt_id: " ".join(utt.words) for utt in read_data_dir(experiment / "dev")}
    assert sum(line == f"{line.split()[0]} {said[line.split()[0]]}" for line in lines) >= 7, "the nets learnt the tones"


def test_a_moved_directory_needs_nothing_else(experiment, model, tmp_path, capsys):
    """In a process of its own, in an empty folder, with the experiment out of the way."""
    wav = tmp_path / "hello there.wav"
    soundfile.write(wav, speak(["bod", "a"], 5)[0], RATE, subtype="PCM_16")
    hidden = experiment.with_name("hidden")
    experiment.rename(hidden)
    try:
        command = [sys.executable, "-m", "asr_kd.cli", "recognize", "--model", model, wav]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1200, check=False)
    finally:
        hidden.rename(experiment)
    assert (done.returncode, done.stdout) == (0, "hello_there bod a\n"), done.stderr
    assert str(experiment) not in "".join(f.read_text() for f in model.rglob("*") if f.suffix in (".json", ".md"))


def test_words_have_their_times(model):
    recognizer = Recognizer.load(model)
    words = ["dib", "a", "ab", "bod"]
    samples, times = speak(words, 77)
    result = recognizer.recognize(samples, RATE, posteriors=True)
    assert (result.words, result.complete) == (words, True)
    found = [(t.start_s, t.start_s + t.duration_s) for t in result.times]
    assert [t.word for t in result.times] == words
    np.testing.assert_allclose(found, times, atol=0.04)
    assert result.log_post.shape == (result.num_frames, recognizer.model.graph.num_pdfs)
    np.testing.assert_allclose(np.exp(result.log_post).sum(1), 1.0, rtol=1e-4)
    as_int16 = recognizer.recognize((samples * 32768).round().astype(np.int16), RATE)
    assert as_int16.words == words


def test_ctm_and_list_of_files_from_stdin(model, tmp_path, capsys, monkeypatch):
    for name, words in {"x": ["a"], "y z": ["bod"]}.items():
        soundfile.write(tmp_path / f"{name}.wav", speak(words, 8)[0], RATE, subtype="PCM_16")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{tmp_path}/x.wav\nutt2 {tmp_path}/y z.wav\n"))
    code, lines, _ = recognized(capsys, "--model", model, "--list", "-", "--ctm")
    assert code == 0
    rows = [line.split() for line in lines]
    assert [(row[0], row[1], row[4]) for row in rows] == [("x", "1", "a"), ("utt2", "1", "bod")]
    assert all(0.1 < float(row[2]) < 0.2 and 0.05 < float(row[3]) < 0.5 for row in rows)


# --- bad audio: one sentence for each, and the others go on


def test_bad_files_are_named_and_the_others_recognised(model, tmp_path, capsys):
    samples = speak(["bod", "a"], 5)[0]
    soundfile.write(tmp_path / "good.wav", samples, RATE, subtype="PCM_16")
    soundfile.write(tmp_path / "fast.wav", np.repeat(samples, 2), 2 * RATE, subtype="PCM_16")
    soundfile.write(tmp_path / "stereo.wav", np.stack([samples, 0 * samples], 1), RATE, subtype="PCM_16")
    soundfile.write(tmp_path / "short.wav", samples[:100], RATE, subtype="PCM_16")
    (tmp_path / "empty.wav").write_bytes(b"")
    names = ("fast", "stereo", "short", "empty", "missing", "good")
    files = [tmp_path / f"{name}.wav" for name in names]
    code, lines, err = recognized(capsys, "--model", model, *files)
    assert (code, lines) == (1, ["good bod a"])
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert [next(n for n in names if f"error: {n}: {tmp_path / n}.wav: " in e) for e in errors[:-1]] == [*names[:-1]]
    reasons = ["expected 8000 Hz, found 16000", "2 channels", "100 samples", "is empty", "no such", "5 of 6 files"]
    for error, reason in zip(errors, reasons, strict=True):
        assert reason in error
    code, lines, _ = recognized(capsys, "--model", model, "--resample", "--channel", 0, *files[:2])
    assert (code, [line.split()[0] for line in lines]) == (0, ["fast", "stereo"])
    assert lines[1] == "stereo bod a"


def test_same_names_and_no_files_are_explained(model, tmp_path, capsys, monkeypatch):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        soundfile.write(tmp_path / folder / "x.wav", speak(["a"], 1)[0], RATE, subtype="PCM_16")
    code, _, err = recognized(capsys, "--model", model, tmp_path / "a/x.wav", tmp_path / "b/x.wav")
    assert code == 1
    assert "are both called x; give --list `utt_id path` lines" in err
    assert "give either audio files, or --list, or --data" in recognized(capsys, "--model", model)[2]
    (tmp_path / "list").write_text(f"{tmp_path}/a/x.wav\n\n")
    (tmp_path / "none").touch()
    assert "none: names no file" in recognized(capsys, "--model", model, "--list", tmp_path / "none")[2]
    assert "list:2: an empty line" in recognized(capsys, "--model", model, "--list", tmp_path / "list")[2]
    monkeypatch.setattr("sys.stdin", io.StringIO())
    code, _, err = recognized(capsys, "--model", model, "--list", "-")
    assert (code, err.splitlines()[-1]) == (1, "error: stdin: names no file")


@pytest.mark.parametrize(
    ("audio", "rate", "message"),
    [
        (np.zeros(0), RATE, "shape"),
        (np.zeros((900, 2)), RATE, "one channel"),
        (np.zeros(900, np.int32), RATE, "int16"),
        (np.full(900, np.nan), RATE, "NaN"),
        (np.zeros(900), 2 * RATE, "at 16000 Hz, the model hears 8000"),
        (np.zeros(900), None, "sample_rate"),
    ],
)
def test_bad_samples_are_refused(model, audio, rate, message):
    with pytest.raises(AsrKdError, match=message):
        Recognizer.load(model).recognize(audio, rate)


def test_silence_and_clipping_are_recognised_as_something(model):
    recognizer = Recognizer.load(model)
    for samples in (np.zeros(RATE), np.sign(speak(["a", "bod"], 1)[0])):
        result = recognizer.recognize(samples, RATE)
        assert np.isfinite(result.score)
        assert set(result.words) <= set(recognizer.words)


# --- the directory


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("graph/HCLG.fst", lambda b: b[:-5] + b"xxxxx", "is not the file that was exported"),
        ("nets/1/final.safetensors", lambda b: b[:-1], "is not the file that was exported"),
        ("model.json", lambda b: b.replace(b'"acwt": 0', b'"acwt": 9'), "is not the file that was exported"),
        ("lexicon.txt", lambda b: b + b"c K\n", "is not the file that was exported"),
        ("ali_train_pdf.counts", None, "cannot be read (No such file or directory)"),
        ("SHA256SUMS", None, "no model directory made by asr-kd export"),
        ("SHA256SUMS", lambda b: b"0" * 64 + b"  ../secret\n" + b, "SHA256SUMS:1: is not a checksum"),
        ("SHA256SUMS", lambda b: b"".join(b.splitlines(True)[2:]), "does not list ali_train_pdf.counts"),
    ],
)
def test_a_damaged_directory_is_refused_in_one_sentence(model, tmp_path, capsys, name, damage, message):
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    if damage is None:
        (copy / name).unlink()
    else:
        before = (copy / name).read_bytes()
        (copy / name).write_bytes(damage(before))
        assert (copy / name).read_bytes() != before
    code, lines, err = recognized(capsys, "--model", copy, "x.wav")
    assert (code, lines) == (1, [])
    assert message in err.splitlines()[-1]
    assert str(copy) in err.splitlines()[-1]


def reseal(folder: Path, name: str) -> None:
    """Correct the checksum of one file, as somebody would who changes a model on purpose."""
    import hashlib

    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    (folder / "SHA256SUMS").write_text("".join(f"{digest if x.endswith(name) else x[:64]}{x[64:]}\n" for x in lines))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2 is not the 1 that this asr_kd reads"),
        ({"format": "other"}, "is not of format asr_kd.model"),
        ({"num_nets": 0}, "at least one net"),
        ({"combination": "median"}, "'median'"),
        ({"scales": {}}, "is not a complete model directory"),
    ],
)
def test_another_version_or_a_wrong_record_is_refused(model, tmp_path, change, message):
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    record = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps({**record, **change}))
    reseal(copy, "model.json")
    with pytest.raises(AsrKdError, match=message):
        load_model(copy)


def test_parts_of_other_experiments_are_refused(experiment, tmp_path):
    parts = {"hmm": experiment / "hmm", "graph": experiment / "graph", "counts": experiment / "train.counts"}
    nets = [experiment / "utterance/seed1", experiment / "speaker/seed1"]
    with pytest.raises(AsrKdError, match="differ in front end or CMVN"):
        export_model(tmp_path / "out", nets=nets, scales=Scales(0.1), **parts)
    for bad in ({"acwt": 0.0}, {"acwt": float("nan")}, {"acwt": 0.1, "insertion_penalty": float("inf")}):
        with pytest.raises(AsrKdError, match="the scale must be above 0, and both finite"):
            Scales(**bad)
    (tmp_path / "counts").write_text(" [ 1 2 3 ]\n")
    with pytest.raises(AsrKdError, match="counts of 3 states"):
        export_model(tmp_path / "out", nets=nets[:1], scales=Scales(0.1), **{**parts, "counts": tmp_path / "counts"})
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(AsrKdError, match="holds something else than what would replace it"):
        export_model(tmp_path / "mine", nets=nets[:1], scales=Scales(0.1), **parts)
    assert (tmp_path / "mine/letter.txt").read_text() == "dear"


def test_the_card_says_what_the_model_is(experiment, model, tmp_path):
    card = (model / "README.md").read_text()
    for fact in (
        "8000 Hz",
        "CC0-1.0",
        "It knows 4 words",
        "24 fbank",
        "(1 hidden layer of ",
        "None were given",
        "on made-up tones",
        "seed: 1",
    ):
        assert fact in card
    interval = {"value": 4.25, "ci95": [3.5, 5.0]}
    results = {"recipe": "tones", "preset": "quick", "split": "test", "num_utts": 8, "num_words": 24}
    results["systems"] = [{"name": "student", "role": "student", "wer": interval, "frame_accuracy": interval}]
    (tmp_path / "results.json").write_text(json.dumps(results))
    extra = ("--results", tmp_path / "results.json")
    out = exported(experiment, tmp_path / "model", "utterance/seed1", system="utterance", extra=extra)
    assert "| word error rate | 4.25 | 3.50 to 5.00 |" in (out / "README.md").read_text()
    argv = ["--hmm", experiment / "hmm", "--graph", experiment / "graph", "--counts", experiment / "train.counts"]
    argv += ["--nets", experiment / "utterance/seed1", "--acwt", 0.1, "--out", tmp_path / "other"]
    assert run("export", *argv, *extra, "--system", "teacher") == 1


def test_words_need_no_kaldi_wheels(model, tmp_path, monkeypatch, capsys):
    soundfile.write(tmp_path / "x.wav", speak(["bod"], 8)[0], RATE, subtype="PCM_16")
    monkeypatch.setattr(wheels, "PINNED", {"kaldi-hmm-gmm": "0.0"})
    wheels.kaldi.cache_clear()
    try:
        code, lines, _ = recognized(capsys, "--model", model, tmp_path / "x.wav")
    finally:
        monkeypatch.undo()
        wheels.kaldi.cache_clear()
    assert (code, lines) == (0, ["x bod"])


# --- word times


TWIN = Lexicon({"a": [("K",), ("K", "SIL2")], "b": [("K", "L")], "c": [("L",)]})


@pytest.mark.parametrize("position_dependent", [False, True])
def test_frames_of_words_are_found_among_pronunciations(position_dependent):
    """Two transition-ids a phone: 2p + 1 enters phone p, 2p + 2 stays in it."""
    lang = Lang(TWIN, position_dependent=position_dependent)
    size = len(lang.phones)
    table = PhoneTable(np.r_[-1, np.repeat(np.arange(size), 2)], np.r_[False, np.tile([True, False], size)], size)

    def path(*phones: str) -> np.ndarray:
        return np.concatenate([[2 * lang.phones.index(p) + 1, 2 * lang.phones.index(p) + 2] for p in phones])

    a, b = lang.positioned(("K",)), lang.positioned(("K", "L"))
    spans = word_frames(["a", "b"], path("SIL", *a, "SIL", *b), lang, table)
    assert [(s.word, s.begin, s.end) for s in spans] == [("a", 2, 4), ("b", 6, 10)]
    if not position_dependent:
        # K L is a c or b: the words decide.
        spans = word_frames(["a", "c", "b"], path("K", "L", "K", "L"), lang, table)
        assert [(s.begin, s.end) for s in spans] == [(0, 2), (2, 4), (4, 8)]
    with pytest.raises(AsrKdError, match="are not those of the decoded phones"):
        word_frames(["a"], path(*b), lang, table)
    cut = word_frames(["a", "b"], path(*a, b[0]), lang, table, complete=False)
    assert [(s.begin, s.end) for s in cut] == [(0, 2), (2, 4)]
    assert word_frames(["a"], path(*a, *b), lang, table, complete=False)[0].end == 2
    assert word_frames([], path("SIL"), lang, table) == []


def test_kaldi_gets_what_decode_sees(experiment, tmp_path):
    """The log-likelihoods decode to the same words, the alignment is that of final.mdl, the net of nnet1 has all."""
    graph, scales = Graph.load(experiment / "graph"), experiment / "decode/utterance/scales.json"
    argv = ["--nets", experiment / "utterance/seed1", "--counts", experiment / "train.counts"]
    more = ["--feats", experiment / "dev.fbank.h5", "--device", "cpu", "--precision", "float32"]
    assert run("export-kaldi", "loglik", *argv, *more, "--out", f"ark:{tmp_path}/loglik.ark") == 0
    chosen = json.loads(scales.read_text())
    decoder = Decoder(graph, acwt=chosen["acwt"], insertion_penalty=chosen["insertion_penalty"], beam=20.0)
    logliks = read_matrices(f"{tmp_path}/loglik.ark")
    lines = [" ".join([utt_id, *decoder.decode(loglik).words]) for utt_id, loglik in logliks]
    assert lines == (experiment / "decode/utterance/seed1/test.txt").read_text().splitlines()

    assert run("export-kaldi", "ali", "--ali", experiment / "dev.ali.h5", "--out", f"ark:{tmp_path}/ali.1.gz") == 0
    hmm, ali = HmmModel.load(experiment / "hmm"), AliReader(experiment / "dev.ali.h5")
    for utt_id, tids in read_int_vectors(f"ark:{tmp_path}/ali.1.gz"):
        rows = ali.layout.rows(utt_id)
        np.testing.assert_array_equal(hmm.t2pdf[tids], ali.pdf[rows])
        np.testing.assert_array_equal(hmm.t2phone[tids], ali.phone[rows])

    argv += ["--format", "nnet1", "--out", tmp_path / "nnet1"]
    assert run("export", *argv, "--hmm", experiment / "hmm") == 0
    names = {"final.nnet", "final.feature_transform", "cmvn_opts", "ali_train_pdf.counts", "final.mdl", "tree"}
    names.add(".stamp.json")
    assert {file.name for file in (tmp_path / "nnet1").iterdir()} == names
    assert (tmp_path / "nnet1/final.mdl").read_bytes() == (experiment / "hmm/final.mdl").read_bytes()
