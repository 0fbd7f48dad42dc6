"""Utterances of audio files that no data directory describes: named on a command line, or listed."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from asr_kd.corpus.datadir import Recording, Utterance
from asr_kd.errors import AsrKdError


def _utterance(utt_id: str, source: str) -> Utterance:
    return Utterance(utt_id, utt_id, Recording(utt_id, source))


def _id_of(path: Path) -> str:
    return "_".join(path.stem.split())


def utterances_of_files(paths: Iterable[str | Path]) -> list[Utterance]:
    """An utterance a file, its own speaker, in the order given; its id is the file's name without its last suffix.

    Blanks in a name become _ in the id. Raises AsrKdError if two files would have one id.
    """
    found: dict[str, Path] = {}
    for path in map(Path, paths):
        utt_id = _id_of(path)
        if utt_id in found:
            raise AsrKdError(f"{path} has the id {utt_id!r} of {found[utt_id]}; give each one of its own (--wav-list)")
        found[utt_id] = path
    return [_utterance(utt_id, str(path)) for utt_id, path in found.items()]


def read_wav_list(name: str, *, allow_pipes: bool = False) -> list[Utterance]:
    """Utterances of a list, `name` or with "-" stdin: a line is `ID PATH`, as in wav.scp, or a path alone.

    A path alone is an utterance named after the file, as in utterances_of_files. A line that as a whole is the name of
    a file is a path alone, whatever blanks it holds. Blank lines are passed over.

    Raises AsrKdError, naming the line, for an id that occurs twice, and for a command unless allow_pipes.
    """
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise AsrKdError(f"{name}: cannot be read as a list of audio files ({error})") from error
    where = "stdin" if name == "-" else name
    known: dict[str, tuple[int, str]] = {}
    utterances = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not (source := line.strip()):
            continue
        utt_id, *rest = source.split(maxsplit=1)
        if rest and not os.path.isfile(source):  # which takes a name that is too long for a file, too
            source = rest[0]
        else:
            utt_id = _id_of(Path(source))
        if source.endswith("|") and not allow_pipes:
            raise AsrKdError(f"{where}:{number}: is a command, which is not run unless that is allowed (--allow-pipes)")
        if utt_id in known:
            other, of_other = known[utt_id]
            raise AsrKdError(
                f"{where}:{number}: {source} has the id {utt_id!r} of {of_other} (line {other}); "
                "give each an id of its own, in lines `ID PATH`"
            )
        known[utt_id] = (number, source)
        utterances.append(_utterance(utt_id, source))
    if not utterances:
        raise AsrKdError(f"{where}: lists no recordings")
    return utterances
