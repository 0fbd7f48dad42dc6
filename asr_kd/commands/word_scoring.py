"""`asr-kd score-words`: anyone's hypotheses against their references."""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from asr_kd.cli_common import log
from asr_kd.commands.command import command, option, output, path
from asr_kd.errors import AsrKdError
from asr_kd.runinfo import run_info
from asr_kd.scoring import wer
from asr_kd.scoring.alignment import WEIGHTS
from asr_kd.scoring.significance import NUM_RESAMPLES, RESAMPLING_UNITS, resampling_unit
from asr_kd.scoring.tables import write_tables
from asr_kd.scoring.wer import MODES, WordScores, kaldi_lines, select_utterances
from asr_kd.scoring.word_comparison import WordSystem, compare_systems, results_text
from asr_kd.scoring.word_sets import FORMATS, Hypotheses, References, convert, read_hypotheses, read_references
from asr_kd.scoring.word_tables import alignment_text, confusion_table, group_table, group_text, utterance_table
from asr_kd.store.atomic import write_text


@command(
    "score-words",
    "word error rates of anyone's hypotheses",
    path("--ref", "references: Kaldi's text, or NIST's .trn, .stm or .ctm"),
    option(
        "--hyp",
        "hypotheses (text, .trn or .ctm), as often as there are systems; files with the same NAME are seeds of one",
        action="append",
        required=True,
        metavar="[NAME=]FILE",
    ),
    output("--out", "folder of the tables and the report", mark="scores.json"),
    option("--ref-format", "format of the references, where the name does not tell", choices=FORMATS),
    option("--hyp-format", "format of the hypotheses, where the name does not tell", choices=FORMATS[:3]),
    path("--utt2spk", "speakers, where the references do not name them", required=False),
    option(
        "--mode", "absent hypotheses: an error (the default), deletions, or left out", choices=MODES, default="strict"
    ),
    option("--weights", "whose alignment (default kaldi)", choices=list(WEIGHTS), default="kaldi"),
    option("--time-mediated", "align a CTM with a reference CTM by times, as sclite -T", action="store_true"),
    option("--unit", "what is counted (default word)", choices=["word", "char", "phone"], default="word"),
    path("--lexicon", "lexicon.txt, whose first pronunciations are the phones of --unit phone", required=False),
    option("--ignore-case", "compare in lower case", action="store_true"),
    option(
        "--resampling-unit",
        "what intervals are over; auto: speakers from 20 on",
        choices=RESAMPLING_UNITS,
        default="auto",
    ),
    option("--num-resamples", f"bootstrap resamples (default {NUM_RESAMPLES})", type=int, default=NUM_RESAMPLES),
)
def score_words(args: argparse.Namespace) -> None:
    """Score hypotheses of one or more systems against references, with intervals, and compare the systems in pairs.

    Alignment and counts are compute-wer's (--weights kaldi) or sclite's (--weights sclite; sclite -s -D). A CTM is cut
    at the segments of an STM by the middles of its words. Word maps (GLM) and fragments are not applied: filter first.
    Every pair of systems is tested; p values are not corrected for the number of pairs.
    Prints the table and writes OUT/index.html, a report that loads nothing, OUT/scores.json, systems and comparisons
    (.csv, .tex), and in OUT/NAME, for several seeds OUT/NAME/seedK, wer.txt, alignment.txt, utterances, confusions
    and, where speakers or labels of segments are known, speakers and labels (.csv, .tex and .txt).
    """
    from asr_kd.scoring.word_report import write_word_report  # matplotlib and jinja2 would slow every command down

    if args.num_resamples < 1:
        raise AsrKdError(f"--num-resamples {args.num_resamples}: at least one is needed")
    references = read_references(args.ref, args.ref_format, args.utt2spk)
    files = parse_systems(args.hyp)
    hyps = {
        name: [read_hypotheses(file, references, args.hyp_format) for file in names] for name, names in files.items()
    }
    split = _splitter(args)
    refs = convert(references.texts, split)
    texts = {name: [convert(hyp.texts, split) for hyp in seeds] for name, seeds in hyps.items()}
    utt_ids = select_utterances(refs, [hyp for seeds in texts.values() for hyp in seeds], args.mode)
    weights = WEIGHTS[args.weights]
    systems = []
    for name, seeds in texts.items():
        times = [_times(args, references, hyp) for hyp in hyps[name]]
        scored = [wer.score_words(refs, hyp, utt_ids, weights, t) for hyp, t in zip(seeds, times, strict=True)]
        systems.append(WordSystem(name, scored))
    spk_ids = references.spk_of and [references.spk_of[utt_id] for utt_id in utt_ids]
    unit, why = resampling_unit(spk_ids, args.resampling_unit)
    units = utt_ids if unit == "utterance" else spk_ids
    compared = compare_systems(
        systems, units, has_alternatives=references.has_alternatives, num_resamples=args.num_resamples
    )
    for system in systems:
        for number, (scores, hyp) in enumerate(zip(system.seeds, hyps[system.name], strict=True), 1):
            folder = args.out / system.name if len(system.seeds) == 1 else args.out / system.name / f"seed{number}"
            _write_tables(folder, scores, references, hyp if args.unit == "word" else None)
    results = {
        "unit": args.unit,
        "weights": "times" if args.time_mediated else args.weights,
        "mode": args.mode,
        "ignore_case": args.ignore_case,
        "files": {"ref": str(args.ref), "hyp": {name: [str(f) for f in seeds] for name, seeds in files.items()}},
        "num_utts": len(utt_ids),
        "num_speakers": spk_ids and len(set(spk_ids)),
        "resampling_unit": unit,
        "resampling_note": why,
        "num_resamples": args.num_resamples,
        **compared,
        "run": run_info(args.command_line),
    }
    write_word_report(args.out, results, systems, args.command_line)
    if len(systems) == len(systems[0].seeds) == 1:
        print(kaldi_lines(systems[0].seeds[0]), end="")
    print(results_text(results), end="")
    if len(utt_ids) < len(refs):
        log(f"{len(refs) - len(utt_ids)} of {len(refs)} utterances are left out, since some hypotheses lack them")
    log(f"intervals over {unit}s: {why}")
    log(f"{args.out / 'index.html'}")


def parse_systems(given: Sequence[str], flag: str = "--hyp") -> dict[str, list[Path]]:
    """`[NAME=]FILE` as {name: files of its seeds}; a file without a name is named after itself.

    Raises AsrKdError for a name that cannot be a folder's and for two files that would share one unasked.
    """
    files: dict[str, list[Path]] = {}
    unnamed = set()
    for text in given:
        name, mark, file = text.partition("=")
        if not mark or "/" in name:
            name, file = Path(re.sub(r"^(ark|scp)[,a-z]*:", "", text).removesuffix(".gz")).stem, text
            if name in files:
                raise AsrKdError(f"{flag} {text}: another file is named {name}, too; write {flag} NAME={text}")
            unnamed.add(name)
        elif name in unnamed:
            raise AsrKdError(f"{flag} {text}: a file without a name is named {name}, too; name both")
        if not re.fullmatch(r"[^\s/]+", name) or name in (".", ".."):
            raise AsrKdError(f"{flag} {text}: {name!r} cannot name a folder; write {flag} NAME=FILE")
        files.setdefault(name, []).append(Path(file))
    return files


def _splitter(args: argparse.Namespace) -> Callable[[str], Sequence[str]] | None:
    """What turns a word of the files into the units that are counted; None where it is the word itself."""

    def cased(word: str) -> str:
        return word.lower() if args.ignore_case else word

    if (args.unit == "phone") != (args.lexicon is not None):
        raise AsrKdError("--unit phone and --lexicon go together: the lexicon says what the phones of a word are")
    if args.unit == "char":
        return lambda word: list(cased(word))
    if args.unit == "word":
        return (lambda word: [cased(word)]) if args.ignore_case else None
    from asr_kd.corpus.lexicon import read_lexicon

    entries = read_lexicon(args.lexicon).entries
    first = {cased(word): pronunciations[0] for word, pronunciations in reversed(entries.items())}

    def phones(word: str) -> Sequence[str]:
        if cased(word) not in first:
            raise AsrKdError(f"{args.lexicon} has no pronunciation of {word!r}")
        return first[cased(word)]

    return phones


def _times(args: argparse.Namespace, references: References, hyp: Hypotheses) -> tuple[Mapping, Mapping] | None:
    """The times to align by, of the references and of the hypotheses; None where words are aligned."""
    if not args.time_mediated:
        return None
    if references.times is None or args.unit != "word":
        raise AsrKdError("--time-mediated needs the words of a reference CTM and of hypothesis CTMs")
    if hyp.texts and not hyp.times:
        raise AsrKdError(f"{hyp.texts.path}: --time-mediated needs a CTM")
    return references.times, hyp.times


def _write_tables(folder: Path, scores: WordScores, references: References, hyp: Hypotheses | None) -> None:
    write_text(folder / "wer.txt", kaldi_lines(scores))
    write_text(folder / "alignment.txt", alignment_text(scores, hyp.times if hyp else None))
    tables = [utterance_table(scores, references.spk_of), confusion_table(scores)]
    speakers = references.spk_of and {utt_id: (spk_id,) for utt_id, spk_id in references.spk_of.items()}
    for name, groups_of in (("speakers", speakers), ("labels", references.labels)):
        if groups_of is not None:
            tables.append(group_table(name, scores, groups_of))
            write_text(folder / f"{name}.txt", group_text(tables[-1], scores))
    write_tables(folder, tables)
