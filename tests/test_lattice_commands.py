"""`asr-kd lattice-nbest`, `lattice-rescore`, `lattice-oracle` from files to files."""

import json
import struct
from pathlib import Path

import pytest

from asr_kd.cli import main
from asr_kd.hmm.lattice import Lattice
from asr_kd.hmm.lattice_table import read_lattices, write_lattices

ARPA = "\\data\\\nngram 1=5\n\n\\1-grams:\n-99\t<s>\n-0.5\t</s>\n-2.0\tone\n-0.2\ttwo\n-3.0\tthree\n\n\\end\\\n"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Lattices of two utterances (one: `one` or `two three`; other: `two`), words.txt, references, an ARPA file."""
    one, two, three = (struct.pack("<i", n) for n in (1, 2, 3))
    arcs = [
        (0, 2, 1, 1.0, 10.0, one + two),
        (0, 1, 2, 0.5, 4.0, one),
        (1, 2, 3, 0.75, 8.0, three),
        (2, 3, 0, 0.25, 1.0, two),
    ]
    lattice = Lattice.from_arcs(0, 3, *zip(*arcs, strict=True))
    other = Lattice.from_arcs(0, 2, [0, 1], [1, 2], [2, 0], [1.0, 0.0], [1.0, 0.0], [one, b""])
    write_lattices(f"ark:{tmp_path}/lat.gz", [("s1-a", lattice), ("s1-b", other)])
    (tmp_path / "words.txt").write_text("<eps> 0\none 1\ntwo 2\nthree 3\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/text").write_text("s1-a two\ns1-b two\n")
    (tmp_path / "lm.arpa").write_text(ARPA)
    (tmp_path / "scales.json").write_text(json.dumps({"acwt": 0.1, "insertion_penalty": 0.5}))
    return tmp_path


def run(folder: Path, command: str, *options: str) -> int:
    files = ["--lattices", f"{folder}/lat.gz", "--words", f"{folder}/words.txt"]
    return main([command, *files, *(option.replace("DIR", str(folder)) for option in options)])


def test_nbest_lists(folder):
    assert run(folder, "lattice-nbest", "--scales", "DIR/scales.json", "--out", "DIR/nbest") == 0
    assert (folder / "nbest/text").read_text() == "s1-a-1 one\ns1-a-2 two three\ns1-b-1 two\n"
    lines = [line.split() for line in (folder / "nbest/costs").read_text().splitlines()]
    assert lines[1] == ["s1-a-2", "1.5", "13", "3.800000"]
    assert run(folder, "lattice-nbest", "--acwt", "1", "--n", "1", "--out", "DIR/nbest") == 0
    assert (folder / "nbest/text").read_text() == "s1-a-1 one\ns1-b-1 two\n"
    assert run(folder, "lattice-nbest", "--acwt", "0.1", "--n", "0", "--out", "DIR/nbest") == 1
    assert (folder / "nbest/text").is_file()


def test_other_scales_and_another_language_model(folder, capsys):
    common = ["--data", "DIR/data", "--out", "DIR/words"]
    assert run(folder, "lattice-rescore", "--acwt", "0.1", "--insertion-penalty", "-2", *common) == 0
    assert (folder / "words").read_text() == "s1-a two three\ns1-b two\n"
    assert "WER 50.00 % (1 errors; 0 utterances without a lattice)" in capsys.readouterr().out
    model = ["--acwt", "0.1", "--lm", "DIR/lm.arpa", "--lattices-out", "ark:DIR/new.ark"]
    assert run(folder, "lattice-rescore", *model, *common) == 0
    assert (folder / "words").read_text() == "s1-a one\ns1-b two\n"
    new = dict(read_lattices(f"ark:{folder}/new.ark"))
    assert new["s1-b"].graph.sum() == pytest.approx(1.0 + 2.302585 * (0.2 + 0.5), abs=1e-5)
    # The same model taken off and put on again leaves the costs as they are.
    assert run(folder, "lattice-rescore", *model, "--old-lm", "DIR/lm.arpa", *common) == 0
    new = dict(read_lattices(f"ark:{folder}/new.ark"))
    assert new["s1-b"].graph.sum() == pytest.approx(1.0, abs=1e-5)


def test_the_oracle(folder, capsys):
    assert run(folder, "lattice-oracle", "--data", "DIR/data") == 0
    assert "2 lattices: oracle WER 50.00 % (1 errors in 2 words), 1.50 arcs over a frame" in capsys.readouterr().out
    # A word that the graph lacks is an error, though another graph may have given it the next number.
    (folder / "data/text").write_text("s1-a four\ns1-b four\n")
    assert run(folder, "lattice-oracle", "--data", "DIR/data") == 0
    assert "oracle WER 100.00 % (2 errors in 2 words)" in capsys.readouterr().out


def test_a_language_model_of_letters_is_suspected(folder, capsys):
    (folder / "letters.arpa").write_text(
        "\\data\\\nngram 1=4\n\n\\1-grams:\n-99\t<s>\n-0.5\t</s>\n-1\t<unk>\n-1\to\n\n\\end\\\n"
    )
    common = ["--acwt", "0.1", "--out", "DIR/words"]
    assert run(folder, "lattice-rescore", *common, "--lm", "DIR/letters.arpa") == 0
    assert "letters.arpa lacks 3 of the lattices' 3 words" in capsys.readouterr().err
    assert run(folder, "lattice-rescore", *common, "--lm", "DIR/lm.arpa") == 0
    assert "lacks" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "options", "complaint"),
    [
        ("lattice-rescore", "--acwt 0.1 --old-lm DIR/lm.arpa --out DIR/words", "give --lm too"),
        ("lattice-rescore", "--acwt 0.1 --lm-scale 3 --out DIR/words", "give --lm too"),
        ("lattice-rescore", "--acwt 0.1 --lm DIR/lm.arpa --lm-scale nan --out DIR/words", "--lm-scale nan"),
        ("lattice-rescore", "--acwt -1 --out DIR/words", "bad scales"),
        ("lattice-rescore", "--acwt 1e308 --out DIR/words", "costs without bound"),
        ("lattice-rescore", "--acwt 1 --lm DIR/lm.arpa --lm-scale 1e308 --out DIR/words", "costs without bound"),
        ("lattice-rescore", "--acwt 1 --data DIR/other --out DIR/words", "no transcript of utterance s1-a"),
        ("lattice-rescore", "--acwt 1 --lm DIR/two.arpa --out DIR/words", "s1-a: the language model can say none"),
        ("lattice-rescore", "--scales DIR/words.txt --out DIR/words", "not a scales.json"),
        ("lattice-rescore", "--acwt 1 --words DIR/few.txt --out DIR/words", "of other graphs"),
        ("lattice-rescore", "--acwt 1 --lattices DIR/words.txt --out DIR/words", "words.txt"),
        ("lattice-rescore", "--acwt 1 --lm DIR/lm.arpa --old-lm DIR/poor.arpa --out DIR/words", "s1-a: the old"),
        ("lattice-nbest", "--acwt 1 --words DIR/few.txt --out DIR/words", "of other graphs"),
        ("lattice-oracle", "--data DIR/data --words DIR/few.txt", "s1-a: has a word 3, --words only 1"),
        ("lattice-oracle", "--data DIR/other", "no transcript of utterance s1-a"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(folder, capsys, command, options, complaint):
    (folder / "few.txt").write_text("<eps> 0\none 1\n")
    (folder / "poor.arpa").write_text(ARPA.replace("-2.0\tone", "-2.0\tbone"))
    (folder / "two.arpa").write_text(ARPA.replace("\tone", "\tbone").replace("\tthree", "\ttree"))
    other = folder / "other"
    other.mkdir()
    (other / "text").write_text("s1-0 two\ns1-b two\n")
    assert run(folder, command, *options.split()) == 1
    errors = capsys.readouterr().err
    assert complaint in errors
    assert "Traceback" not in errors
    assert not (folder / "words").exists()


def test_inputs_are_not_written_over(folder, capsys):
    before = (folder / "lat.gz").read_bytes()
    common = ("lattice-rescore", "--acwt", "0.1", "--lattices", "ark:DIR/lat.gz")
    for out in ("ark:DIR/lat.gz", "ark,scp:DIR/new.ark,DIR/lat.gz"):
        assert run(folder, *common, "--lattices-out", out, "--out", "DIR/words") == 1
        assert f"--lattices-out {folder}/lat.gz: is what --lattices names, too" in capsys.readouterr().err
    assert run(folder, *common, "--out", "DIR/words.txt") == 1
    assert "is what --words names, too" in capsys.readouterr().err
    assert (folder / "lat.gz").read_bytes() == before


def test_lists_do_not_replace_a_folder_of_something_else(folder, capsys):
    assert run(folder, "lattice-nbest", "--acwt", "0.1", "--out", "DIR/data") == 1
    assert "data: exists, and is not replaced" in capsys.readouterr().err
    assert (folder / "data/text").read_text() == "s1-a two\ns1-b two\n"


@pytest.mark.parametrize("command", ["lattice-nbest", "lattice-rescore"])
def test_a_table_without_a_lattice_is_no_success(folder, capsys, command):
    (folder / "lat.gz").write_bytes(b"")
    assert run(folder, command, "--acwt", "0.1", "--out", "DIR/out") == 1
    assert "holds no lattice" in capsys.readouterr().err
    assert not (folder / "out").exists()
