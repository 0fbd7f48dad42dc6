"""Outputs do not replace what somebody else wrote."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from made_up_nets import make_net

from asr_kd.cli import main
from asr_kd.errors import AsrKdError
from asr_kd.runinfo import claimed, make
from asr_kd.store.atomic import atomic_dir, write_text
from asr_kd.store.feats import FeatsReader
from asr_kd.store.kaldi_ark import read_matrices

sys.path.insert(0, str(Path(__file__).parents[1] / "data_prep"))
import copy_feats
import data_dir
import extract_fbank

NOTES = "what somebody wrote by hand\n"


@pytest.fixture
def notes(tmp_path) -> Path:
    (tmp_path / "notes").write_text(NOTES)
    return tmp_path / "notes"


def refused(capsys: pytest.CaptureFixture, out: Path, status: int) -> None:
    """Check that a command told of `out`, in one line, what it would not replace."""
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {out}: exists, and is not replaced")
    assert ("there is no .stamp.json in it" if out.is_dir() else f".{out.name}.stamp.json beside it") in error
    assert status == 1


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_make_replaces_what_it_made_and_nothing_else(notes, capsys):
    def write(text: str, out: Path) -> bool:
        return make(out, lambda: write_text(out, text), command="asr-kd x", text=text)

    with pytest.raises(AsrKdError, match="notes: exists, and is not replaced"):
        write("a", notes)
    assert notes.read_text() == NOTES
    notes.write_text("")
    assert [write("a", notes), write("a", notes), write("b", notes), write("a", notes)] == [True, False, True, True]
    told = capsys.readouterr().err.splitlines()
    made_again = f"{notes}: was made from other inputs or options, or by another version, and is made again"
    assert told == [f"{notes}: up to date", made_again, made_again]
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
    with claimed([out], "c"):
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
    site, stamp = tmp_path / "site", tmp_path / "site/.stamp.json"
    site.mkdir()
    for name in ("results.json", "index.html"):
        with claimed([site], "c", "results.json"):
            (site / name).write_text('{"systems": []}')
    stamp.unlink()
    with claimed([site], "c", "results.json"):
        pass
    stamp.unlink()
    for foreign in ('{"mine": 1}', "[]", "no JSON"):
        (site / "results.json").write_text(foreign)
        with pytest.raises(AsrKdError, match="site: exists"), claimed([site], "c", "results.json"):
            pytest.fail("was let in")
    assert entries(tmp_path) == ["site"]
    assert entries(site) == ["index.html", "results.json"]


def test_a_folder_takes_its_stamp_along_and_does_not_leave_it_to_another_of_its_name(tmp_path):
    site, moved = tmp_path / "site", tmp_path / "moved"

    def write() -> None:
        with atomic_dir(site) as folder:
            (folder / "index.html").write_text("words")

    for _ in range(2):
        claim(site, write)
        assert entries(site) == [".stamp.json", "index.html"]
    site.rename(moved)
    claim(moved, lambda: write_text(moved / "index.html", "others"))
    site.mkdir()
    (site / "index.html").write_text(NOTES)
    with pytest.raises(AsrKdError, match=r"site: exists, and is not replaced.* no \.stamp\.json in it"):
        claim(site, lambda: pytest.fail("was let in"))
    assert entries(tmp_path) == ["moved", "site"]


def test_a_folder_of_an_earlier_version_has_its_stamp_beside_it_until_it_is_written_again(tmp_path):
    site, stamp = tmp_path / "site", tmp_path / ".site.stamp.json"
    site.mkdir()
    (site / "index.html").write_text("words")
    stamp.write_text("{}")

    def fails() -> None:
        raise AsrKdError("no")

    with pytest.raises(AsrKdError, match="no"):
        claim(site, fails)
    assert entries(tmp_path) == [stamp.name, "site"]
    claim(site, lambda: None)
    assert entries(tmp_path) == ["site"]
    assert entries(site) == [".stamp.json", "index.html"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_in_one_that_cannot_be_written_is_known_as_ours(tmp_path):
    site = tmp_path / "closed/site"
    site.mkdir(parents=True)
    site.parent.chmod(0o500)
    try:
        claim(site, lambda: write_text(site / "index.html", "words"))
        claim(site, lambda: write_text(site / "index.html", "others"))
    finally:
        site.parent.chmod(0o700)
    assert entries(site) == [".stamp.json", "index.html"]


def test_what_was_refused_or_failed_does_not_become_ours(notes):
    def fails() -> None:
        raise AsrKdError("no")

    (notes.parent / "site").mkdir()
    (notes.parent / "site/index.html").write_text(NOTES)
    (notes.parent / "x.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    for out in ("site", "x.h5"):  # which the work looks at itself
        with pytest.raises(AsrKdError, match="no"):
            make(notes.parent / out, fails, command="c")
    with pytest.raises(AsrKdError, match="no"), claimed([notes.parent / "new"], "c"):
        fails()
    with pytest.raises(AsrKdError, match="notes: exists"), claimed([notes.parent / "new", notes], "c"):
        pytest.fail("was let in")
    assert entries(notes.parent) == ["notes", "site", "x.h5"]


def test_an_output_that_somebody_changed_is_not_ours_any_more(tmp_path):
    out = tmp_path / "out"

    def write() -> bool:
        return make(out, lambda: write_text(out, "words"), command="c", a=1)

    assert [write(), write()] == [True, False]
    out.write_text(NOTES)
    with pytest.raises(AsrKdError, match="out: exists, and is not replaced, since it was changed"):
        write()
    with pytest.raises(AsrKdError, match="since it was changed"):
        claim(out, lambda: pytest.fail("was let in"))
    assert out.read_text() == NOTES
    out.unlink()
    assert [write(), write()] == [True, False]


def test_a_link_stands_for_what_it_leads_to(tmp_path):
    (tmp_path / "precious").write_text(NOTES)
    (tmp_path / "link").symlink_to("real")
    for name in ("link", "real", "link"):
        claim(tmp_path / name, lambda name=name: write_text(tmp_path / name, "words"))
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("precious")
    with pytest.raises(AsrKdError, match="link: exists, and is not replaced"):
        claim(tmp_path / "link", lambda: pytest.fail("was let in"))
    assert (tmp_path / "precious").read_text() == NOTES


def test_what_is_written_besides_belongs_to_the_same_output(tmp_path):
    def write(name: str) -> bool:
        def work() -> None:
            write_text(tmp_path / name, name)
            write_text(tmp_path / "script", name)

        return make(tmp_path / name, work, command="c", besides=[tmp_path / "script"], name=name)

    assert [write("a"), write("a"), write("b"), write("a")] == [True, False, True, True]
    (tmp_path / "script").unlink()
    assert write("a")


def test_a_killed_command_is_known_by_its_next_run(tmp_path):
    """SIGKILL between the output and what follows it, in a folder that is new."""
    script = (
        "import os, sys; from pathlib import Path; from asr_kd.runinfo import claimed\n"
        "out = Path(sys.argv[1])\n"
        "with claimed([out], 'c'):\n    out.write_text('half'); os.kill(os.getpid(), 9)\n"
    )
    out = tmp_path / "new/deep/out"
    assert subprocess.run([sys.executable, "-c", script, str(out)]).returncode == -9
    claim(out, lambda: write_text(out, "whole"))
    assert out.read_text() == "whole"


def test_words_go_to_the_current_folder_and_to_devices(tmp_path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    (tmp_path / "text").write_text("a one\n")
    monkeypatch.chdir(tmp_path / "here")
    for _ in range(2):
        assert main(["score-words", "--ref", "../text", "--hyp", "../text", "--out", "."]) == 0
    assert entries(tmp_path) == ["here", "text"]
    assert ".stamp.json" in entries(tmp_path / "here")
    with claimed([Path("/dev/null")], "c"):
        pass
    assert not Path("/dev/.null.stamp.json").exists()


@pytest.mark.parametrize(
    "argv",
    [
        "lattice-rescore --lattices ark:lat --words words.txt --acwt 1 --out notes",
        "lattice-rescore --lattices ark:lat --words words.txt --acwt 1 --out out --lattices-out ark:notes",
        "lattice-nbest --lattices ark:lat --words words.txt --acwt 1 --out notes",
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


def test_an_archive_of_features_and_a_picture_are_not_written_over_text(toy, notes, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 8000, subtype="PCM_16")
    other = notes.with_name("other")
    for table in (f"ark:{notes}", f"ark,scp:{other},{notes}"):
        argv = ["--wav", str(tmp_path / "a.wav"), "--sample-frequency", "8000", "--out", table]
        refused(capsys, notes, extract_fbank.run_main(extract_fbank.main, extract_fbank.build_parser(), argv))
    for _ in range(2):
        argv[-1] = f"ark,scp:{other},{other}.scp"
        assert extract_fbank.run_main(extract_fbank.main, extract_fbank.build_parser(), argv) == 0
    capsys.readouterr()
    picture = notes.with_name("notes.png")
    notes.rename(picture)
    refused(capsys, picture, main(["inspect", str(toy["feats"]), "--picture", str(picture)]))
    assert picture.read_text() == NOTES


@pytest.mark.parametrize("table", ["ark:same", "ark,scp:x.ark,same", "same.ark"])
def test_two_outputs_are_two_files(tmp_path, monkeypatch, capsys, table):
    monkeypatch.chdir(tmp_path)
    out = table.rpartition(":")[2].rpartition(",")[2]
    argv = ["lattice-rescore", "--lattices", "ark:l", "--words", "w", "--acwt", "1", "--out", out]
    assert main([*argv, "--lattices-out", table]) == 1
    assert "is named for two outputs" in capsys.readouterr().err


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
    (data / "a/split2utt").mkdir()
    (data / "a/split2utt/notes").write_text(NOTES)
    refused(capsys, data / "a/split2utt", run("split", data / "a", "--num", 2, "--by", "utterance"))
    assert (data / "a/split2utt/notes").read_text() == NOTES
    shutil.rmtree(data / "a/split2utt")
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
    assert [utt_id for utt_id, _ in read_matrices(f"scp:{other}.scp")] == list(FeatsReader(toy["feats"]).layout.utt_ids)
    assert run(toy["feats"], f"ark:{other}", "--write-utt2spk", other) == 1
    assert "is OUT, too" in capsys.readouterr().err
