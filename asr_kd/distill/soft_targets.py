"""Soft targets of an ensemble: made from its members, stored or made anew for every batch."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from asr_kd.distill.kept import fewest, kept, sample
from asr_kd.distill.out_of_fold import out_of_fold_posteriors
from asr_kd.distill.specialist_inference import SPECIALISTS, SpecialistEnsemble, check_specialists
from asr_kd.distill.specialists import Specialist
from asr_kd.errors import AsrKdError
from asr_kd.nnet.frames import Frames, front_end
from asr_kd.nnet.inference import answers, logits_of, mean_log_posteriors, mean_posteriors, of_type, posteriors_of
from asr_kd.nnet.net_dir import TrainedNet
from asr_kd.store.feats import FeatsReader
from asr_kd.store.hdf5 import require_same_kind
from asr_kd.store.log_codes import decoded, encoded, ratios
from asr_kd.store.targets import FORMAT, TargetsReader, TargetsRows, read_parts, write_part, write_targets
from asr_kd.store.tensors import as_index, as_tensor
from asr_kd.training.augment import mixed_seed
from asr_kd.training.cross_entropy import SoftBatch
from asr_kd.training.stream import Stream
from asr_kd.world import ALONE, World

_PROGRESS_SECONDS = 10.0
# Of a block that is written, at least.
_BYTES_TOGETHER = 1 << 20


class SoftTargets(Protocol):
    """Whatever can tell a batch of frames its soft targets at one temperature.

    looked_up: tensors of all frames, on the device, in which it looks up those of a batch. is_recordable: see Run.
    """

    temperature: float
    is_recordable: bool
    looked_up: Sequence[torch.Tensor]

    def batch(self, index: torch.Tensor, windows: torch.Tensor) -> SoftBatch:
        """Targets of frames `index` (batch,), whose windows the student is about to see."""
        ...


def joint_log_posteriors(
    members: Sequence[TrainedNet],
    frames: Frames,
    *,
    combination: str,
    temperature: float = 1.0,
    dtype: torch.dtype = torch.float32,
    top_n: int = 1,
    world: World = ALONE,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Log posteriors of nets that answer together, block by block in frame order: (rows, (n, num_pdfs) float32).

    combination: arithmetic or geometric, of equals; or specialists, of a generalist and those that it calls on when
    one of its top_n states is theirs. Of several processes, each has its share of the blocks.
    """
    if combination == SPECIALISTS:
        ensemble = SpecialistEnsemble(members, top_n, dtype)
        return answers(lambda windows: ensemble.log_posteriors(windows, temperature), frames, world=world)
    nets = [member.net for member in members]
    how = {"temperature": temperature, "combination": combination, "dtype": dtype}
    return mean_log_posteriors(nets, frames, **how, world=world)


def joint_posteriors(
    members: Sequence[TrainedNet],
    frames: Frames,
    *,
    combination: str,
    top_n: int = 1,
    **how: Any,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """What joint_log_posteriors, which takes the same, gives the logarithms of; in smaller blocks."""
    how["combination"] = combination
    if combination == SPECIALISTS:
        return ((rows, log_post.exp()) for rows, log_post in joint_log_posteriors(members, frames, top_n=top_n, **how))
    return mean_posteriors([member.net for member in members], frames, **how)


class StoredTargets:
    """Soft targets of all frames, resident on the device: stored_prob, pdf and tail as TargetsReader has them."""

    def __init__(
        self, temperature: float, prob: torch.Tensor, pdf: torch.Tensor | None = None, tail: torch.Tensor | None = None
    ):
        self.temperature, self.is_recordable = temperature, True
        self._stored_prob, self._pdf, self._tail = prob, pdf, tail
        self.looked_up = [each for each in (prob, pdf, tail) if each is not None]
        self._ratios = ratios(prob.device) if prob.dtype == torch.uint8 else None

    @classmethod
    def from_readers(cls, readers: Sequence[TargetsReader], device: torch.device) -> "StoredTargets":
        """Those of one targets.h5 after another; raises AsrKdError where they differ in kind."""
        require_one_kind(readers)

        def joined(name: str) -> torch.Tensor | None:
            arrays = [getattr(reader, name) for reader in readers]
            if arrays[0] is None:
                return None
            tensors = [as_tensor(array).to(device) for array in arrays]
            return tensors[0] if len(tensors) == 1 else torch.cat(tensors)

        prob, pdf, tail = map(joined, ("stored_prob", "pdf", "tail"))
        return cls(readers[0].temperature, prob, pdf, _unless_empty(tail))

    @classmethod
    def from_stream(cls, readers: Sequence[TargetsRows], stream: Stream) -> "StoredTargets":
        """Those of the frames that a stream has on the device; raises AsrKdError where files differ in kind."""
        require_one_kind(readers)
        return cls(readers[0].temperature, *stream.add_targets(readers))

    @classmethod
    def from_members(
        cls,
        members: Sequence[TrainedNet],
        frames: Frames,
        temperature: float,
        combination: str,
        dtype: torch.dtype,
        top_n: int = 1,
        top_k: int | None = None,
        top_k_kl: float | None = None,
        target_pruning: str = "tail",
        target_bits: int = 16,
    ) -> "StoredTargets":
        """Targets that `members` give to all of `frames`: (num_frames, num_pdfs) float16, or top_k a frame.

        Dense ones of thousands of states fill any memory: 2 bytes a frame and state, 10 TB for 1000 h and 14,000.
        """
        if top_k_kl is not None:
            top_k, _ = choose_top_k(members, frames, temperature, combination, dtype, top_n, max_kl=top_k_kl)
        blocks = joint_posteriors(
            members, frames, temperature=temperature, combination=combination, dtype=dtype, top_n=top_n
        )
        num_pdfs, num_frames = members[0].net.architecture.num_pdfs, frames.layout.num_frames
        _require_states(top_k, num_pdfs)
        stored_as = torch.uint8 if target_bits == 8 else torch.float16
        prob = torch.empty((num_frames, top_k or num_pdfs), dtype=stored_as, device=frames.device)
        if top_k is None:
            for rows, found in blocks:
                prob[rows] = found
            return cls(temperature, prob)
        pdf = torch.empty_like(prob, dtype=torch.int16 if num_pdfs <= 1 << 16 else torch.int32)
        tail = torch.zeros(num_frames, dtype=torch.float16, device=frames.device)
        for rows, all_of_them in blocks:
            found = kept(all_of_them, top_k, target_pruning, rows.start)
            prob[rows], pdf[rows] = _of_bits(found.prob, target_bits), found.pdf
            if found.tail is not None:
                tail[rows] = found.tail
        return cls(temperature, prob, pdf, _unless_empty(tail))

    def batch(self, index: torch.Tensor, windows: torch.Tensor) -> SoftBatch:
        """See SoftTargets; the windows are not looked at."""
        prob = self._stored_prob[index]
        if self._pdf is None:
            return SoftBatch(prob)
        tail = None if self._tail is None else self._tail[index]
        prob = prob if self._ratios is None else decoded(prob, tail, self._ratios)
        return SoftBatch(prob, as_index(self._pdf[index]), tail)


class OnlineTargets:
    """Soft targets computed by the members from the very windows that the student sees: nothing stored, any view.

    num_drawn: so many members, drawn anew for every batch, answer in place of all. Cross-entropy is linear in its
    targets: on average the gradient is that of the arithmetic mean of all.
    """

    def __init__(
        self,
        members: Sequence[TrainedNet],
        temperature: float,
        combination: str,
        dtype: torch.dtype,
        top_n: int = 1,
        num_drawn: int | None = None,
    ):
        self.temperature, self.looked_up = temperature, ()
        self._nets = [of_type(member.net, dtype) for member in members]
        self._combination = combination
        self._dtype = dtype
        self._specialists = SpecialistEnsemble(members, top_n, dtype) if combination == SPECIALISTS else None
        self._num_drawn = min(num_drawn or len(members), len(members))
        self.is_recordable = self._num_drawn == len(members) and not self._specialists

    def _answering(self, index: torch.Tensor) -> list[nn.Module]:
        """A function of the batch alone, so that a resumed run draws what an unbroken one would have drawn."""
        if self._num_drawn == len(self._nets):
            return self._nets
        generator = torch.Generator().manual_seed(mixed_seed(self._num_drawn, *index[:4].tolist()))
        return [self._nets[n] for n in torch.randperm(len(self._nets), generator=generator)[: self._num_drawn]]

    @torch.no_grad()
    def batch(self, index: torch.Tensor, windows: torch.Tensor) -> SoftBatch:
        """See SoftTargets; index (batch,) says whose answers these windows get, where members are drawn."""
        if self._specialists:
            return SoftBatch(self._specialists.log_posteriors(windows, self.temperature).exp())
        logits = logits_of(self._answering(index), windows, self._dtype)
        return SoftBatch(posteriors_of(logits, self.temperature, self._combination))


def _of_bits(prob: torch.Tensor, bits: int) -> torch.Tensor:
    return encoded(prob) if bits == 8 else prob


def _unless_empty(tail: torch.Tensor | None) -> torch.Tensor | None:
    """Tails, but none of targets drawn at random, which have no mass there."""
    return tail if tail is not None and tail.any() else None


def require_one_kind(readers: Sequence[TargetsReader | TargetsRows]) -> None:
    """Raise AsrKdError unless all were made at one temperature by one mean, and keep alike of a frame."""
    first = readers[0]
    for reader in readers:
        for key in ("temperature", "combination"):
            if getattr(reader, key) != getattr(first, key):
                raise AsrKdError(f"{reader.path}: has {key} {getattr(reader, key)}, {first.path} {getattr(first, key)}")
        kinds = [(each.stored_prob.shape[1], each.pdf is None, each.stored_prob.dtype) for each in (reader, first)]
        if kinds[0] != kinds[1]:
            raise AsrKdError(f"{reader.path}: keeps more or fewer targets a frame than {first.path}, or bits of them")


def check_members(
    members: Sequence[TrainedNet],
    reader: FeatsReader,
    model_digest: str | None = None,
    *,
    combination: str | None = None,
) -> None:
    """Raise AsrKdError unless all members see the same windows and name the same states, and fit these features.

    model_digest: of the HMM whose states they must name, where something else (alignment, graph) was made by one.
    combination: how they answer; specialists answer beside their generalist only.
    """
    if not members:
        raise AsrKdError("an ensemble needs at least one net")
    first = members[0]
    if combination == SPECIALISTS:
        check_specialists(members)
        members = [first]
    elif any(Specialist.of(member) is not None for member in members):
        raise AsrKdError(f"a specialist answers beside its generalist alone; give both, with combination {SPECIALISTS}")
    if model_digest is not None and first.labels["model_digest"] != model_digest:
        raise AsrKdError("the nets were trained on states of another HMM than the alignment or graph at hand")
    for member in members:
        if member.labels["model_digest"] != first.labels["model_digest"]:
            raise AsrKdError("the members were trained on alignments of different HMMs; their states differ")
        a, b = member.net.architecture, first.net.architecture
        if (a.left_context, a.right_context, a.num_pdfs) != (b.left_context, b.right_context, b.num_pdfs):
            raise AsrKdError("the members differ in context or number of states")
        if member.cmvn.mode != first.cmvn.mode:
            raise AsrKdError("the members differ in cmvn")
        if member.front_end != front_end(reader):
            raise AsrKdError(f"{reader.path}: made by another front end (options, rate, shift) than the nets' training")


def write_soft_targets(
    path: str | Path,
    members: Sequence[TrainedNet],
    reader: FeatsReader,
    frames: Frames,
    *,
    temperature: float,
    combination: str,
    top_k: int | None,
    top_k_kl: float | None = None,
    target_pruning: str = "tail",
    target_bits: int = 16,
    dtype: torch.dtype = torch.float32,
    top_n: int = 1,
    unseen: np.ndarray | None = None,
    world: World = ALONE,
) -> None:
    """Let `members` label every frame and store the result as targets.h5.

    top_k_kl: in place of top_k, as choose_top_k takes it. target_pruning: see kept. target_bits: 16, or 8 of the
    largest; see asr_kd/store/log_codes.py.
    unseen: (num_members, num_utts) bool, from unseen_utts: whose answers count for an utterance; of all where None.
    world: the processes that all call this. Each writes a part into the folder `<path>.parts`, which the first then
    copies into one file, the very file that one process writes.
    """
    num_pdfs = members[0].net.architecture.num_pdfs
    require_same_kind(Path(path), FORMAT)
    if temperature <= 0:
        raise AsrKdError(f"temperature {temperature:g}: must be above 0")
    _require_states(top_k, num_pdfs)
    how = {"temperature": temperature, "combination": combination, "dtype": dtype}
    chosen = {}
    if top_k_kl is not None:
        if unseen is not None:
            raise AsrKdError("top_k_kl asks all members, which out-of-fold targets do not; give top_k in its place")
        top_k, lost = world.first(lambda: choose_top_k(members, frames, **how, top_n=top_n, max_kl=top_k_kl))
        world.log(f"{path}: top_k {top_k}, the smallest that loses at most {top_k_kl:g} nats a frame: {lost:.2g}")
        chosen = {"top_k_kl": top_k_kl, "lost_kl": lost}
    if unseen is None:
        posteriors = joint_posteriors(members, frames, **how, top_n=top_n, world=world)
    else:
        posteriors = out_of_fold_posteriors([member.net for member in members], frames, unseen, **how, world=world)
    name = path if world.size == 1 else f"{path}, this process's part"
    posteriors = with_progress(posteriors, name, len(world.share(range(frames.layout.num_frames))), world.log)
    blocks = pack(posteriors, top_k, target_pruning, target_bits)
    shape = {"num_pdfs": num_pdfs, "top_k": top_k, "bits": target_bits}
    if world.size > 1:
        parts = [Path(f"{path}.parts") / f"{rank}.h5" for rank in range(world.size)]
        if world.is_first:  # what a killed run left must not be taken for what is about to be written
            shutil.rmtree(parts[0].parent, ignore_errors=True)
        world.wait()
        write_part(parts[world.rank], blocks, **shape)
        world.wait()
        if not world.is_first:
            return
        blocks = read_parts(parts)
    write_targets(
        path,
        reader.layout,
        blocks,
        **shape,
        attributes={
            "temperature": temperature,
            "mean": combination,
            "members": [member.digest for member in members],
            "out_of_fold": unseen is not None,
            "content_digest": reader.content_digest,
            "model_digest": members[0].labels["model_digest"],
            **({"target_pruning": target_pruning, "target_bits": target_bits} if top_k else {}),
            **chosen,
        },
    )
    if world.size > 1:
        shutil.rmtree(parts[0].parent)


def _require_states(top_k: int | None, num_pdfs: int) -> None:
    if top_k is not None and not 0 < top_k <= num_pdfs:
        raise AsrKdError(f"top_k {top_k}: must lie between 1 and the number of states, {num_pdfs}")


def with_progress(
    blocks: Iterator[tuple[slice, torch.Tensor]], name: str | Path, num_frames: int, log: Callable[[str], None]
) -> Iterator[tuple[slice, torch.Tensor]]:
    """The same blocks; `log` is told every ten seconds how many of about `num_frames` frames they were."""
    begin = told = time.monotonic()
    done = 0
    for rows, values in blocks:
        yield rows, values
        done += len(values)
        now = time.monotonic()
        if now - told > _PROGRESS_SECONDS and done < num_frames:
            told, speed = now, done / (now - begin)
            left = timedelta(seconds=round((num_frames - done) / speed))
            log(f"{name}: {done:,} of {num_frames:,} frames, {speed:,.0f} frames/s, {left} left")


def choose_top_k(
    members: Sequence[TrainedNet],
    frames: Frames,
    temperature: float,
    combination: str,
    dtype: torch.dtype,
    top_n: int = 1,
    *,
    max_kl: float,
) -> tuple[int, float]:
    """The fewest targets a frame that lose at most max_kl nats in the mean (see fewest), and how many these lose.

    Measured on evenly spaced frames.
    """
    online = OnlineTargets(members, temperature, combination, dtype, top_n)
    return fewest(sample(frames, online.batch), max_kl)


def pack(
    posteriors: Iterator[tuple[slice, torch.Tensor]], top_k: int | None, pruning: str = "tail", bits: int = 16
) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
    """Blocks of posteriors as write_targets takes them: dense, or top_k of each frame and the mass left over.

    posteriors: (rows, (n, num_pdfs) float32), each where the last one ended; as many as a file is written well with
    are packed together.
    """
    waiting: list[dict[str, np.ndarray]] = []
    begin = end = size = 0
    for rows, prob in posteriors:
        begin = begin if waiting else rows.start
        end = rows.stop
        waiting.append(_packed(prob, top_k, pruning, bits, rows.start))
        size += sum(values.nbytes for values in waiting[-1].values())
        if size >= _BYTES_TOGETHER:
            yield slice(begin, end), _joined(waiting)
            waiting, size = [], 0
    if waiting:
        yield slice(begin, end), _joined(waiting)


def _packed(prob: torch.Tensor, top_k: int | None, pruning: str, bits: int, first_frame: int) -> dict[str, np.ndarray]:
    if top_k is None:
        return {"prob": prob.half().cpu().numpy()}
    found = kept(prob, top_k, pruning, first_frame)
    tail = torch.zeros(len(prob)) if found.tail is None else found.tail
    values = {"prob": _of_bits(found.prob, bits), "pdf": found.pdf.int(), "tail": tail}
    return {name: value.cpu().numpy() for name, value in values.items()}


def _joined(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return parts[0] if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
