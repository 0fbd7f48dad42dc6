"""Outputs do not replace what somebody else wrote."""

import json
import os
import sys
from pathlib import Path

import pytest
from made_up_nets import make_net

from asr_kd.cli import main
from asr_kd.errors import AsrKdError
from asr_kd.runinfo import claimed, make
from asr_kd.store.atomic import write_text

sys.path.insert(0, str(Path(__file__).parents[1] / "data_prep"))
import copy_feats
import data_dir

NOTES = "what somebody wrote by hand\n"


@pytest.fixture
def notes(tmp_path) -> Path:
    (tmp_path / "notes").write_text(NOTES)
    return tmp_path / "notes"


def refused(capsys: pytest.CaptureFixture, out: Path, status: int) -> None:
    """Check that a command told of `out`, in one line, what it would not replace."""
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {out}: exists, and is not replaced")
    assert f".{out.name}.stamp.json" in error
    assert status == 1


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_make_replaces_what_it_made_and_nothing_else(notes):
    def write(text: str, out: Path) -> bool:
        return make(out, lambda: write_text(out, text), command="asr-kd x", text=text)

    with pytest.raises(AsrKdError, match="notes: exists, and is not replaced"):
        write("a", notes)
    assert notes.read_text() == NOTES
    notes.write_text("")
    assert [write("a", notes), write("a", notes), write("b", notes), write("a", notes)] == [True, False, True, True]
    stamp = notes.with_name(".notes.stamp.json")
    assert json.loads(stamp.read_text())["command"] == "asr-kd x"
    assert entries(notes.parent) == [stamp.name, "notes"]


def test_an_output_that_was_cut_short_is_made_again(tmp_path):
    out = tmp_path / "out"

    def killed() -> None:
        out.write_text("half")
        raise KeyboardInterrupt

    for begun in (lambda: make(out, killed, command="c", a=1), lambda: claim(out, killed)):
        with pytest.raises(KeyboardInterrupt):
            begun()
        assert make(out, lambda: write_text(out, "whole"), command="c", a=1)
        assert out.read_text() == "whole"


def claim(out: Path, work) -> None:
    with claimed({out: None}, "c"):
        work()


def test_what_came_to_nothing_leaves_nothing(tmp_path):
    def fails() -> None:
        raise AsrKdError("no")

    for out in (tmp_path / "out", tmp_path / "new" / "out"):
        with pytest.raises(AsrKdError, match="no"):
            make(out, fails, command="c", a=1)
        with pytest.raises(AsrKdError, match="no"):
            claim(out, fails)
    assert entries(tmp_path) == []


def test_a_folder_is_ours_if_it_has_the_mark_or_a_stamp_or_nothing(tmp_path):
    (tmp_path / "site").mkdir()
    claims = {tmp_path / "site": "results.json"}
    for name in ("results.json", "index.html"):
        with claimed(claims, "c"):
            (tmp_path / "site" / name).touch()
    (tmp_path / ".site.stamp.json").unlink()
    with claimed(claims, "c"):
        pass
    (tmp_path / ".site.stamp.json").unlink()
    (tmp_path / "site/results.json").unlink()
    with pytest.raises(AsrKdError, match="site: exists"), claimed(claims, "c"):
        pytest.fail("was let in")
    assert entries(tmp_path) == ["site"]


def test_words_go_to_the_current_folder_and_to_devices(tmp_path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    (tmp_path / "text").write_text("a one\n")
    monkeypatch.chdir(tmp_path / "here")
    for _ in range(2):
        assert main(["score-words", "--ref", "../text", "--hyp", "../text", "--out", "."]) == 0
    assert entries(tmp_path) == [".here.stamp.json", "here", "text"]
    with claimed({Path("/dev/null"): None}, "c"):
        pass


@pytest.mark.parametrize(
    "argv",
    [
        "lattice-rescore --lattices ark:lat --words words.txt --acwt 1 --out notes",
        "lattice-rescore --lattices ark:lat --words words.txt --acwt 1 --out out --lattices-out ark:notes",
        "check-hmm --feats f --data d --hmm h --hyps notes",
        "align --feats f --data d --hmm h --out ali.h5 --counts notes",
        "specialist-coverage --generalists g --specialists s --feats f --ali a --out notes",
        "score-words --ref ref --hyp hyp --out notes",
        "report --systems s --scores s --dev-scores s --recipe mini --preset quick --out notes",
    ],
)
def test_commands_look_at_their_outputs_first(notes, monkeypatch, capsys, argv):
    monkeypatch.chdir(notes.parent)
    refused(capsys, Path("notes"), main(argv.split()))
    assert notes.read_text() == NOTES
    assert entries(notes.parent) == ["notes"]


def test_a_net_is_not_replaced_by_what_is_told_of_it(toy, tmp_path, capsys):
    make_net(tmp_path / "net", toy, 0)
    card = (tmp_path / "net/net.json").read_bytes()
    sets = ["--feats", toy["dev_feats"], "--ali", toy["dev_ali"], "--device", "cpu"]
    counted = ["count-errors", "--nets", tmp_path / "net", *sets, "--out", tmp_path / "net/net.json"]
    refused(capsys, tmp_path / "net/net.json", main([str(arg) for arg in counted]))
    assert (tmp_path / "net/net.json").read_bytes() == card


def test_a_data_directory_goes_into_a_folder_of_its_own(tmp_path, capsys):
    def write(folder: Path, *utt_ids: str) -> None:
        folder.mkdir(parents=True)
        (folder / "wav.scp").write_text("".join(f"{utt_id} {utt_id}.wav\n" for utt_id in utt_ids))
        for utt_id in utt_ids:
            (folder / f"{utt_id}.wav").touch()
        (folder / "utt2spk").write_text("".join(f"{utt_id} s\n" for utt_id in utt_ids))
        (folder / "spk2utt").write_text(f"s {' '.join(utt_ids)}\n")

    def run(*argv: object) -> int:
        return data_dir.run_main(data_dir.main, data_dir.build_parser(), [str(arg) for arg in argv])

    data = tmp_path / "data"
    write(data / "a", "s-a", "s-b")
    write(data / "b", "s-c")
    mine = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    for out in (data, data / "b"):
        refused(capsys, out, run("subset", data / "a", out, "--first", 1))
    refused(capsys, data, run("combine", data, data / "a", data / "b"))
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == mine
    assert run("combine", data / "c", data / "a", data / "b") == 0
    assert run("subset", data / "a", data / "c", "--first", 1) == 0
    assert (data / "c/utt2spk").read_text() == "s-a s\n"
    for ours in (("subset", data / "c", data / "c", "--first", 1), ("combine", data / "c", data / "c", data / "b")):
        assert run(*ours) == 1
        assert "cannot be written over itself" in capsys.readouterr().err
    assert (data / "c/utt2spk").read_text() == "s-a s\n"


def test_tables_of_kaldi_are_not_written_over_text(toy, notes, capsys):
    def run(*argv: object) -> int:
        return copy_feats.run_main(copy_feats.main, copy_feats.build_parser(), [str(arg) for arg in argv])

    other = notes.parent / "other"
    for out, options in (
        (f"ark:{notes}", ()),
        (f"ark,scp:{other},{notes}", ()),
        (f"ark:{other}", ("--write-utt2spk", notes)),
    ):
        refused(capsys, notes, run(toy["feats"], out, *options))
        assert entries(notes.parent) == ["notes"]
    for _ in range(2):
        assert run(toy["feats"], f"ark,scp:{other},{notes.parent / 'other.scp'}") == 0
    assert os.path.getsize(other) > 0
