"""Outputs go where a link leads, and never into the place of what is no file."""

import os

import h5py
import pytest

from asr_kd.errors import AsrKdError
from asr_kd.runinfo import make
from asr_kd.store.atomic import atomic_dir, atomic_path, write_text
from asr_kd.store.lock import only_writer


def test_a_link_stays_and_its_file_is_written(tmp_path):
    target, link = tmp_path / "far" / "x.txt", tmp_path / "link"
    target.parent.mkdir()
    link.symlink_to("far/x.txt")
    for text in ("new", "again"):  # the link leads nowhere at first
        write_text(link, text)
        assert link.is_symlink()
        assert target.read_text() == text
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["far", "link", "x.txt"]


def test_a_link_to_a_folder_stays(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far")
    with atomic_dir(tmp_path / "link") as work:
        (work / "x").touch()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "x").exists()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink(path.name, path)])
def test_what_is_no_file_is_refused_and_stays(tmp_path, make):
    make(tmp_path / "x")
    before = os.lstat(tmp_path / "x")
    for write in (atomic_path, only_writer):
        with pytest.raises(AsrKdError, match=f"{tmp_path / 'x'}: "), write(tmp_path / "x"):
            pytest.fail("was let in")
    assert os.lstat(tmp_path / "x").st_ino == before.st_ino
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_hdf5_is_replaced_by_hdf5_alone(tmp_path):
    with h5py.File(tmp_path / "feats.h5", "w") as file:
        file["feats"] = [1, 2]
    before = (tmp_path / "feats.h5").read_bytes()
    with pytest.raises(AsrKdError, match=r"feats\.h5: is an HDF5 file, and what would replace it is none"):
        write_text(tmp_path / "feats.h5", "text")
    assert (tmp_path / "feats.h5").read_bytes() == before
    with atomic_path(tmp_path / "feats.h5", is_h5=True) as temporary, h5py.File(temporary, "w") as file:
        file["feats"] = [3]
    assert (tmp_path / "feats.h5").read_bytes() != before
    write_text(tmp_path / "text", "a longer text")
    write_text(tmp_path / "text", "")
    write_text(tmp_path / "text", "text")
    assert (tmp_path / "text").read_text() == "text"


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    os.mkfifo(tmp_path / "x")
    with pytest.raises(AsrKdError, match="is not a folder"), atomic_dir(tmp_path / "x"):
        pytest.fail("was let in")


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "x").mkdir()
    for name in ("record", "again"):  # an empty folder is, and so is an output of the same kind
        with atomic_dir(tmp_path / "x", "record") as work:
            (work / "record").touch()
            (work / name).touch()
    (tmp_path / "x/record").unlink()
    with pytest.raises(AsrKdError, match="x: exists and holds something else"), atomic_dir(tmp_path / "x", "record"):
        pytest.fail("was let in")
    assert (tmp_path / "x/again").exists()


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_the_current_folder_is_not_replaced(tmp_path, monkeypatch, name):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    for write in (atomic_path, atomic_dir, only_writer):
        with pytest.raises(AsrKdError), write(name):
            pytest.fail("was let in")
    with pytest.raises(AsrKdError):
        make(name, lambda: pytest.fail("was let in"), command="c")
    assert (tmp_path / "a" / "b").is_dir()


def test_a_second_writer_is_refused_and_the_first_ends_what_it_began(tmp_path):
    for write, name in ((atomic_path, "x.h5"), (atomic_dir, "graph")):
        out = tmp_path / name
        with write(out) as first:
            inside = first / "HCLG.fst" if write is atomic_dir else first
            inside.write_text("first")
            refused = pytest.raises(AsrKdError, match=f"{out}: another run is writing it")
            with refused, write(out):
                pytest.fail("was let in")
            assert inside.read_text() == "first"
            assert not out.exists()
        assert (out / "HCLG.fst" if write is atomic_dir else out).read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph", "x.h5"]


def test_a_lock_that_a_killed_process_left_is_nobodys(tmp_path):
    (tmp_path / "..x.partial.lock").touch()
    write_text(tmp_path / "x", "written")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
