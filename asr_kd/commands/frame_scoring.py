"""`asr-kd score-frames`: anyone's posteriors against an alignment."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from asr_kd.cli_common import log
from asr_kd.commands.command import command, option, output, path
from asr_kd.commands.word_scoring import parse_systems
from asr_kd.errors import AsrKdError
from asr_kd.runinfo import run_info
from asr_kd.scoring.significance import NUM_RESAMPLES, RESAMPLING_UNITS


@command(
    "score-frames",
    "frame accuracy and calibration of anyone's posteriors",
    option(
        "--posteriors",
        "HDF5, ark:FILE or scp:FILE, as often as there are systems; files with the same NAME are seeds of one",
        action="append",
        required=True,
        metavar="[NAME=]FILE",
    ),
    option("--ali", "ali.h5, or ark:FILE of pdf-ids (ali-to-pdf)", required=True),
    output("--out", "folder of the tables and the report", mark="scores.json"),
    option("--logits", "the values are outputs before the softmax", action="store_true"),
    path("--counts", "the values are log-likelihoods; this ali_train_pdf.counts made their priors", required=False),
    option("--prior-floor", "the smallest of these priors (default 1e-8)", type=float, default=1e-8),
    option("--sil-pdfs", "states of silence, like 0,1,2 (default: those of ali.h5; an archive tells none)"),
    path("--utt2spk", "speakers of the utterances", required=False),
    option("--resampling-unit", "auto: speakers from 20 on", choices=RESAMPLING_UNITS, default="auto"),
    option("--num-resamples", f"bootstrap resamples (default {NUM_RESAMPLES})", type=int, default=NUM_RESAMPLES),
)
def score_frames(args: argparse.Namespace) -> None:
    """Score posteriors frame by frame against an alignment, with intervals, and compare the systems in pairs.

    HDF5: /post, /posteriors, /prob, /log_post, /logits or /loglik (num_frames, num_pdfs) with /utt/id and /utt/offset;
    or a data set (num_frames, num_pdfs) named after each utterance. Probabilities and log probabilities are told apart
    by their rows, which must sum to one.
    Prints a table and writes OUT/scores.json, OUT/tables/*.csv and *.tex, and OUT/index.html, a report that loads
    nothing. Gains by phone are over the first system given. p values are not corrected for the number of pairs.
    """
    from asr_kd.nnet.priors import read_log_priors
    from asr_kd.scoring.frame_report import results_text, write_frame_report
    from asr_kd.scoring.frame_results import FrameSystem, build_frame_results, score_posteriors
    from asr_kd.scoring.labels import read_labels
    from asr_kd.scoring.posteriors import open_posteriors

    if args.num_resamples < 1:
        raise AsrKdError(f"--num-resamples {args.num_resamples}: at least one is needed")
    files = parse_systems(args.posteriors, "--posteriors")
    log_priors = None if args.counts is None else read_log_priors(args.counts, args.prior_floor)
    labelled = read_labels(args.ali, _sil_pdfs(args.sil_pdfs))
    spk_ids = _speakers(args.utt2spk, labelled.utt_ids)
    systems = []
    for name, seeds in files.items():
        scored = []
        for file in seeds:
            posteriors = open_posteriors(file, logits=args.logits, log_priors=log_priors)
            scores, passed_over = score_posteriors(posteriors, labelled, str(file))
            scored.append(scores)
            log(f"{name}: {file}: {scores.num_frames.sum():,} frames scored")
            if passed_over:
                log(f"{file}: {passed_over} utterances have no alignment and were passed over")
        systems.append(FrameSystem.of_seeds(name, labelled.utt_ids, spk_ids, scored))
    about = {
        "files": {"ali": args.ali, "posteriors": {name: [str(f) for f in seeds] for name, seeds in files.items()}},
        "run": run_info(args.command_line),
    }
    results = build_frame_results(systems, args.resampling_unit, num_resamples=args.num_resamples, about=about)
    write_frame_report(args.out, results, {system.name: system.detail for system in systems}, args.command_line)
    print(results_text(results), end="")
    log(f"intervals over {results['resampling_unit']}s: {results['resampling_note']}")
    log(f"{args.out / 'index.html'}")


def _sil_pdfs(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError as error:
        raise AsrKdError(f"--sil-pdfs {text}: expected whole numbers like 0,1,2") from error


def _speakers(utt2spk: Path | None, utt_ids: Sequence[str]) -> list[str] | None:
    """The speaker of each utterance, if the file is given."""
    from asr_kd.scoring.transcripts import read_transcripts

    if utt2spk is None:
        return None
    table = read_transcripts(utt2spk)
    for utt_id in utt_ids:
        if len(table.get(utt_id, ())) != 1:
            raise AsrKdError(f"{utt2spk}: no line `{utt_id} speaker`, which the alignment needs")
    return [table[utt_id][0] for utt_id in utt_ids]
