"""Utterances of audio files that no data directory describes: named on a command line, or listed."""

import sys
from collections.abc import Iterable
from pathlib import Path

from asr_kd.corpus.datadir import Recording, Utterance
from asr_kd.errors import AsrKdError


def _utterance(utt_id: str, source: str) -> Utterance:
    return Utterance(utt_id, utt_id, Recording(utt_id, source))


def utterances_of_files(paths: Iterable[str | Path]) -> list[Utterance]:
    """An utterance a file, its own speaker, named after the file without its suffix, in the order given.

    Raises AsrKdError if two files have one name, or a name has a blank.
    """
    found: dict[str, Path] = {}
    for path in map(Path, paths):
        if path.stem in found:
            raise AsrKdError(f"{path}: has the name of {found[path.stem]}; give them ids in a list (--wav-list)")
        if len(path.stem.split()) != 1:
            raise AsrKdError(f"{path}: an id cannot have blanks; give it one in a list (--wav-list)")
        found[path.stem] = path
    return [_utterance(utt_id, str(path)) for utt_id, path in found.items()]


def read_wav_list(name: str, *, allow_pipes: bool = False) -> list[Utterance]:
    """Utterances of a list, `name` or with "-" stdin: a line is `ID PATH`, as in wav.scp, or a path alone.

    A path alone is an utterance named after the file, as in utterances_of_files. Blank lines are passed over.

    Raises AsrKdError, naming the line, for an id that occurs twice, and for a command unless allow_pipes.
    """
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise AsrKdError(f"{name}: cannot be read as a list of audio files ({error})") from error
    where = "stdin" if name == "-" else name
    lines: dict[str, int] = {}
    utterances = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not (fields := line.split(maxsplit=1)):
            continue
        utt_id, source = fields if len(fields) == 2 else (Path(fields[0]).stem, fields[0])
        source = source.strip()
        if source.endswith("|") and not allow_pipes:
            raise AsrKdError(f"{where}:{number}: is a command, which is not run unless that is allowed (--allow-pipes)")
        if utt_id in lines:
            raise AsrKdError(f"{where}:{number}: the id {utt_id!r} is that of line {lines[utt_id]}")
        lines[utt_id] = number
        utterances.append(_utterance(utt_id, source))
    if not utterances:
        raise AsrKdError(f"{where}: lists no recordings")
    return utterances
