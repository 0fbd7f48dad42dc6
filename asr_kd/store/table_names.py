"""How Kaldi's tables are named on a command line.

What is read is an rspecifier: `ark:FILE`, `scp:FILE`, `-` for the standard input. What is written is a wspecifier:
`ark:F`, `ark,t:F` (text) or `ark,scp:F.ark,F.scp`. A path that ends in .ark, .ark.gz or .scp needs no prefix. Source:
Kaldi's src/util/kaldi-table.h.
"""

from pathlib import Path
from typing import NamedTuple

from asr_kd.errors import AsrKdError

_KINDS = ("ark", "scp")


def names_table(name: str) -> bool:
    """Whether `name` is that of a table, by its prefix or its ending."""
    return _has_prefix(name) or name.endswith((".ark", ".ark.gz", ".scp"))


def _has_prefix(name: str) -> bool:
    kinds, colon, rest = name.partition(":")
    return bool(colon and rest) and any(kind.strip() in _KINDS for kind in kinds.split(","))


def is_table(name: str) -> bool:
    """Whether `name` is that of a table (True), or of an HDF5 file (ending in .h5 or .hdf5).

    Raises AsrKdError for a name that says neither.
    """
    if names_table(name):
        return True
    if name.endswith((".h5", ".hdf5")):
        return False
    raise AsrKdError(
        f"{name!r} does not say what it is: name an HDF5 file FILE.h5 (or .hdf5), or a Kaldi table ark:FILE, "
        "ark,t:FILE (text) or ark,scp:FILE.ark,FILE.scp (scp:FILE to read one)"
    )


def parse_specifier(specifier: str) -> tuple[list[str], str]:
    """("ark", "scp" and options, the file or files) of a table's name. Raises AsrKdError for another name."""
    if not names_table(specifier):
        raise AsrKdError(f"{specifier!r} does not say what it is: write ark:FILE or scp:FILE")
    if _has_prefix(specifier):
        kinds, _, rest = specifier.partition(":")
        return [kind.strip() for kind in kinds.split(",")], rest
    return ["scp" if specifier.endswith(".scp") else "ark"], specifier


def files_of_table(name: str) -> list[Path]:
    """The files that a table's name leads to, which the standard input and output are not; none for another name."""
    if not names_table(name):
        return []
    kinds, rest = parse_specifier(name)
    return _files(*(rest.split(",") if {*_KINDS} <= {*kinds} else [rest]))


def _files(*names: str) -> list[Path]:
    return [Path(name) for name in names if name not in ("", "-")]


class Destination(NamedTuple):
    """What a wspecifier names: the archive, whether it is text, and the script that points into it ("" for none)."""

    archive: str
    text: bool
    script: str

    @property
    def files(self) -> list[Path]:
        """The archive, unless it is standard output, and the script."""
        return _files(self.archive, self.script)


def parse_wspecifier(wspecifier: str) -> Destination:
    """Where a table is written: "ark:F", "ark,t:F", "ark,scp:F.ark,F.scp", or a path that ends in .ark or .ark.gz.

    Raises AsrKdError for anything else, also for a script alone, which is nothing without its archive.
    """
    kinds, name = parse_specifier(wspecifier)
    with_script = "scp" in kinds
    unknown = set(kinds) - {"ark", "scp", "b", "t", "f", "nf"}
    if unknown or "ark" not in kinds or (with_script and name.count(",") != 1):
        raise AsrKdError(f"{wspecifier!r}: write to ark:FILE, ark,t:FILE or ark,scp:FILE.ark,FILE.scp")
    if name.startswith("|"):
        raise AsrKdError(f"{wspecifier!r} is a command, and commands are not run; write to ark:- and pipe from there")
    archive, _, script = name.partition(",") if with_script else (name, "", "")
    if with_script and (archive == "-" or archive.endswith(".gz")):
        raise AsrKdError(f"{wspecifier!r}: a script needs an archive in a plain file to point into")
    if with_script and archive == script:
        raise AsrKdError(f"{wspecifier!r}: names one file as archive and script; name two")
    return Destination(archive, "t" in kinds, script)
