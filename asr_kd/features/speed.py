"""Speed-perturbed copies of a data directory: Kaldi's perturb_data_dir_speed.sh, with recordings in place of pipes.

Kaldi writes sox commands into wav.scp. Here the copies' recordings are resampled once and written as 16-bit wav, so
that features can be made of them without running commands.
"""

import functools
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import soundfile

from asr_kd.corpus import tables
from asr_kd.corpus.consistency import cross_problems
from asr_kd.corpus.datadir import Recording, to_utterances
from asr_kd.corpus.line_rules import parse_segment
from asr_kd.corpus.processes import end_with_parent
from asr_kd.corpus.tables import DataDir, Table
from asr_kd.errors import AsrKdError
from asr_kd.features.audio import open_recording, pick_channel, resample_audio
from asr_kd.store.atomic import atomic_path, write_json

_STAMP = "speed.json"
_PROGRESS_SECONDS = 10.0
# What a copy has too; features, their statistics and warps are of the original.
_UTTERANCE_FILES = ("utt2spk", "text", "utt2lang")
_SECONDS = ("utt2dur", "reco2dur")

Task = tuple[Recording, float, Path]


def perturb_speed(
    data: DataDir,
    out: str | Path,
    factors: Sequence[float],
    *,
    nj: int = 1,
    allow_pipes: bool = False,
    max_bad_share: float = 0.0,
    log: Callable[[str], None],
) -> None:
    """Write the data directory of `data`'s utterances at each speed; a factor of 1 stands for them as they are.

    Copies at 0.9 last 1/0.9 times as long (pitch changes too, as with sox's `speed`); their utterances, speakers and
    recordings are named sp0.9-…, and utt2uniq tells their originals. The recordings are written to OUT/wav by `nj`
    processes; those that a killed run has finished are kept, if nothing that they are made from has changed.
    Recordings that cannot be read are listed and left out up to a share of all.

    Raises AsrKdError for factors that make no sense, an `out` that holds other recordings, and too many bad ones.
    """
    out = Path(out)
    if not factors or len(set(factors)) < len(factors) or not all(0.1 <= factor <= 10 for factor in factors):
        raise AsrKdError(f"speed factors {factors} were given, but different ones between 0.1 and 10 are needed")
    if out.resolve() == data.path.resolve():
        raise AsrKdError(f"{out}: a data directory cannot be written over itself, name another")
    recordings = {utt.recording.rec_id: utt.recording for utt in to_utterances(data)}
    _open_out(out, {"factors": list(factors), "recordings": _digest(recordings.values())})
    changed = [factor for factor in factors if factor != 1]
    tasks = [
        (recording, factor, _target(out, prefix_of(factor) + rec_id))
        for factor in changed
        for rec_id, recording in recordings.items()
    ]
    bad = _write_all(tasks, nj, allow_pipes, log)
    for rec_id, reason in bad.items():
        log(f"left out {rec_id}: {reason}")
    if len(bad) > max_bad_share * len(recordings) or len(bad) == len(recordings):
        rec_id, reason = next(iter(bad.items()))
        raise AsrKdError(
            f"{data.path}: {len(bad)} of {len(recordings)} recordings could not be read, more than the share of "
            f"{max_bad_share:g} that is allowed; the first is {rec_id}: {reason}"
        )
    recording_of = data.recording_of()
    usable = DataDir(data.path, tables.select(data, [u for u in data.rows("utt2spk") if recording_of[u] not in bad]))
    _write_copies(usable, out, factors)


def prefix_of(factor: float) -> str:
    """What ids of copies at a speed start with, as in Kaldi; nothing for the originals."""
    return "" if factor == 1 else f"sp{factor:g}-"


def _write_copies(data: DataDir, out: Path, factors: Sequence[float]) -> None:
    merged: dict[str, Table] = {}
    for factor in factors:
        for name, rows in _copied_rows(data, out, factor).items():
            merged.setdefault(name, Table(out / name)).rows.update(rows)
    result = DataDir(out, merged)
    merged["spk2utt"] = tables.spk2utt(result)
    for problem in cross_problems(result, need_text=False):
        raise AsrKdError(str(problem))
    tables.write_tables(out, merged)


def _copied_rows(data: DataDir, out: Path, factor: float) -> dict[str, dict[str, str]]:
    """The files of the copies at one speed."""
    prefix = prefix_of(factor)
    rows = {name: data.rows(name) for name in _UTTERANCE_FILES if name in data.tables}
    rows["utt2spk"] = {utt_id: prefix + spk_id for utt_id, spk_id in rows["utt2spk"].items()}
    rows["utt2uniq"] = data.rows("utt2uniq") or {utt_id: utt_id for utt_id in rows["utt2spk"]}
    for name in ("spk2gender", "reco2file_and_channel"):
        if name in data.tables:
            rows[name] = data.rows(name)
    for name in _SECONDS:
        if name in data.tables:
            rows[name] = {key: f"{float(value) / factor:.6g}" for key, value in data.rows(name).items()}
    if "segments" in data.tables:
        rows["segments"] = {}
        for utt_id, value in data.rows("segments").items():
            rec_id, start_s, end_s = parse_segment(utt_id, value)
            end = -1 if end_s is None else end_s / factor
            rows["segments"][utt_id] = f"{prefix}{rec_id} {start_s / factor} {end}"
    rows["wav.scp"] = {}
    for rec_id, value in data.rows("wav.scp").items():
        source = str(tables.find_source(data.path, value)) if factor == 1 else str(_target(out, prefix + rec_id))
        rows["wav.scp"][rec_id] = tables.portable_source(out, source)
    return {name: {prefix + key: value for key, value in table.items()} for name, table in rows.items()}


def _target(out: Path, rec_id: str) -> Path:
    return out / "wav" / f"{rec_id.replace('/', '%2F')}.wav"  # Kaldi's ids may hold slashes


def _digest(recordings: Iterable[Recording]) -> str:
    """SHA-256 over the recordings' ids, paths, sizes and times."""
    digest = hashlib.sha256()
    for recording in recordings:
        state = []
        if not recording.is_pipe:
            stat = os.stat(recording.source)
            state = [os.path.abspath(recording.source), stat.st_size, stat.st_mtime_ns]
        digest.update(json.dumps([recording.rec_id, recording.source, recording.channel, *state]).encode())
    return digest.hexdigest()


def _open_out(out: Path, made_from: dict) -> None:
    """Keep the recordings that a killed run has written, if they are made from the same; else start anew."""
    try:
        same = json.loads((out / _STAMP).read_text(encoding="utf-8")) == made_from
    except FileNotFoundError:
        same = False
        if out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
            raise AsrKdError(f"{out}: holds something else than perturbed speech, name a new folder") from None
    except (OSError, ValueError):
        same = False
    if not same:
        try:
            (out / "wav.scp").unlink(missing_ok=True)
            if (out / "wav").exists():
                shutil.rmtree(out / "wav")
        except OSError as error:
            raise AsrKdError(f"{out}: could not be written ({error.strerror})") from error
        write_json(out / _STAMP, made_from)


def _write_all(tasks: Sequence[Task], nj: int, allow_pipes: bool, log: Callable[[str], None]) -> dict[str, str]:
    """Write what is not there yet; the recordings that could not be read, with the reason."""
    waiting = [task for task in tasks if not task[2].exists()]
    if len(waiting) < len(tasks):
        log(f"{len(tasks) - len(waiting)} of {len(tasks)} recordings are there from before")
    work = functools.partial(_write_one, allow_pipes=allow_pipes)
    if nj <= 1:
        return _collect(waiting, map(work, waiting), log)
    # Not forked: a child of a process in which libraries have started their threads can hang.
    pool = ProcessPoolExecutor(nj, mp_context=multiprocessing.get_context("spawn"), initializer=end_with_parent)
    try:
        return _collect(waiting, pool.map(work, waiting, chunksize=8), log)
    except BrokenProcessPool as error:
        raise AsrKdError("a process was killed (out of memory?); the same command continues") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _collect(tasks: Sequence[Task], results: Iterable[str | None], log: Callable[[str], None]) -> dict[str, str]:
    bad: dict[str, str] = {}
    reported = time.monotonic()
    for done, (task, reason) in enumerate(zip(tasks, results, strict=True), start=1):
        if reason is not None:
            bad[task[0].rec_id] = reason
        if time.monotonic() - reported > _PROGRESS_SECONDS or done == len(tasks):
            reported = time.monotonic()
            log(f"{done} of {len(tasks)} recordings")
    return bad


def _write_one(task: Task, allow_pipes: bool) -> str | None:
    """Write one recording at another speed, 16-bit; the reason if its original cannot be read."""
    recording, factor, target = task
    try:
        with open_recording(recording, allow_pipes) as audio:
            if audio.num_samples == 0:
                return f"{recording.source}: holds no samples"
            samples, rate = (
                audio.read(0, audio.num_samples, pick_channel(audio, recording.channel, recording.may_be_separated)),
                audio.sample_rate,
            )
    except AsrKdError as error:
        return str(error)
    perturbed = resample_audio(samples, rate * factor, rate)
    pcm = np.clip(np.rint(perturbed), -32768, 32767).astype(np.int16)
    content = io.BytesIO()  # not straight to the disk: libsndfile does not say that it is full
    soundfile.write(content, pcm, rate, format="WAV", subtype="PCM_16")
    with atomic_path(target) as temporary:
        temporary.write_bytes(content.getvalue())
    return None
