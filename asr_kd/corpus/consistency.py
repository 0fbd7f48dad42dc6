"""Whether the files of a data directory fit each other: Kaldi's utils/validate_data_dir.sh, and what it leaves open.

Beyond Kaldi: an utterance's id has to start with its speaker's, recordings have to be there, and each failure is one
(some of that script's exits are 0). Less than Kaldi: features are not required, they are in HDF5 here.
"""

from collections.abc import Collection, Iterator

from asr_kd.corpus.line_rules import split_blanks
from asr_kd.corpus.tables import (
    BY_RECORDING,
    BY_SPEAKER,
    BY_UTTERANCE,
    DataDir,
    Problem,
    Table,
    find_source,
    is_pipe,
)


def cross_problems(data: DataDir, need_text: bool) -> Iterator[Problem]:
    """What is wrong between the files, the first cause first; nothing that needs a file that is not there."""
    missing = [name for name in ("utt2spk", "spk2utt", "wav.scp", "text") if name not in data.tables]
    if not need_text and "text" in missing:
        missing.remove("text")
    yield from (Problem(data.path / name, None, "this file of the data directory is missing") for name in missing)
    if missing:
        return
    utt2spk, wav_scp = data.tables["utt2spk"], data.tables["wav.scp"]
    for name in BY_UTTERANCE[1:]:
        if name in data.tables:
            yield from _different_ids(data.tables[name], data.tables[name].rows, utt2spk)
    if "segments" in data.tables:
        used = {rec_id: utt_id for utt_id, rec_id in reversed(data.recording_of().items())}
        yield from _unknown_recordings(data.tables["segments"], used, wav_scp)
    else:
        yield from _different_ids(wav_scp, wav_scp.rows, utt2spk)
    for name in BY_RECORDING[1:]:
        if name in data.tables:
            yield from _different_ids(data.tables[name], data.tables[name].rows, wav_scp)
    yield from _speaker_problems(utt2spk)
    yield from _spk2utt_problems(data)
    for name in BY_SPEAKER[1:]:
        if name in data.tables:
            yield from _different_ids(data.tables[name], data.tables[name].rows, data.tables["spk2utt"])


def _different_ids(table: Table, ids: Collection[str], reference: Table) -> Iterator[Problem]:
    for key in ids:
        if key not in reference.rows:
            yield table.problem(key, f"{key} is not in {reference.path}")
    for key in reference.rows:
        if key not in ids:
            yield reference.problem(key, f"{key} is not in {table.path}")


def _unknown_recordings(segments: Table, used: dict[str, str], wav_scp: Table) -> Iterator[Problem]:
    for rec_id, utt_id in sorted(used.items()):
        if rec_id not in wav_scp.rows:
            yield segments.problem(utt_id, f"the recording {rec_id} of {utt_id} is not in {wav_scp.path}")
    for rec_id in wav_scp.rows:
        if rec_id not in used:
            yield wav_scp.problem(rec_id, f"no utterance of {segments.path} is in the recording {rec_id}")


def _speaker_problems(utt2spk: Table) -> Iterator[Problem]:
    previous = ""
    for utt_id, spk_id in sorted(utt2spk.rows.items()):
        if not utt_id.startswith(spk_id):
            yield utt2spk.problem(utt_id, f"the id {utt_id} does not start with that of its speaker, {spk_id}")
        if spk_id < previous:
            yield utt2spk.problem(
                utt_id,
                f"speaker {spk_id} comes after {previous}: in C-locale order of the utterances "
                "the speakers are not in order, end each speaker's id in the utterances' with the same character",
            )
        previous = max(previous, spk_id)


def _spk2utt_problems(data: DataDir) -> Iterator[Problem]:
    expected, table = data.utterances_of(), data.tables["spk2utt"]
    for spk_id, value in table.rows.items():
        if split_blanks(value) != expected.get(spk_id):
            what = f"the utterances of speaker {spk_id} are not those of utt2spk, in C-locale order"
            yield table.problem(spk_id, what)
    missing = sorted(expected.keys() - table.rows.keys())
    if missing:
        yield Problem(table.path, len(table.rows), f"speaker {missing[0]} of utt2spk is missing")


def source_problems(data: DataDir, allow_pipes: bool) -> Iterator[Problem]:
    """Recordings that are not there, and commands unless they are allowed."""
    wav_scp = data.tables["wav.scp"]
    for rec_id, value in wav_scp.rows.items():
        if is_pipe(value):
            if not allow_pipes:
                what = f"commands (pipes) are not run unless that is allowed, and {rec_id} is one: {value}"
                yield wav_scp.problem(rec_id, what)
        elif find_source(data.path, value) is None:
            what = f"there is no recording {value}"
            if value.rpartition(":")[2].isdigit():
                what += " (files inside an archive are not read, write them out as files)"
            yield wav_scp.problem(rec_id, what)
