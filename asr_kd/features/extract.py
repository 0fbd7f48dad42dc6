"""From recordings to feats.h5: in one process or several, in portions that a kill does not undo."""

import itertools
import json
import math
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from asr_kd.corpus.datadir import Utterance
from asr_kd.corpus.processes import end_with_parent
from asr_kd.errors import AsrKdError
from asr_kd.features import inputs
from asr_kd.features.inputs import Recipe
from asr_kd.features.options import FrontEndOptions
from asr_kd.store.atomic import atomic_path
from asr_kd.store.feats import FORMAT_NAME, FeatsReader
from asr_kd.store.feats_writer import join_shards, publish_shard
from asr_kd.store.hdf5 import require_same_kind
from asr_kd.store.kaldi_ark import write_matrices
from asr_kd.store.kaldi_compression import warn_of_clipped
from asr_kd.store.places import place_of_file
from asr_kd.store.table_names import parse_wspecifier
from asr_kd.world import ALONE, World

# Of audio (an hour at 16 kHz), a killed extraction repeats at most this much for each process: seconds of work, about
# as long as a process takes to start ...
SHARD_BYTES = 128 << 20
# ... up to this many shards: a reader looks at each of them when it opens the file.
MAX_SHARDS = 512
FILE_BYTES = 16 << 10  # opening a file takes as long as this much audio
PROGRESS_SECONDS = 10.0
LISTED = 50

Log = Callable[[str], None]


def _silent(_: str) -> None:
    """What is said where nobody listens."""


def _opened(path: Path) -> FeatsReader | None:
    """The file at `path`, if it is there and whole: a damaged one is made anew."""
    try:
        return FeatsReader(path) if path.exists() else None
    except AsrKdError:
        return None


def _is_up_to_date(reader: FeatsReader, utterances: Sequence[Utterance], recipe: Recipe, stamp: str) -> bool:
    """Whether a file holds what would be made: by the stamp of its inputs, or if they only moved, by their contents."""
    attrs = reader.attrs
    if attrs.get("inputs_stamp") == stamp:
        return True
    ids = {utt.utt_id for utt in utterances}
    if (
        not attrs.get("inputs_digest")
        or _difference(reader, recipe)
        or len(ids) != reader.layout.num_utts + len(reader.skipped)
        or not ids.issuperset(reader.layout.utt_ids)
    ):
        return False
    return inputs.contents_digest(utterances, recipe) == attrs["inputs_digest"]


def _difference(reader: FeatsReader, recipe: Recipe) -> str:
    """How the features of a file are made differently, empty if they are not."""
    expected = {"kind": recipe.kind, "dtype": recipe.dtype, "options": recipe.options.to_json()}
    for name, value in expected.items():
        found = reader.attrs[name]
        if found == value:
            continue
        if name != "options" or recipe.kind != reader.attrs["kind"]:
            return f"its {name} is {found}, not {value}"
        theirs, ours = json.loads(found), json.loads(value)
        keys = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
        return ", ".join(f"its {key} is {theirs.get(key)}, not {ours.get(key)}" for key in keys)
    return ""


class _Shards:
    """The portions in which an extraction is made: `paths`, in order, named after what they are made from.

    So one that is there is finished and right, and those that an older feats.h5 still reads are never written over.
    """

    def __init__(self, out: Path, utterances: Sequence[Utterance], recipe: Recipe, nj: int) -> None:
        self._out, self._recipe, self._nj = out, recipe, nj
        stamps = inputs.stamps(utterances, recipe)
        num_bytes = sum(stamp.num_bytes + FILE_BYTES for stamp in stamps)
        # Whatever the number of processes, so that a run with more or fewer of them continues this one.
        count = min(len(utterances), MAX_SHARDS, math.ceil(num_bytes / SHARD_BYTES))
        # Cut by their number, so that a recording that is repaired does not move the others to other shards.
        bounds = np.linspace(0, len(utterances), count + 1).astype(int).tolist()
        spans = [slice(*pair) for pair in itertools.pairwise(bounds)]
        self._parts = [utterances[span] for span in spans]
        self._stamps = [inputs.total(stamp.number for stamp in stamps[span]) for span in spans]
        self.paths = [_folder(out) / f"{stamp[:20]}.h5" for stamp in self._stamps]
        self.stamp = inputs.add(*self._stamps)

    def make(self, log: Log, world: World = ALONE) -> None:
        """Make those that are not there yet, this process its share of them all."""
        jobs, own = [], world.share(list(zip(self.paths, self._parts, self._stamps, strict=True)))
        for path, part, stamp in own:
            reader = _opened(path)
            if reader is None or reader.attrs.get("inputs_stamp") != stamp:
                jobs.append((path, part, self._recipe, stamp))
        if len(jobs) < len(own):
            log(f"{len(own) - len(jobs)} of {len(own)} shards are there from before")
        if jobs:
            self._make_missing(jobs, len(own), log)

    def _make_missing(self, jobs: list[tuple], num_own: int, log: Log) -> None:
        # Only now: torch takes seconds to import, most of the time of a command that finds all features there.
        from asr_kd.features.shard import write_shard

        say = _finished(log, num_own, len(jobs))
        if min(self._nj, len(jobs)) == 1:
            for job in jobs:
                write_shard(*job, log)
                say()
            return
        # Not forked: a child of a process in which torch has started its threads can hang.
        pool = ProcessPoolExecutor(
            min(self._nj, len(jobs)), mp_context=multiprocessing.get_context("spawn"), initializer=end_with_parent
        )
        try:
            running = [pool.submit(write_shard, *job) for job in jobs]
            for job in as_completed(running):
                job.result()
                say()
        except BrokenProcessPool as error:
            raise AsrKdError(
                f"{self._out}: a process was killed (out of memory?); the same command continues"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _finished(log: Log, num_shards: int, num_missing: int) -> Callable[[], None]:
    """What says how many shards are finished, called after each: every few seconds and at the end."""
    done, reported = num_shards - num_missing, time.monotonic()

    def say() -> None:
        nonlocal done, reported
        done += 1
        if num_shards > 1 and (done == num_shards or time.monotonic() - reported > PROGRESS_SECONDS):
            reported = time.monotonic()
            log(f"{done} of {num_shards} shards are finished")

    return say


def _folder(out: Path) -> Path:
    return out.with_name(out.name + ".shards")


def _remove_other_shards(out: Path, keep: Sequence[Path]) -> None:
    """Remove shards that the finished file does not read, and what killed processes left."""
    folder = _folder(out)
    kept = {path.name for path in keep}
    for path in (*folder.glob("*.h5"), *folder.glob(".*.partial")):
        if path.name not in kept:
            path.unlink()
    if not keep:
        _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _list(log: Log, what: str, entries: Sequence[tuple[str, str]]) -> None:
    for utt_id, text in entries[:LISTED]:
        log(f"{what} {utt_id}: {text.removeprefix(f'{utt_id}: ')}")
    if len(entries) > LISTED:
        log(f"{what} {len(entries) - LISTED} more utterances")


def _accept(out: Path, made: Sequence[FeatsReader], max_bad_share: float, log: Log) -> None:
    """List what is odd and what could not be used; raises AsrKdError if that is too much."""
    skipped = [entry for reader in made for entry in reader.skipped]
    total = len(skipped) + sum(reader.layout.num_utts for reader in made)
    _list(log, "kept", [entry for reader in made for entry in reader.noted])
    _list(log, "skipped", skipped)
    if skipped and (len(skipped) > max_bad_share * total or len(skipped) == total):
        what = f"none of {total} utterances could be used"
        if len(skipped) < total:
            what = (
                f"{len(skipped)} of {total} utterances could not be used, more than the share of {max_bad_share:g} "
                "that is allowed (--max-bad-share); the others are kept for the next run"
            )
        utt_id, reason = skipped[0]
        raise AsrKdError(f"{out}: {what}; the first is {utt_id}: {reason.removeprefix(f'{utt_id}: ')}")
    if skipped:
        log(f"{len(skipped)} of {total} utterances are left out, a share of {max_bad_share:g} was allowed")


def _shards_to_extend(out: Path, recipe: Recipe, utterances: Sequence[Utterance]) -> list[Path]:
    """The shards of a file that is to be extended; one that has none becomes the first shard of the new one."""
    reader = FeatsReader(out)
    if difference := _difference(reader, recipe):
        raise AsrKdError(f"{out}: cannot be extended with features made differently: {difference}")
    if known := next((utt.utt_id for utt in utterances if utt.utt_id in reader), None):
        raise AsrKdError(f"{out}: has utterance {known!r} already, from another recording or another place")
    if reader.shards:
        return reader.shards
    shard = _folder(out) / f"{reader.content_digest[:20]}.h5"
    try:
        shard.parent.mkdir(exist_ok=True)
        shard.unlink(missing_ok=True)
        os.link(out, shard)
    except OSError:  # a file system without links
        with atomic_path(shard, is_h5=True) as temporary:
            shutil.copyfile(out, temporary)
    return [shard]


def extract(
    utterances: Sequence[Utterance],
    out: str | Path,
    options: FrontEndOptions,
    *,
    dtype: str = "float32",
    nj: int = 1,
    append: bool = False,
    max_bad_share: float = 0.01,
    resample: bool = False,
    allow_pipes: bool = False,
    accept_truncated: bool = False,
    log: Log = _silent,
    world: World = ALONE,
) -> bool:
    """Make feats.h5 of utterances; False if it is there already, made from the same inputs in the same way.

    options: FbankOptions or MfccOptions; dtype: "float32" or "float16"; nj: processes. The work is done in shards in
    the folder `<out>.shards`, and those that are finished are reused if it was cut off; at the end they are copied into
    one file, but of more than a gibibyte of features, where they stay and belong to the file. append: add the
    utterances to those of a file made with the same options, without copying it, in shards too. Memory does not grow
    with the number of recordings, but for their ids. Utterances that cannot be used are skipped, listed through `log`
    and noted in the file, as are those that are clipped or silent. world: the processes that all call this; each makes
    its share of the shards, in nj processes, and the first joins them.

    Raises AsrKdError if more than max_bad_share of the utterances cannot be used (what was made is kept), or none can,
    if an id occurs twice, if `out` is there and no feats.h5, if the disk is full, or if another process is at the same
    file.
    """
    out = place_of_file(out)
    if not utterances:
        raise AsrKdError(f"{out}: there are no utterances to extract")
    if len({utt.utt_id for utt in utterances}) < len(utterances):
        ids = sorted(utt.utt_id for utt in utterances)
        raise AsrKdError(f"utterance id {next(a for a, b in itertools.pairwise(ids) if a == b)!r} occurs twice")
    if nj < 1:
        raise AsrKdError(f"nj is {nj}, but at least one process is needed")
    recipe = Recipe(options, dtype, resample, allow_pipes, accept_truncated)
    require_same_kind(out, FORMAT_NAME)
    with world.only_writer(out):
        shards = _Shards(out, utterances, recipe, nj)
        world.require_same(shards.stamp, f"{out}: not all processes see the same recordings, at the same paths")

        def is_there() -> bool:
            present = _opened(out)
            there = present is not None and (
                _is_up_to_date(present, utterances, recipe, shards.stamp)
                or (append and set(shards.paths) <= set(present.shards))
            )
            if there:
                _accept(out, [present], max_bad_share, log)
                log(f"{out}: up to date")
            return there

        if world.first(is_there):
            return False
        extends = append and out.exists() and world.is_first
        older = _shards_to_extend(out, recipe, utterances) if extends else []
        shards.make(log, world)
        world.wait()
        if world.is_first:
            _join(out, older, shards.paths, max_bad_share, log)
    return True


def _join(out: Path, older: Sequence[Path], made: Sequence[Path], max_bad_share: float, log: Log) -> None:
    """Put the finished file in its place, and tell of what was made."""
    readers = [FeatsReader(path) for path in made]
    try:
        _accept(out, readers, max_bad_share, log)
    except AsrKdError:
        if not out.exists() and not any(reader.layout.num_utts for reader in readers):
            for path in made:  # nothing that the next run could use; what other runs left it may
                path.unlink()
            _remove_if_empty(_folder(out))
        raise
    _publish(out, older, made, max_bad_share)
    num_frames_made = sum(reader.layout.num_frames for reader in readers)
    num_utts = sum(reader.layout.num_utts for reader in readers)
    log(f"{out}: {num_frames_made} frames of {num_utts} utterances" + (" were added" if older else ""))


def _publish(out: Path, older: Sequence[Path], made: Sequence[Path], max_bad_share: float) -> None:
    """Put the finished file in its place, and remove what it does not need."""
    paths = [*older, *made]
    if len(paths) == 1:
        publish_shard(out, paths[0], max_bad_share=max_bad_share)
        paths = []
    else:
        readers = [FeatsReader(path) for path in paths]
        attrs = [reader.attrs for reader in readers]
        known = all(a.get("inputs_digest") and a.get("inputs_stamp") for a in attrs)
        join_shards(
            out,
            paths,
            inputs_digest=inputs.add(*(a["inputs_digest"] for a in attrs)) if known else "",
            inputs_stamp=inputs.add(*(a["inputs_stamp"] for a in attrs)) if known else "",
            max_bad_share=max_bad_share,
        )
    _remove_other_shards(out, paths)


def extract_to_archive(
    utterances: Sequence[Utterance],
    wspecifier: str,
    options: FrontEndOptions,
    *,
    compression_method: int = 0,
    log: Log = _silent,
    **how: object,
) -> None:
    """Make a Kaldi table of features, `wspecifier` as in Kaldi ("ark:F", "ark,t:F", "ark,scp:F.ark,F.scp").

    They are made as feats.h5 first, beside the archive, so that a run that was cut off continues; `how` is that of
    extract. Raises AsrKdError as extract does.
    """
    destination = parse_wspecifier(wspecifier)
    archive = place_of_file(destination.archive)
    if destination.script:
        place_of_file(destination.script)  # refused now rather than when all is extracted
    made = archive.with_name(f".{archive.name}.feats.h5")
    # A user asked for the table, and has not to know of the file that it is made from.
    extract(utterances, made, options, log=lambda line: log(line.replace(str(made), destination.archive)), **how)
    with FeatsReader(made) as reader:
        matrices = ((utt_id, reader[utt_id]) for utt_id in reader.layout.utt_ids)
        write_matrices(wspecifier, warn_of_clipped(matrices, compression_method, log), compression_method)
    made.unlink()
    shutil.rmtree(_folder(made), ignore_errors=True)
    log(f"{wspecifier}: written")
