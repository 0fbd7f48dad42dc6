"""One portion of an extraction: recordings in, features computed in batches, an HDF5 file out."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from asr_kd.corpus.datadir import Utterance
from asr_kd.errors import AsrKdError
from asr_kd.features.audio import read_samples
from asr_kd.features.fbank import compute_fbanks
from asr_kd.features.inputs import ContentDigest, Recipe, whole_file
from asr_kd.features.mfcc import compute_mfccs
from asr_kd.features.quality import remark_on
from asr_kd.features.window import num_frames, require_a_frame
from asr_kd.store.feats_writer import FeatsWriter

# Frames that are computed together.
BATCH_FRAMES = 4096
KEPT_BYTES = 31 << 20  # glibc's limit is 32 MiB; the block is never touched
PROGRESS_SECONDS = 10.0


@contextmanager
def _one_thread() -> Iterator[None]:
    """One torch thread: processes share the cores, and sums do not depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    # The C library gives back to the system what is freed, and pays for each page that it takes again, a quarter of
    # all time; glibc stops that for blocks up to the largest one that was freed so far.
    torch.empty(KEPT_BYTES, dtype=torch.uint8)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _read(utt: Utterance, recipe: Recipe, content: bytes | None) -> np.ndarray:
    """Samples of an utterance that fill a frame."""
    samples = read_samples(
        utt,
        recipe.sample_rate,
        resample=recipe.resample,
        allow_pipes=recipe.allow_pipes,
        accept_truncated=recipe.accept_truncated,
        content=content if content is not None and content.startswith(b"RIFF") else None,
    )
    try:
        require_a_frame(len(samples), recipe.options)
    except AsrKdError as error:
        raise AsrKdError(f"{utt.utt_id}: {utt.recording.source}: {error}") from error
    return samples


class _Shard:
    """Recordings in, batches computed, what cannot be used or is odd noted in the file."""

    def __init__(self, writer: FeatsWriter, recipe: Recipe) -> None:
        self.contents = ContentDigest(recipe)
        self._writer = writer
        self._recipe = recipe
        self._compute = compute_mfccs if recipe.kind == "mfcc" else compute_fbanks
        self._batch: list[tuple[Utterance, np.ndarray]] = []
        self._num_frames = 0

    def add(self, utt: Utterance) -> None:
        """Read an utterance, and compute the batch before it if that is full."""
        content = whole_file(utt)
        self.contents.add(utt, content)
        try:
            samples = _read(utt, self._recipe, content)
        except AsrKdError as error:
            self._writer.skip(utt.utt_id, str(error))
            return
        count = num_frames(len(samples), self._recipe.options)
        if self._batch and self._num_frames + count > BATCH_FRAMES:
            self.flush()
        self._batch.append((utt, samples))
        self._num_frames += count

    def flush(self) -> None:
        """Compute and write what was read."""
        feats_of_all = self._compute([samples for _, samples in self._batch], self._recipe.options)
        for (utt, samples), feats in zip(self._batch, feats_of_all, strict=True):
            if remark := remark_on(samples):
                self._writer.note(utt.utt_id, remark)
            try:
                self._writer.append(utt.utt_id, utt.spk_id, feats)
            except AsrKdError as error:
                self._writer.skip(utt.utt_id, str(error))
        self._batch, self._num_frames = [], 0


def write_shard(
    path: Path,
    utterances: Sequence[Utterance],
    recipe: Recipe,
    stamp: str,
    log: Callable[[str], None] = lambda _: None,
) -> None:
    """Make the features of `utterances`, all that can be used, stamped by `stamp`; tells `log` how far it is."""
    started = reported = time.monotonic()
    writer = FeatsWriter(
        path,
        kind=recipe.kind,
        options=recipe.options,
        sample_rate=recipe.sample_rate,
        dtype=recipe.dtype,
        inputs_stamp=stamp,
    )
    with _one_thread(), writer:
        shard = _Shard(writer, recipe)
        for done, utt in enumerate(utterances):
            if time.monotonic() - reported > PROGRESS_SECONDS:
                reported = time.monotonic()
                log(f"{done} of {len(utterances)} utterances, {done / (reported - started):.0f} per second")
            shard.add(utt)
        shard.flush()
        writer.inputs_digest = shard.contents.hexdigest()
