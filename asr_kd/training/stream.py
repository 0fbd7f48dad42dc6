"""A training set of which a part is on the device: a window that moves on while batches are drawn from all of it.

The utterances lie in blocks, runs of them that are read in one go. In every pass the blocks are shuffled and dealt to
groups. A group fills one of the SLOTS that the device has room for, and stays there for WINDOW periods, in each of
which as large a part of its frames is trained on; meanwhile the next group is read into the slot that was left. So
every frame to train on comes once a pass, a batch is drawn from some dozens of places of the corpus, and of the order
only a period has to be in memory. A pass begins with one group, so that nobody waits for a window to be read, and ends
with a whole window, of which all that is left is trained on. What comes when is a function of seed, pass and the sizes
of slots and blocks: a resumed run draws what an unbroken one would.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asr_kd.cli_common import log
from asr_kd.errors import AsrKdError
from asr_kd.nnet.frames import Cmvn, as_held, front_end, joined_layout, windows_of
from asr_kd.runinfo import fingerprint
from asr_kd.store.ali import FAILED, AliRows
from asr_kd.store.feats import FeatsReader
from asr_kd.store.hdf5 import Layout, blocks_of_utterances, runs_of
from asr_kd.store.hdf5_guard import identity_of
from asr_kd.store.targets import TargetsRows
from asr_kd.store.tensors import as_tensor
from asr_kd.training.augment import mixed_seed
from asr_kd.training.data import LabelledSet, digest_of, feats_readers, load_set, require_labels

SLOTS = 8
WINDOW = SLOTS - 1
# More blocks mix the corpus better and waste less of a slot, but are read in smaller pieces.
BLOCKS_IN_SLOT = 16
# Threads that read, check and normalise, if a group has so many frames for each: with fewer they wait for each other's
# Python. What trains on a CPU wants its cores for itself.
READERS = {"cpu": 1, "cuda": 4}
READER_FRAMES = 1 << 14
# Labels that are looked at in one go before training.
_LABELS = 1 << 20

# (utterances, their states (n,)) → the states that may be looked at, and which frames to train on, each (n,).
Select = Callable[[slice, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass
class Part:
    """A file of the set, whose first utterance has number `first_utt` there, with what belongs to its frames.

    normalised: what reads features of utterances, from Cmvn.normaliser. ali: their states, None where they have none.
    """

    reader: FeatsReader
    normalised: Callable[[slice], np.ndarray]
    first_utt: int
    ali: AliRows | None = None
    targets: TargetsRows | None = None

    @property
    def utts(self) -> range:
        """Their numbers in the set."""
        return range(self.first_utt, self.first_utt + self.reader.layout.num_utts)

    @property
    def files(self) -> list[Path]:
        """All files that it is read from."""
        return [self.reader.path, *self.reader.shards, *(each.path for each in (self.ali, self.targets) if each)]

    def labels(self, utts: slice) -> np.ndarray:
        """The states of utterances, by their numbers in this file."""
        if self.ali:
            return self.ali.read(utts)
        return np.full(int(np.diff(self.reader.layout.offsets[[utts.start, utts.stop]])[0]), FAILED)


class StreamedFrames:
    """The frames that are on the device now, by their rows in the buffer, as asr_kd.nnet.frames.Frames has all.

    layout: that of the whole set.
    """

    def __init__(self, layout: Layout, buffer: torch.Tensor, left_context: int, right_context: int, dtype: torch.dtype):
        """buffer: (num_rows, feat_dim), as_held; dtype: of windows."""
        self.layout, self.buffer, self._dtype = layout, buffer, dtype
        self.window, self.feat_dim, self.device = left_context + 1 + right_context, buffer.shape[1], buffer.device
        self._context = torch.arange(-left_context, right_context + 1, device=self.device)
        self._offsets: dict[int, torch.Tensor] = {}
        self._all_offsets = torch.zeros(1, dtype=torch.int64, device=self.device)

    def place(self, offsets: torch.Tensor) -> None:
        """Tell where the utterances of a slot begin and end, in rows of the buffer."""
        self._offsets[int(offsets[0])] = offsets
        self._all_offsets = torch.cat([each for _, each in sorted(self._offsets.items())]).to(self.device)

    def windows(self, index: torch.Tensor) -> torch.Tensor:
        """The windows of rows `index` (batch,) int64: (batch, window * feat_dim), a new tensor."""
        return windows_of(self.buffer, self._all_offsets, self._context, index, self._dtype)


# The utterances of a block, as the runs of neighbours that they are made of.
Runs = list[tuple[Part, slice]]


@dataclass(frozen=True)
class Group:
    """Blocks that come to the device together, and whose frames `index` takes, in an order that `seed` gives.

    number: over all passes of a run. It says in which slot the group lies, in the same one after a kill: rows are the
    same then, which a loss may look at.
    """

    index: "StreamedIndex"
    seed: int
    number: int
    blocks: list[Runs] = field(compare=False, repr=False)


@dataclass(eq=False)
class _Slot:
    """Rows of the buffer from `first` on; what they hold, or will once `rows`, in the order of training, is there."""

    first: int
    group: Group | None = None
    rows: Future | None = None
    left: Any = None  # CUDA event: what was computed from the last group is done
    is_placed: bool = False


class Stream:
    """What a streamed set is read from, and the slots that it is read into: one after another, by some threads."""

    def __init__(
        self,
        parts: Sequence[Part],
        layout: Layout,
        resident_frames: int,
        left_context: int,
        right_context: int,
        device: torch.device,
        dtype: torch.dtype,
        held_as: torch.dtype | None = None,
    ):
        """layout: that of all parts, one after another; resident_frames: of all slots together; held_as: see Frames."""
        self._parts, self._layout, self.device = parts, layout, device
        slot, longest = resident_frames // SLOTS, int(layout.lengths.max())
        self.block_frames = max(slot // BLOCKS_IN_SLOT, 1)
        largest_block = max(self.block_frames, longest)
        self.group_frames = max(slot - largest_block, largest_block)
        capacity = self.group_frames + largest_block  # see deal
        if SLOTS * capacity > resident_frames:
            log(
                f"warning: resident_frames {resident_frames:,}: the longest utterance has {longest:,} frames, and "
                f"{SLOTS * capacity:,} are held for its sake"
            )
        buffer = torch.empty((SLOTS * capacity, parts[0].reader.feat_dim), dtype=held_as or dtype, device=device)
        self.frames = StreamedFrames(layout, buffer, left_context, right_context, dtype)
        self.pdf = torch.full((SLOTS * capacity,), FAILED, dtype=torch.int32, device=device)
        self._targets: list[torch.Tensor] = []
        self._slots = [_Slot(number * capacity) for number in range(SLOTS)]
        self._thread = ThreadPoolExecutor(1, "stream")
        self._readers = ThreadPoolExecutor(READERS[device.type], "reader")
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._identities = {path: identity_of(path) for part in parts for path in part.files}

    def add_targets(self, targets: Sequence[TargetsRows]) -> list[torch.Tensor | None]:
        """Stream soft targets too, those of each part; returns buffers of stored_prob, pdf and tail, of their types."""
        buffers: list[torch.Tensor | None] = []
        for name in ("stored_prob", "pdf", "tail"):
            dataset = getattr(targets[0], name)
            if dataset is None or (name == "tail" and not any(each.has_tail for each in targets)):
                buffers.append(None)
                continue
            dtype = as_tensor(np.empty(0, dataset.dtype)).dtype
            buffers.append(torch.empty((len(self.pdf), *dataset.shape[1:]), dtype=dtype, device=self.device))
        for part, each in zip(self._parts, targets, strict=True):
            part.targets = each
            self._identities[each.path] = identity_of(each.path)
        self._targets = buffers
        return buffers

    def all_labels(self) -> Iterator[tuple[slice, np.ndarray]]:
        """The states of all utterances, some at a time: (utterances, (n,))."""
        for part in self._parts:
            for utts in blocks_of_utterances(part.reader.layout.offsets, _LABELS):
                yield slice(part.first_utt + utts.start, part.first_utt + utts.stop), part.labels(utts)

    def blocks(self, utts: np.ndarray) -> list[np.ndarray]:
        """Utterances, by their numbers, in the blocks that are read in one go."""
        offsets = np.concatenate([[0], np.cumsum(self._layout.lengths[utts])])
        return [utts[block] for block in blocks_of_utterances(offsets, self.block_frames)]

    def hold(self, groups: Sequence[Group], then: Sequence[Group]) -> list[torch.Tensor]:
        """The rows of up to SLOTS groups that follow each other, in random order, once they are on the device.

        Into the slots that are free those that come `then` are read meanwhile. Raises AsrKdError for what cannot be
        read.
        """
        for group in [*groups, *then][:SLOTS]:
            slot = self._slots[group.number % SLOTS]
            if slot.group != group:
                self._begin(slot, group)
        return [self._rows(self._slots[group.number % SLOTS]) for group in groups]

    def stop(self) -> None:
        """Let the thread stop at the next block, and forget what is on the device."""
        for slot in self._slots:
            slot.group = None

    def _begin(self, slot: _Slot, group: Group) -> None:
        """Have a slot filled; where it is being filled with another group, that ends at its next block."""
        slot.group, slot.is_placed = group, False
        if self._copies:
            slot.left = torch.cuda.current_stream(self.device).record_event()
        slot.rows = self._thread.submit(self._fill, slot, group)

    def _rows(self, slot: _Slot) -> torch.Tensor:
        rows, offsets = slot.rows.result()
        if not slot.is_placed:
            self.frames.place(offsets)
            slot.is_placed = True
        return rows

    def _fill(self, slot: _Slot, group: Group) -> tuple[torch.Tensor, torch.Tensor]:
        """In the thread: read a group into a slot; its rows to train on, in random order, and its offsets."""
        self._require_unchanged()
        if self._copies:
            self._copies.wait_event(slot.left)
        runs = [run for block in group.blocks for run in block]
        lengths = [np.diff(part.reader.layout.offsets[utts.start : utts.stop + 1]) for part, utts in runs]
        begins = slot.first + np.cumsum([0, *(of_run.sum() for of_run in lengths[:-1])])
        num_readers = min(READERS[self.device.type], 1 + int(begins[-1] - slot.first) // READER_FRAMES)
        shares = [slice(first, len(runs), num_readers) for first in range(num_readers)]
        jobs = [self._readers.submit(self._read, slot, group, runs[share], begins[share].tolist()) for share in shares]
        wait(jobs)  # for all of them, also when one fails: what comes into the slot next is not to be written over
        found: list[Any] = [None] * len(runs)
        for share, job in zip(shares, jobs, strict=True):
            found[share] = job.result()
        with self._copying():
            generator = torch.Generator().manual_seed(mixed_seed(group.seed, group.number))
            rows = torch.from_numpy(np.concatenate(found))
            rows = rows[torch.randperm(len(rows), generator=generator)].to(self.device)
        return rows, torch.from_numpy(slot.first + np.cumsum(np.concatenate([[0], *lengths])))

    def _read(self, slot: _Slot, group: Group, runs: Runs, begins: Sequence[int]) -> list[np.ndarray]:
        """In a reader: bring runs to the rows of the buffer from `begins` on; of each those to train on, (n,) int32."""
        found = []
        with self._copying():
            for (part, utts), begin in zip(runs, begins, strict=True):
                if slot.group is not group:
                    raise CancelledError
                of_set = slice(part.first_utt + utts.start, part.first_utt + utts.stop)
                pdf, is_wanted = group.index.select(of_set, part.labels(utts))
                feats = as_held(torch.from_numpy(part.normalised(utts)), self.frames.buffer.dtype)
                columns = [(self.frames.buffer, feats), (self.pdf, pdf)]
                if part.targets:
                    offsets = part.reader.layout.offsets
                    values = part.targets.read(slice(int(offsets[utts.start]), int(offsets[utts.stop])))
                    columns += zip(self._targets, values, strict=True)
                for buffer, values in columns:
                    if buffer is not None:
                        self._copy(buffer[begin : begin + len(values)], values)
                found.append((begin + np.flatnonzero(is_wanted)).astype(np.int32))
        return found

    def _require_unchanged(self) -> None:
        for path, identity in self._identities.items():
            try:
                is_same = identity_of(path) == identity
            except OSError:
                is_same = False
            if not is_same:
                raise AsrKdError(
                    f"{path}: was changed or removed while it was trained on; when it is back as it was, the same "
                    "command goes on from the last checkpoint"
                )

    def runs(self, block: np.ndarray) -> Runs:
        """The utterances of a block that follow each other in one file, by their numbers there."""
        runs = []
        for part in self._parts:
            here = block[np.searchsorted(block, part.utts.start) : np.searchsorted(block, part.utts.stop)]
            runs += ((part, run) for run in runs_of(here - part.first_utt))
        return runs

    @contextlib.contextmanager
    def _copying(self) -> Iterator[None]:
        """Copies to a GPU go by a stream of their own, and are waited for."""
        if self._copies is None:
            yield
            return
        with torch.cuda.device(self.device), torch.cuda.stream(self._copies):
            yield
            self._copies.synchronize()

    def _copy(self, to: torch.Tensor, values: np.ndarray | torch.Tensor) -> None:
        source = as_tensor(values) if isinstance(values, np.ndarray) else values
        if self._copies:  # pinned memory is asked for once: PyTorch keeps it
            source = source.to(to.dtype).pin_memory()
        to.copy_(source, non_blocking=True)


class StreamedIndex:
    """The frames to train on of a streamed set, in place of their numbers."""

    def __init__(self, stream: Stream, select: Select, key: dict[str, Any]):
        """select: what is taken of utterances. key: what it depends on beside the labels, for the digest."""
        self.stream, self.select, self._key = stream, select, key
        counts, self.has_unlabelled = [], False
        for utts, stored in stream.all_labels():
            pdf, is_wanted = select(utts, stored)
            offsets = stream.frames.layout.offsets[utts.start : utts.stop + 1]
            counts.append(np.diff(np.concatenate([[0], np.cumsum(is_wanted)])[offsets - offsets[0]]))
            self.has_unlabelled |= bool((pdf[is_wanted] < 0).any())
        self._set_counts(np.concatenate(counts))

    def _set_counts(self, counts: np.ndarray) -> None:
        """counts: (num_utts,) frames to train on of each utterance."""
        self._counts, self._num_frames = counts, int(counts.sum())
        blocks, lengths = self.stream.blocks(np.flatnonzero(counts)), self.stream.frames.layout.lengths
        # Of each block: frames, and those of them to train on.
        self._sizes, self._takes = (np.array([of_utt[block].sum() for block in blocks]) for of_utt in (lengths, counts))
        self._blocks = [self.stream.runs(block) for block in blocks]

    def __len__(self) -> int:
        return self._num_frames

    @property
    def digest(self) -> str:
        """Of what decides which frames are trained on, and in which order but for the seed."""
        sizes = {"group_frames": self.stream.group_frames, "block_frames": self.stream.block_frames}
        return fingerprint(counts=digest_of(self._counts), **sizes, **self._key)

    @property
    def utt_ids(self) -> list[str]:
        """Utterances of which there is a frame to train on."""
        utt_ids = self.stream.frames.layout.utt_ids
        return [utt_ids[utt] for utt in np.flatnonzero(self._counts)]

    def without(self, utts: np.ndarray) -> "StreamedIndex":
        """All but the frames of utterances (num_utts,) bool."""
        rest = object.__new__(StreamedIndex)
        rest.__dict__ |= self.__dict__
        rest._set_counts(np.where(utts, 0, self._counts))
        return rest

    def order(self, seed: int, number_of_pass: int, batch_size: int) -> "StreamedOrder":
        """The rows of a pass, in the order of training."""
        return StreamedOrder(self, seed, number_of_pass, batch_size)

    def groups(self, seed: int, number_of_pass: int) -> tuple[list[Group], np.ndarray]:
        """The groups of a pass, and how many frames to train on each has, (num_groups,)."""
        order = np.random.default_rng(mixed_seed(seed, number_of_pass)).permutation(len(self._blocks))
        dealt = [order[group] for group in deal(self._sizes[order], self.stream.group_frames)]
        blocks, first = [[self._blocks[block] for block in group] for group in dealt], number_of_pass * len(dealt)
        groups = [Group(self, seed, number, each) for number, each in enumerate(blocks, first)]
        return groups, np.array([self._takes[group].sum() for group in dealt])

    def sample(self, at_most: int) -> torch.Tensor:
        """Rows (n,) int32 of at most so many frames, or a few more: those of evenly spaced utterances, read for it."""
        utts, longest = np.flatnonzero(self._counts), self.stream.frames.layout.lengths.max()
        number = min(len(utts), at_most / self._counts[utts].mean(), self.stream.group_frames / longest)
        spread = np.linspace(0, len(utts) - 1, max(1, int(number))).round().astype(int)
        group = Group(self, -1, 0, [self.stream.runs(utts[spread])])  # no run has this seed
        return self.stream.hold([group], [])[0]


def deal(sizes: np.ndarray, group_frames: int) -> list[np.ndarray]:
    """Blocks of these sizes, in their order, in groups of about equal ones: the numbers of the blocks of each.

    A block is in the group that its middle falls into, so that a group is larger than group_frames by one block at
    most. Where that left a group without blocks, the next takes its place: their number depends on the total alone.

    sizes: each at most group_frames.
    """
    total = int(sizes.sum())
    num_groups = -(-total // group_frames)
    group = (2 * np.cumsum(sizes) - sizes) * num_groups // (2 * total)
    place = np.arange(len(sizes))
    group = np.minimum.accumulate(group - place) + place  # none is passed over,
    group = np.minimum(group, place)
    group = np.maximum(group, num_groups - len(sizes) + place)  # and there is a block for each of the last
    return np.split(place, np.flatnonzero(np.diff(group)) + 1)


class StreamedOrder:
    """The rows of a pass, as a tensor of them would be sliced; each slice is on the device until the next is asked for.

    Slices are to follow each other, or start anywhere after a kill.
    """

    def __init__(self, index: StreamedIndex, seed: int, number_of_pass: int, batch_size: int):
        """Raises AsrKdError where the groups are so small that a batch would need more of them than there are slots."""
        self._index, self._seed, self._number_of_pass = index, seed, number_of_pass
        self._groups, takes = index.groups(seed, number_of_pass)
        self._ends = np.cumsum(sizes_of_periods(takes))
        self._periods: dict[int, torch.Tensor] = {}
        begins = np.arange(0, len(index), batch_size)
        first, last = self._periods_of(begins, np.minimum(begins + batch_size, len(index)))
        if (last - np.maximum(first - WINDOW, -1)).max() > SLOTS:
            raise AsrKdError(
                f"resident_frames: one part in {SLOTS} of so many holds as few as {takes.min()} frames to train on, "
                f"too few for batches of {batch_size}; set more, or a smaller batch_size"
            )

    def _periods_of(self, begin: Any, end: Any) -> tuple[Any, Any]:
        """The periods in which the frames from place `begin` to `end` begin and end."""
        return np.searchsorted(self._ends, begin, side="right"), np.searchsorted(self._ends, end - 1, side="right")

    def __getitem__(self, places: slice) -> torch.Tensor:
        """Rows (n,) int32 of the places of a batch."""
        end = min(places.stop, int(self._ends[-1]))
        first, last = map(int, self._periods_of(places.start, end))
        oldest = max(first - WINDOW + 1, 0)
        held = self._index.stream.hold(self._groups[oldest : last + 1], self._after(last))
        self._periods = {period: rows for period, rows in self._periods.items() if period >= first}
        parts = []
        for period in range(first, last + 1):
            if period not in self._periods:
                seen = slice(max(period - WINDOW + 1, 0) - oldest, period + 1 - oldest)
                self._periods[period] = self._rows(period, held[seen])
            begin = int(self._ends[period]) - len(self._periods[period])
            parts.append(self._periods[period][max(places.start - begin, 0) : end - begin])
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _rows(self, period: int, groups: Sequence[torch.Tensor]) -> torch.Tensor:
        """What a period takes of the rows of the groups that it sees, of which the last is new, in random order."""
        parts = []
        for age, rows in zip(range(len(groups) - 1, -1, -1), groups, strict=True):
            stays = min(WINDOW, len(self._groups) - (period - age))
            parts.append(rows[len(rows) * age // stays : len(rows) * (age + 1) // stays])
        rows = torch.cat(parts)
        generator = torch.Generator().manual_seed(mixed_seed(self._seed, self._number_of_pass, period))
        return rows[torch.randperm(len(rows), generator=generator).to(rows.device)]

    def _after(self, group: int) -> list[Group]:
        """The groups that come after one, into the next pass."""
        rest = self._groups[group + 1 : group + SLOTS]
        return rest if len(rest) == SLOTS - 1 else rest + self._next_pass

    @cached_property
    def _next_pass(self) -> list[Group]:
        return self._index.groups(self._seed, self._number_of_pass + 1)[0][:SLOTS]


def sizes_of_periods(takes: np.ndarray) -> np.ndarray:
    """How many frames each period takes, given those of the groups: both (num_groups,)."""
    sizes = np.zeros_like(takes)
    stays = np.minimum(WINDOW, np.arange(len(takes), 0, -1))  # periods in which a group is there
    for age in range(min(WINDOW, len(takes))):
        parts = takes * (age + 1) // stays - takes * age // stays
        sizes[age:] += parts[: len(takes) - age]
    return sizes


@dataclass
class StreamedSet(LabelledSet):
    """A set of which `stream` brings a part to the device: frames and pdf are those of the buffer's rows."""

    stream: Stream


def load_or_stream(
    feats: str | Path,
    ali: str | Path,
    *,
    resident_frames: int,
    cmvn: str,
    left_context: int,
    right_context: int,
    device: torch.device,
    dtype: torch.dtype,
    held_as: torch.dtype | None = None,
    extra_feats: str | Path | None = None,
) -> LabelledSet:
    """As load_set, but a training set of more than resident_frames frames is streamed; 0 streams none."""
    shape = {"left_context": left_context, "right_context": right_context, "device": device, "dtype": dtype}
    shape["held_as"] = held_as
    readers = feats_readers(feats, extra_feats) if resident_frames else []
    if sum(reader.layout.num_frames for reader in readers) <= resident_frames:
        return load_set(feats, ali, cmvn=cmvn, extra_feats=extra_feats, **shape)
    alignment, reader = AliRows(ali), readers[0]
    require_labels(alignment, reader, alignment.num_labelled)
    normalisation = Cmvn.from_training_set(cmvn, reader)
    first_utts = np.cumsum([0, *(each.layout.num_utts for each in readers)]).tolist()
    parts = [
        Part(each, normalisation.normaliser(each), first) for each, first in zip(readers, first_utts[:-1], strict=True)
    ]
    parts[0].ali = alignment
    stream = Stream(parts, joined_layout(readers), resident_frames, **shape)
    return StreamedSet(
        frames=stream.frames,
        pdf=stream.pdf,
        num_pdfs=alignment.num_pdfs,
        cmvn=normalisation,
        front_end=front_end(reader),
        labels={"num_pdfs": alignment.num_pdfs, "model_digest": alignment.model_digest},
        content_digest=" ".join(each.content_digest for each in readers),
        ali_digest=alignment.digest,
        num_own_utts=reader.layout.num_utts,
        stream=stream,
    )
