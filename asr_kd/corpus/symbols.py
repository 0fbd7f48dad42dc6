"""Kaldi's symbol tables: words.txt and phones.txt."""

from pathlib import Path

from asr_kd.errors import AsrKdError

EPS = "<eps>"


def read_symbols(path: str | Path) -> list[str]:
    """The names of a symbol table by their numbers, from 0, which is <eps>.

    Raises AsrKdError, naming file and line, for a line that is not `name number`, a name or number that comes twice, a
    number that is left out, and a file that cannot be read.
    """
    try:
        lines = Path(path).read_bytes().decode("utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise AsrKdError(f"{path}: cannot be read as a symbol table ({error})") from error
    names: dict[int, str] = {}
    seen: set[str] = set()
    for line_number, line in enumerate(lines, 1):
        fields = line.split()
        if len(fields) != 2 or not (fields[1].isascii() and fields[1].isdigit() and len(fields[1]) < 10):
            raise AsrKdError(f"{path}:{line_number}: is not a name and its number, but {line[:80]!r}")
        name, number = fields[0], int(fields[1])
        if name in seen or number in names:
            raise AsrKdError(f"{path}:{line_number}: {name} or {number} comes twice")
        seen.add(name)
        names[number] = name
    missing = next((number for number in range(len(names)) if number not in names), None)
    if missing is not None:
        raise AsrKdError(f"{path}: has no name for {missing}, though it has {len(names)}; numbers count up from 0")
    if names[0] != EPS:
        raise AsrKdError(f"{path}: number 0 is {names[0]!r}, but {EPS} in every table of Kaldi's")
    return [names[number] for number in range(len(names))]
