"""Some hostile files for every reader; benchmarks/fuzz.py puts ten thousand to each."""

import sys

import fuzz
import fuzz_readers  # noqa: F401
import pytest

if sys.platform == "win32":
    pytest.skip("cases are read in forked processes", allow_module_level=True)

# Of files that HDF5 or C reads a case takes longer.
SLOW = (".h5", "audio", "net", "final.safetensors")


@pytest.fixture(scope="module")
def donors() -> list[bytes]:
    return fuzz.whole_files()


@pytest.mark.parametrize("name", fuzz.READERS)
def test_hostile_files_are_refused_or_read_right(name, donors):
    report = fuzz.run(name, 40 if any(part in name for part in SLOW) else 100, donors=donors)
    assert not report.failures, next(iter(report.failures.items()))
    assert report.refused > 10


def test_the_harness_sees_what_it_is_for(tmp_path):
    import os
    import signal

    def write(folder):
        (folder / "x").write_bytes(b"whole 1")
        return folder / "x"

    def crash(path):
        if path.read_bytes() != b"whole 1":
            os.kill(os.getpid(), signal.SIGSEGV)

    def wrong(path):
        return path.read_bytes()

    def flood(path):
        return path.read_bytes() != b"whole 1" and bytes(fuzz.MEMORY_BYTES + (1 << 30))

    try:
        fuzz.register("crash", write, crash)
        fuzz.register("wrong", write, wrong, sealed=True)
        fuzz.register("flood", write, flood)
        donors = [b"other"]
        assert "crash" in fuzz.run("crash", 3, donors=donors, keep=tmp_path).failures[0]
        assert "silent" in fuzz.run("wrong", 3, donors=donors).failures[0]
        if sys.platform == "linux":
            assert "MemoryError" in fuzz.run("flood", 1, donors=donors).failures[0]
        assert (tmp_path / "crash.0").is_file()
    finally:
        for name in ("crash", "wrong", "flood"):
            fuzz.READERS.pop(name, None)
