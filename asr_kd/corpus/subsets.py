"""Parts of a data directory and several made one: Kaldi's subset_data_dir.sh, split_data.sh and combine_data.sh.

All files of the directory that Kaldi knows are carried over, those of features included. Nothing is dropped in
silence: what Kaldi's combine_data.sh leaves to fix_data_dir.sh (an id in two directories) is a failure here.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from asr_kd.corpus import tables
from asr_kd.corpus.consistency import cross_problems
from asr_kd.corpus.datadir import original_id, to_utterances
from asr_kd.corpus.tables import BY_UTTERANCE, FILES, DataDir, Table
from asr_kd.errors import AsrKdError
from asr_kd.store.atomic import atomic_dir


def write_selection(data: DataDir, utt_ids: Sequence[str], out: Path) -> None:
    """Write the data directory of these utterances; recordings' paths are written anew for where it lies.

    Raises AsrKdError if there is no utterance, or `out` is the directory itself.
    """
    if not utt_ids:
        raise AsrKdError(f"{data.path}: no utterance was chosen for {out}")
    if out.resolve() == data.path.resolve():
        raise AsrKdError(f"{out}: a data directory cannot be written over itself, name another")
    tables.write_tables(out, _rebased(data, tables.select(data, list(utt_ids)), out))


def spread(utt_ids: Sequence[str], num: int) -> list[str]:
    """`num` of a list at equal distances, as Kaldi's subset_scp.pl takes them; all if there are no more."""
    return [utt_ids[i * len(utt_ids) // num] for i in range(num)] if num < len(utt_ids) else list(utt_ids)


def per_speaker(data: DataDir, num: int) -> list[str]:
    """At most `num` utterances of each speaker, spread over what there is."""
    return [utt_id for utt_ids in data.utterances_of().values() for utt_id in spread(utt_ids, num)]


def whole_speakers(data: DataDir, num: int, rng: np.random.Generator) -> list[str]:
    """All utterances of speakers taken at random until there are at least `num`: Kaldi's --speakers."""
    speakers = data.utterances_of()
    chosen: list[str] = []
    for index in rng.permutation(len(speakers)):
        if len(chosen) >= num:
            break
        chosen += list(speakers.values())[index]
    return chosen


def listed(data: DataDir, path: Path, by_speaker: bool) -> list[str]:
    """The utterances whose id, or whose speaker's, starts a line of the file.

    Raises AsrKdError, with the line, for an id that the data directory does not have.
    """
    known = data.utterances_of() if by_speaker else {utt_id: [utt_id] for utt_id in data.rows("utt2spk")}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AsrKdError(f"{path}: could not be read as a list of ids ({error})") from error
    chosen = []
    for number, line in enumerate(lines, start=1):
        key = (line.split() or [""])[0]
        if key not in known:
            raise AsrKdError(f"{path}:{number}: {key or 'nothing'} is not in {data.path / 'utt2spk'}")
        chosen += known[key]
    return sorted(set(chosen))


def folder_of_parts(data: DataDir, num: int, by_utterance: bool) -> Path:
    """Where `split` writes."""
    return data.path / (f"split{num}utt" if by_utterance else f"split{num}")


def split(data: DataDir, num: int, by_utterance: bool) -> Path:
    """Write `num` parts of about as many utterances each: DIR/split<num>/<i>, i from 1, or DIR/split<num>utt/<i>.

    A speaker stays whole unless `by_utterance`; a perturbed copy goes with its original, that of a speaker too.
    Returns the folder of the parts, which replaces one from before when it is complete.

    Raises AsrKdError if there are fewer speakers, or utterances, than parts.
    """
    groups: dict[str, list[str]] = {}
    for utt in to_utterances(data):
        groups.setdefault(utt.uniq_id if by_utterance else original_id(utt, utt.spk_id), []).append(utt.utt_id)
    if not 1 <= num <= len(groups):
        kind = "originals among the utterances" if by_utterance else "speakers"
        raise AsrKdError(f"{data.path}: {num} parts cannot be made, there are {len(groups)} {kind}")
    out = folder_of_parts(data, num, by_utterance)
    parts = list(_even_parts([groups[key] for key in sorted(groups)], num))
    with atomic_dir(out) as work:
        for i, utt_ids in enumerate(parts, start=1):
            tables.write_tables(work / str(i), _rebased(data, tables.select(data, utt_ids), out / str(i)))
    return out


def _even_parts(groups: Sequence[Sequence[str]], num: int) -> Iterator[list[str]]:
    """Runs of whole groups, none empty, whose sums come as near to equal as their order allows."""
    total, done, start = sum(map(len, groups)), 0, 0
    for part in range(1, num + 1):
        stop = start + 1
        done += len(groups[start])
        while len(groups) - stop > num - part and done + len(groups[stop]) / 2 <= total * part / num:
            done += len(groups[stop])
            stop += 1
        if part == num:
            stop = len(groups)
        yield [utt_id for group in groups[start:stop] for utt_id in group]
        start = stop


def combine(sources: Sequence[DataDir], out: Path) -> None:
    """Write one data directory of several. A file is there if all of them have it; utt2uniq if any has.

    Several may have the same recording or speaker, if they say the same of it. reco2file_and_channel is needed in all
    if one has it, since without it a channel would be lost; so is text, and segments are made where a recording is
    whole.

    Raises AsrKdError for an utterance in two directories, and for a recording or speaker of two meanings.
    """
    if out.resolve() in {data.path.resolve() for data in sources}:
        raise AsrKdError(f"{out}: a data directory cannot be written over itself, name another")
    sources = [_completed(data, sources) for data in sources]
    merged: dict[str, Table] = {}
    for name in FILES:
        if name != "spk2utt" and all(name in data.tables for data in sources):
            merged[name] = _merge(name, sources, out)
    result = DataDir(out, merged)
    merged["spk2utt"] = tables.spk2utt(result)
    for problem in cross_problems(result, need_text=False):
        raise AsrKdError(str(problem))
    tables.write_tables(out, merged)


def _completed(data: DataDir, sources: Sequence[DataDir]) -> DataDir:
    """With what follows from its other files and another source has."""
    added: dict[str, Table] = {}
    utt_ids = data.rows("utt2spk")
    if "utt2uniq" not in data.tables and any("utt2uniq" in other.tables for other in sources):
        added["utt2uniq"] = Table(data.path / "utt2uniq", {utt_id: utt_id for utt_id in utt_ids})
    if "segments" not in data.tables and any("segments" in other.tables for other in sources):
        added["segments"] = Table(data.path / "segments", {utt_id: f"{utt_id} 0 -1" for utt_id in utt_ids})
    for name in ("text", "reco2file_and_channel"):
        other = next((other.path for other in sources if name in other.tables), None)
        if other is not None and name not in data.tables:
            raise AsrKdError(f"{data.path / name}: is missing, but {other} has it")
    return DataDir(data.path, data.tables | added)


def _merge(name: str, sources: Sequence[DataDir], out: Path) -> Table:
    merged = Table(out / name)
    origin: dict[str, Table] = {}
    for data in sources:
        table = data.tables[name]
        for key, value in _rebased(data, {name: table}, out)[name].rows.items():
            if key in origin and (name in BY_UTTERANCE or merged.rows[key] != value):
                first = origin[key].problem(key, "")
                where = f"{first.path}:{first.line}" if first.line else str(first.path)
                what = "is there too" if name in BY_UTTERANCE else f"stands for “{merged.rows[key]}” there"
                raise AsrKdError(str(table.problem(key, f"{key} {what}: {where}")))
            merged.rows[key], origin[key] = value, table
    return merged


def _rebased(data: DataDir, selected: Mapping[str, Table], out: Path) -> dict[str, Table]:
    """The tables with wav.scp's paths as they have to be written in `out`."""
    if "wav.scp" not in selected:
        return dict(selected)
    wav_scp = selected["wav.scp"]
    rows = {
        rec_id: tables.portable_source(out, str(tables.find_source(data.path, value)))
        for rec_id, value in wav_scp.rows.items()
    }
    return {**selected, "wav.scp": Table(wav_scp.path, rows, wav_scp.lines)}
