"""From a data directory's recordings to feats.h5: in one process, or in shards by several, continuing after a kill."""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from asr_kd.corpus.datadir import Utterance
from asr_kd.errors import AsrKdError
from asr_kd.features.audio import read_samples
from asr_kd.features.fbank import compute_fbank
from asr_kd.features.mfcc import compute_mfcc
from asr_kd.features.options import FrontEndOptions, MfccOptions
from asr_kd.store.feats import FeatsReader, FeatsWriter, join_shards

# Raised when the values that this code makes change, so that files of an older version are made anew.
FRONT_END_VERSION = 1
# A killed extraction repeats at most this much for each process.
UTTS_PER_SHARD = 2000
MIN_UTTS_PER_PROCESS = 1000
MAX_SHARDS = 512
PROGRESS_SECONDS = 10.0

Log = Callable[[str], None]
Skipped = Sequence[tuple[str, str]]  # (utt_id, reason)


def _silent(_: object) -> None:
    """Say nothing (a worker), refuse nothing."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How recordings become stored features: the front end, and the type of a stored value."""

    options: FrontEndOptions
    dtype: str = "float32"

    @property
    def kind(self) -> str:
        """fbank or mfcc."""
        return "mfcc" if isinstance(self.options, MfccOptions) else "fbank"

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return int(self.options.sample_frequency)

    def compute(self, utterance: Utterance) -> np.ndarray:
        """Features (num_frames, feat_dim) of an utterance; raises AsrKdError naming it and its file."""
        samples = read_samples(utterance, self.sample_rate)
        try:
            return (compute_mfcc if self.kind == "mfcc" else compute_fbank)(samples, self.options)
        except AsrKdError as error:
            raise AsrKdError(f"{utterance.utt_id}: {error}") from error


def inputs_digest(utterances: Sequence[Utterance], recipe: Recipe) -> str:
    """SHA-256 over what the features are made from: options, ids, speakers, and each recording's path, size and mtime.

    Reading every recording to see whether it changed would cost as much as the features.
    """
    header = [FRONT_END_VERSION, recipe.kind, recipe.dtype, recipe.options.to_json()]
    digest = hashlib.sha256(json.dumps(header).encode())
    for utt in utterances:
        try:
            stat = os.stat(utt.recording.source)
            state = [stat.st_size, stat.st_mtime_ns]
        except OSError:
            state = []  # its absence is reported when it is read
        part = (*dataclasses.astuple(utt.recording), utt.start_s, utt.end_s)
        digest.update(json.dumps([utt.utt_id, utt.spk_id, *part, *state]).encode())
    return digest.hexdigest()


def _made_from(path: Path, digest: str) -> FeatsReader | None:
    """The file at `path` if it is whole and was made from these inputs."""
    if not path.exists():
        return None
    try:
        reader = FeatsReader(path)
    except AsrKdError:  # damaged, or a shard of it is gone: make it anew
        return None
    return reader if reader.attrs["inputs_digest"] == digest else None


@contextmanager
def _one_thread():
    """One torch thread: processes share the cores, and sums do not depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write_file(
    path: Path,
    utterances: Sequence[Utterance],
    recipe: Recipe,
    digest: str,
    log: Log = _silent,
    accept: Callable[[Skipped], None] = _silent,
) -> None:
    """Make one file, whole or a shard; what cannot be used is noted in it, and `accept` may refuse it by raising."""
    started = reported = time.monotonic()
    writer = FeatsWriter(
        path,
        kind=recipe.kind,
        options=recipe.options,
        sample_rate=recipe.sample_rate,
        dtype=recipe.dtype,
        inputs_digest=digest,
    )
    with _one_thread(), writer:
        for done, utt in enumerate(utterances):
            if time.monotonic() - reported > PROGRESS_SECONDS:
                reported = time.monotonic()
                log(f"{done} of {len(utterances)} utterances, {done / (reported - started):.0f} per second")
            try:
                writer.append(utt.utt_id, utt.spk_id, recipe.compute(utt))
            except AsrKdError as error:
                writer.skip(utt.utt_id, str(error))
        accept(writer.skipped)


def _write_shards(out: Path, utterances: Sequence[Utterance], recipe: Recipe, nj: int, log: Log) -> list[Path]:
    """Make the shards that are not there yet, and return all in order.

    A shard is named after what it is made from: one that is there is finished and right, and those that an older
    feats.h5 still reads are never written over.
    """
    folder = out.with_name(out.name + ".shards")
    num_shards = min(len(utterances), MAX_SHARDS, max(nj, math.ceil(len(utterances) / UTTS_PER_SHARD)))
    bounds = np.linspace(0, len(utterances), num_shards + 1).astype(int)
    parts = [utterances[a:b] for a, b in itertools.pairwise(bounds)]
    digests = [inputs_digest(part, recipe) for part in parts]
    paths = [folder / f"{digest[:20]}.h5" for digest in digests]
    missing = [i for i in range(num_shards) if _made_from(paths[i], digests[i]) is None]
    if len(missing) < num_shards:
        log(f"{num_shards - len(missing)} of {num_shards} shards are there from before")
    if not missing:
        return paths
    # Not forked: a child of a process in which torch has started its threads can hang.
    pool = ProcessPoolExecutor(min(nj, len(missing)), mp_context=multiprocessing.get_context("spawn"))
    try:
        jobs = [pool.submit(_write_file, paths[i], parts[i], recipe, digests[i]) for i in missing]
        for finished, job in enumerate(as_completed(jobs), start=1):
            job.result()
            log(f"shard {finished + num_shards - len(missing)} of {num_shards} is finished")
    except BrokenProcessPool as error:
        raise AsrKdError(f"{out}: a process was killed (out of memory?); the same command continues") from error
    finally:
        pool.shutdown(cancel_futures=True)
    return paths


def _remove_other_shards(out: Path, keep: Sequence[Path]) -> None:
    """Remove shards that the finished file does not read, and what killed processes left."""
    folder = out.with_name(out.name + ".shards")
    kept = {path.name for path in keep}
    for path in (*folder.glob("*.h5"), *folder.glob(".*.partial")):
        if path.name not in kept:
            path.unlink()
    if not keep and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _check_skipped(out: Path, skipped: Skipped, total: int, max_bad_share: float, log: Log) -> None:
    """List the utterances that could not be used; raises AsrKdError if they are too many."""
    for utt_id, reason in skipped:
        log(f"skipped {utt_id}: {reason}")
    if skipped and (len(skipped) > max_bad_share * total or len(skipped) == total):
        raise AsrKdError(
            f"{out}: {len(skipped)} of {total} utterances could not be used, more than the share of {max_bad_share:g} "
            f"that is allowed; the first is {skipped[0][0]}: {skipped[0][1]}"
        )


def extract(
    utterances: Sequence[Utterance],
    out: str | Path,
    options: FrontEndOptions,
    *,
    dtype: str = "float32",
    nj: int = 1,
    max_bad_share: float = 0.01,
    log: Log = _silent,
) -> bool:
    """Make feats.h5 of a data directory's utterances; False if it is there already, made from the same inputs.

    options: FbankOptions or MfccOptions; dtype: "float32" or "float16"; nj: processes; with more than one the frames
    lie in shards in the folder `<out>.shards`, which belongs to the file, and finished shards are reused if the work
    was cut off. Utterances that cannot be used are skipped, listed through `log` and noted in the file.

    Raises AsrKdError if more than max_bad_share of the utterances cannot be used, or none can.
    """
    out = Path(out)
    if not utterances:
        raise AsrKdError(f"{out}: there are no utterances to extract")
    if nj < 1:
        raise AsrKdError(f"nj is {nj}, but at least one process is needed")
    recipe = Recipe(options, dtype)
    digest = inputs_digest(utterances, recipe)
    accept = functools.partial(_check_skipped, out, total=len(utterances), max_bad_share=max_bad_share, log=log)
    if (reader := _made_from(out, digest)) is not None:
        accept(reader.skipped)
        log(f"{out}: up to date")
        return False
    # Below some hundred utterances a process spends more on its start than on its share of the work.
    nj = min(nj, math.ceil(len(utterances) / MIN_UTTS_PER_PROCESS))
    shards = _write_shards(out, utterances, recipe, nj, log) if nj > 1 else []
    if shards:
        accept([entry for shard in shards for entry in FeatsReader(shard).skipped])
        join_shards(out, shards, inputs_digest=digest)
    else:
        _write_file(out, utterances, recipe, digest, log, accept)
    _remove_other_shards(out, shards)
    log(f"{out}: {FeatsReader(out).layout.num_frames} frames of {len(utterances)} utterances")
    return True
