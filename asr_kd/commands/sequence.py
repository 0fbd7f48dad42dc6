"""`asr-kd smooth-targets`."""

import argparse
from collections.abc import Iterator

import torch

from asr_kd.cli_common import log
from asr_kd.commands.command import command, path
from asr_kd.commands.options import DEVICE
from asr_kd.config import DistillConfig, resolve
from asr_kd.distill.sequence import StateBigram, smoothed, whole_utterances
from asr_kd.distill.soft_targets import pack, with_progress
from asr_kd.errors import AsrKdError
from asr_kd.nnet.device import resolve_device
from asr_kd.runinfo import fingerprint, make
from asr_kd.store.ali import AliReader
from asr_kd.store.log_codes import probabilities
from asr_kd.store.targets import SEQUENCE_KEYS, TargetsRows, write_targets
from asr_kd.store.tensors import as_index, as_tensor
from asr_kd.training.data import digest_of

# Of the other states where top-k targets name them all.
_NO_SHARE = 1e-30


@command(
    "smooth-targets",
    "let the HMM see soft targets in the light of their utterance",
    path("--targets", "targets.h5 made by asr-kd soft-targets or import-targets"),
    path("--ali", "training alignment: tells what follows what, and how long states last"),
    path("--out", "targets.h5 to write"),
    DEVICE,
    config=["sequence_weight", "sequence_acwt"],
)
def smooth_targets(args: argparse.Namespace) -> None:
    """Weigh each frame's soft targets by what an HMM makes of all targets of its utterance.

    Forward-backward over a bigram of states, counted on an alignment, gives the posterior of every state given the
    whole utterance; the new targets are the mean of that and the old ones, weighted by sequence_weight. Students
    of them can be better than the ensemble, on speech that it has not learnt by heart: see docs/sequence_targets.md.
    Of top-k targets as many are kept as there were.
    """
    config, device = resolve(DistillConfig, args.values), resolve_device(args.device)
    if not config.sequence_weight:
        raise AsrKdError("sequence_weight 0: leaves targets as they are; give --sequence-weight, 0.5 for instance")
    targets, ali = TargetsRows(args.targets), AliReader(args.ali)
    if targets.sequence:
        raise AsrKdError(f"{args.targets}: is smoothed already; give the targets that it was made of")
    if ali.model_digest != targets.model_digest or ali.num_pdfs != targets.num_pdfs:
        raise AsrKdError(f"{args.targets}: targets over states of another HMM than {args.ali}")
    if targets.attributes.get("target_pruning") == "random":
        raise AsrKdError(
            f"{args.targets}: was drawn at random, and says nothing of the states not drawn; keep the largest"
        )
    how = {"weight": config.sequence_weight, "acwt": config.sequence_acwt}
    states = fingerprint(layout=ali.layout.digest, pdf=digest_of(ali.pdf))

    def work() -> None:
        bigram, stored = StateBigram.counted(ali).to(device), targets.stored_prob
        top_k, bits = None if targets.pdf is None else stored.shape[1], 8 * stored.dtype.itemsize
        blocks = smoothed(_dense(targets, bigram), targets.layout, bigram, temperature=targets.temperature, **how)
        blocks = with_progress(blocks, args.out, targets.layout.num_frames, log)
        origin = {key: value for key, value in targets.attributes.items() if key not in ("top_k_kl", "lost_kl")}
        attributes = origin | dict(zip(SEQUENCE_KEYS, (*how.values(), states), strict=True))
        write_targets(
            args.out,
            targets.layout,
            pack(blocks, top_k, bits=bits),
            num_pdfs=targets.num_pdfs,
            top_k=top_k,
            bits=bits,
            attributes=attributes,
        )
        log(f"{args.out}: {targets.layout.num_frames:,} frames, {args.out.stat().st_size / 1e6:.1f} MB")

    origin = {"temperature": targets.temperature, "mean": targets.combination, "members": targets.members}
    made_from = {"targets": targets.digest, **origin, "ali": states, "device": device.type}
    make(args.out, work, command=args.command_line, **made_from, **how)


def _dense(targets: TargetsRows, bigram: StateBigram) -> Iterator[tuple[slice, torch.Tensor]]:
    """All states' targets of whole utterances: (rows, (n, num_pdfs) float32).

    What top-k targets left in their tail is divided among the other states as these share the training frames, at the
    targets' temperature.
    """
    offsets, shares = targets.layout.offsets, bigram.prior ** (1 / targets.temperature)
    for utts in whole_utterances(targets.layout, targets.num_pdfs):
        rows = slice(int(offsets[utts.start]), int(offsets[utts.stop]))
        stored, *named = targets.read(rows)
        arrays = (probabilities(stored, named[-1]), *named)
        prob, pdf, tail = (None if a is None else as_tensor(a).to(bigram.prior.device) for a in arrays)
        prob = prob.float()
        if pdf is not None:
            pdf = as_index(pdf)
            others = shares.expand(len(pdf), -1).scatter(1, pdf, 0.0)
            others = others * (tail.float() / others.sum(dim=1).clamp(min=_NO_SHARE))[:, None]
            prob = others.scatter_add(1, pdf, prob)  # foreign targets may name a state again, with no mass
        yield rows, prob
