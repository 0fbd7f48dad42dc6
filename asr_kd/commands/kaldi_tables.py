"""`asr-kd export-kaldi`: what Kaldi's tools read."""

import argparse
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from asr_kd.cli_common import log, seed_number
from asr_kd.commands.command import command, option, optional, path
from asr_kd.commands.options import COUNTS, DEVICE, resolve_compute
from asr_kd.errors import AsrKdError
from asr_kd.runinfo import file_digest, make
from asr_kd.store.kaldi_compression import COMPRESSION_METHODS
from asr_kd.store.table_names import parse_wspecifier

# What each kind is made from: one of these sets of options.
INPUTS = {
    "loglik": [{"nets", "feats", "counts"}],
    "log-post": [{"nets", "feats"}],
    "post": [{"nets", "feats"}, {"targets"}],
    "ali": [{"ali"}],
    "pdf": [{"ali"}],
}
ALL_INPUTS = ("nets", "feats", "counts", "targets", "ali")
# The other methods have fixed ranges, or so few steps that a state of loglik -10000 leaves none to the others.
METHODS = (1, 2, 3)
# Which kinds the other options are for.
EXTRAS = {
    "compression_method": ("loglik", "log-post"),
    "min_post": ("post",),
    "seed": ("post",),
    "softmax_temperature": ("post",),
}


@command(
    "export-kaldi",
    "write what Kaldi's tools read",
    option("kind", "loglik, log-post, post, ali or pdf, as said above", choices=[*INPUTS], metavar="KIND"),
    path("--nets", "folder of a net, or of nets that answer together", nargs="+", metavar="DIR", required=False),
    path("--feats", "feats.h5, for --nets", required=False),
    optional(COUNTS),
    path("--targets", "targets.h5 made by asr-kd soft-targets", required=False),
    path("--ali", "ali.h5 made by asr-kd align", required=False),
    option("--out", "ark:FILE, ark,t:FILE or ark,scp:FILE.ark,FILE.scp; FILE may end in .gz", required=True),
    option(
        "--compression-method",
        f"of loglik and log-post: {'; '.join(f'{n} {COMPRESSION_METHODS[n]}' for n in METHODS)} (default: none)",
        type=int,
        choices=METHODS,
    ),
    option("--min-post", "of post: smaller ones are pruned at random (default 0.01; 0 keeps all)", type=float),
    option("--seed", "of the pruning (default 1)", type=seed_number),
    option(
        "--temperature",
        "of the softmax, for post from --nets (default 1)",
        type=float,
        dest="softmax_temperature",  # the key `temperature` of a --config is that of distillation
        metavar="TEMPERATURE",
    ),
    DEVICE,
    config=["combination", "top_n", "precision", "prior_floor"],
)
def export_kaldi(args: argparse.Namespace) -> None:
    """Write one of Kaldi's tables, utterance by utterance, complete or not at all.

    loglik: log posteriors minus log priors, for latgen-faster-mapped, from --nets, --feats and --counts.
    log-post: log posteriors, from --nets and --feats.
    post: Posteriors, the soft targets of nnet-train-frmshuff and nnet3-get-egs, from --targets, or from --nets and
    --feats. Those below --min-post become it or nothing, at random, so that expectations are kept.
    ali: transition-ids, as ali.*.gz, from --ali.
    pdf: states, as ali-to-pdf gives them, from --ali.
    """
    _check_options(args)
    write, made_from = {"ali": _alignments, "pdf": _alignments, "post": _posteriors}.get(args.kind, _matrices)(args)
    destination = parse_wspecifier(args.out)

    def work() -> None:
        log(f"{args.out}: {write()} utterances")

    if destination.archive == "-":
        work()
        return
    archive, *script = destination.files
    make(archive, work, command=args.command_line, besides=script, kind=args.kind, out=args.out, **made_from)


def _check_options(args: argparse.Namespace) -> None:
    """Raise AsrKdError unless just the inputs of the kind are given, and no option that it does not take."""
    given = {key for key in ALL_INPUTS if getattr(args, key) is not None}
    if given not in INPUTS[args.kind]:
        ways = [" and ".join(f"--{key}" for key in ALL_INPUTS if key in way) for way in INPUTS[args.kind]]
        raise AsrKdError(f"export-kaldi {args.kind} is made from {', or from '.join(ways)}")
    for key, kinds in EXTRAS.items():
        if getattr(args, key) is not None and args.kind not in kinds:
            raise AsrKdError(f"--{key.removeprefix('softmax_').replace('_', '-')} is for {' and '.join(kinds)} only")
    if args.targets is not None and args.softmax_temperature is not None:
        raise AsrKdError(f"--temperature is for --nets; {args.targets} has that of asr-kd soft-targets")
    if args.softmax_temperature is not None and not 0 < args.softmax_temperature < math.inf:
        raise AsrKdError(f"--temperature {args.softmax_temperature:g}: must be above 0")
    if args.min_post is not None and not 0 <= args.min_post <= 1:
        raise AsrKdError(f"--min-post {args.min_post:g}: must be from 0 to 1")


Matrices = Iterable[tuple[str, np.ndarray]]
Job = tuple[Callable[[], int], dict[str, Any]]


def _log_posteriors(args: argparse.Namespace, temperature: float = 1.0) -> tuple[Matrices, int, dict[str, Any]]:
    """Log posteriors of --nets over --feats, how many states they have, and what they depend on."""
    from asr_kd.scoring.decoding import load_nets
    from asr_kd.scoring.set_posteriors import SetPosteriors
    from asr_kd.store.feats import FeatsReader

    compute, reader = resolve_compute(args), FeatsReader(args.feats)
    nets = load_nets(args.nets, compute.device)
    how = {"combination": args.values["combination"], "temperature": temperature, "top_n": args.values["top_n"]}
    posteriors = SetPosteriors(nets, reader, device=compute.device, dtype=compute.dtype, **how)
    made_from = {"nets": [trained.digest for trained in nets], "feats": reader.content_digest, "dtype": compute.dtype}
    return posteriors, nets[0].net.architecture.num_pdfs, {**made_from, **how}


def _matrices(args: argparse.Namespace) -> Job:
    from asr_kd.nnet.priors import read_decoding_priors
    from asr_kd.store.exchange import counted
    from asr_kd.store.kaldi_ark import write_matrices
    from asr_kd.training.data import digest_of

    matrices, num_pdfs, made_from = _log_posteriors(args)
    if args.kind == "loglik":
        log_priors = read_decoding_priors(args.counts, args.values["prior_floor"], num_pdfs)
        made_from["log_priors"] = digest_of(log_priors)
        matrices = ((utt_id, log_post - log_priors) for utt_id, log_post in matrices)
    method = args.compression_method or 0
    return lambda: write_matrices(args.out, counted(matrices, log), method), {**made_from, "compression": method}


def _posteriors(args: argparse.Namespace) -> Job:
    from asr_kd.kaldi_tables import posteriors_of_targets, pruned
    from asr_kd.store.exchange import counted
    from asr_kd.store.kaldi_posterior import write_posteriors
    from asr_kd.store.targets import stored_digest

    min_post, seed = 0.01 if args.min_post is None else args.min_post, 1 if args.seed is None else args.seed
    if args.targets is None:
        matrices, _, made_from = _log_posteriors(args, args.softmax_temperature or 1.0)
        items = pruned(matrices, min_post, seed)
    else:
        items = posteriors_of_targets(args.targets, min_post, seed, lambda text: log(f"warning: {text}"))
        made_from = {"targets": stored_digest(args.targets)}
    return lambda: write_posteriors(args.out, counted(items, log)), {**made_from, "min_post": min_post, "seed": seed}


def _alignments(args: argparse.Namespace) -> Job:
    from asr_kd.kaldi_tables import alignments
    from asr_kd.store.ali import AliReader
    from asr_kd.store.kaldi_ark import write_int_vectors

    ali = AliReader(args.ali)
    if ali.failed_utt_ids:
        log(f"warning: {args.ali}: {len(ali.failed_utt_ids)} utterances have no alignment and are left out")
    utts = alignments(ali, transition_ids=args.kind == "ali")
    return lambda: write_int_vectors(args.out, utts), {"ali": file_digest([args.ali])}
