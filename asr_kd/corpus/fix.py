"""Mend a data directory: what Kaldi's utils/fix_data_dir.sh does, and saying what was dropped and why.

Files are sorted, and brought to the utterances, recordings and speakers that all of them have; spk2utt is made from
utt2spk. Beyond Kaldi: byte order marks and CR LF go, lines that break a rule on their own are dropped, and so are
recordings that are not there, so that what comes out is valid. Unlike Kaldi's, whatever prevents that is a failure
before anything is changed.
"""

import shutil
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

from asr_kd.corpus import tables
from asr_kd.corpus.consistency import cross_problems
from asr_kd.corpus.tables import BY_RECORDING, BY_SPEAKER, BY_UTTERANCE, DataDir, Problem
from asr_kd.errors import AsrKdError
from asr_kd.store.atomic import write_text

# Measured from the audio or the features, so better lost than a reason to lose utterances.
DERIVED = ("utt2dur", "utt2num_frames", "utt2warp", "reco2dur", "spk2warp")


def fix_data_dir(path: str | Path) -> list[str]:
    """Mend a data directory in place; returns what was mended or dropped, in `file:line: what` form.

    The former contents of each file that changes are kept in the folder `.backup` in it. A killed run is continued
    by the next one, with the same result. A directory that is valid stays as it is.

    Raises AsrKdError, and changes nothing, if utt2spk or wav.scp is missing, if no utterance would remain, and for
    ids of utterances that do not start with their speaker's.
    """
    path = Path(path)
    data, problems = tables.load(path)
    for name in ("utt2spk", "wav.scp"):
        if name not in data.tables:
            raise AsrKdError(f"{path / name}: this file of the data directory is missing")
    problems = [problem for problem in problems if problem.path.name != "spk2utt"]
    absent = {key for key, value in data.rows("wav.scp").items() if tables.find_source(path, value) is None}
    reasons = {utt_id: reason for utt_id in data.rows("utt2spk") if (reason := _reason_to_drop(data, utt_id, absent))}
    kept = [utt_id for utt_id in data.rows("utt2spk") if utt_id not in reasons]
    if not kept:
        dropped = [data.tables["utt2spk"].problem(*item) for item in reasons.items()]
        first = "; ".join(map(str, [*problems[:1], *dropped[:1]]))  # the first line may merely be out of order
        raise AsrKdError(f"{path}: no utterance would remain, nothing was changed; first, {first}")
    mended = DataDir(path, tables.select(data, kept))
    for name in [name for name in DERIVED if name in mended.tables and _is_partial(mended, name)]:
        del mended.tables[name]
        problems.append(Problem(path / name, None, "does not have every id and was removed, make it anew"))
    for problem in cross_problems(mended, need_text=False):
        raise AsrKdError(f"{problem} (this has to be mended by hand, nothing was changed)")
    problems += [data.tables["utt2spk"].problem(utt_id, reason) for utt_id, reason in reasons.items()]
    problems += sorted(_left_over(data, mended, reasons), key=str)
    problems += _write_changed(path, data, mended)
    return [str(problem) for problem in problems]


def _reason_to_drop(data: DataDir, utt_id: str, absent: Container[str]) -> str | None:
    """Why an utterance of utt2spk has to go, None if it can stay; `absent` are recordings whose files are not there."""
    for name in BY_UTTERANCE[1:]:
        if name in data.tables and name not in DERIVED and utt_id not in data.rows(name):
            return f"{utt_id} was dropped, it is not in {name}"
    spk_id = data.rows("utt2spk")[utt_id]
    for name in BY_SPEAKER[1:]:
        if name in data.tables and name not in DERIVED and spk_id not in data.rows(name):
            return f"{utt_id} was dropped, its speaker {spk_id} is not in {name}"
    rec_id = data.rows("segments")[utt_id].split()[0] if "segments" in data.tables else utt_id
    for name in BY_RECORDING:
        if name in data.tables and name not in DERIVED and rec_id not in data.rows(name):
            return f"{utt_id} was dropped, its recording {rec_id} is not in {name}"
    if rec_id in absent:
        return f"{utt_id} was dropped, there is no recording {data.rows('wav.scp')[rec_id]}"
    return None


def _is_partial(data: DataDir, name: str) -> bool:
    reference = {"utt2dur": "utt2spk", "utt2num_frames": "utt2spk", "utt2warp": "utt2spk", "spk2warp": "spk2utt"}
    return data.rows(name).keys() != data.rows(reference.get(name, "wav.scp")).keys()


def _left_over(data: DataDir, mended: DataDir, dropped: Iterable[str]) -> Iterator[Problem]:
    """Lines that go though no utterance of utt2spk goes with them."""
    told = set(dropped)
    told |= {spk_id for utt_id, spk_id in data.rows("utt2spk").items() if utt_id in told}
    told |= {rec_id for utt_id, rec_id in data.recording_of().items() if utt_id in told}
    for name, table in mended.tables.items():
        for key in data.rows(name).keys() - table.rows.keys() - told if name != "spk2utt" else ():
            yield data.tables[name].problem(key, f"{key} was dropped, no utterance has it")


def _write_changed(path: Path, data: DataDir, mended: DataDir) -> list[Problem]:
    """Write the files that change, after copying what they were; tells where the copies are."""
    changed = []
    for name in tables.FILES:
        before = (path / name).read_bytes() if (path / name).exists() else None
        after = tables.to_text(mended.rows(name)).encode() if name in mended.tables else None
        if before != after:
            changed.append(name)
    try:
        for name in changed:
            if (path / name).exists():
                (path / ".backup").mkdir(exist_ok=True)
                shutil.copy2(path / name, path / ".backup" / name)
    except OSError as error:
        raise AsrKdError(f"{path / '.backup'}: could not be written ({error.strerror}), nothing was changed") from error
    for name in changed:
        if name in mended.tables:
            write_text(path / name, tables.to_text(mended.rows(name)))
        else:
            (path / name).unlink()
    return [Problem(path / name, None, "was changed, what it was is kept in .backup") for name in changed]
