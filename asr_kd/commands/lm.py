"""`asr-kd train-lm`, `perplexity`."""

import argparse
import math

from asr_kd.cli_common import log
from asr_kd.commands.command import command, one_of, option, path
from asr_kd.errors import AsrKdError
from asr_kd.runinfo import file_digest, make

TEXT = one_of(
    path("--data", "Kaldi data directory: its transcripts, perturbed copies once"),
    path("--text", "UTF-8 text, one sentence a line, gunzipped where it is named *.gz"),
)
UNIT = option("--unit", "word (default), or char: letters, with <space> between words", default="word")


def _sentences(args: argparse.Namespace) -> list:
    from asr_kd.lm.text import in_units, read_text, read_transcripts

    return in_units(read_transcripts(args.data) if args.data else read_text(args.text), args.unit)


@command(
    "train-lm",
    "estimate an n-gram language model",
    TEXT,
    option("--order", "words of an n-gram (default: ngram_order of the configuration, 3)", type=int),
    option("--prune", "threshold of entropy pruning (default: ngram_prune of the configuration, 0: none)", type=float),
    path("--vocabulary", "the words: a word list, lexicon or words.txt (default: those of the text)", required=False),
    UNIT,
    path("--out", "ARPA file to write; gzipped if it is named *.gz"),
    config=[],
)
def train_lm(args: argparse.Namespace) -> None:
    """Interpolated modified Kneser-Ney (Chen & Goodman 1998), maybe with entropy pruning (Stolcke 1998), as ARPA.

    Words outside --vocabulary become its <unk>. Every history sums to one.
    """
    from asr_kd.lm.arpa import write_arpa
    from asr_kd.lm.kneser_ney import estimate
    from asr_kd.lm.prune import prune
    from asr_kd.lm.text import read_vocabulary

    order = args.values["ngram_order"] if args.order is None else args.order
    threshold = args.values["ngram_prune"] if args.prune is None else args.prune
    if not 0 <= threshold < float("inf"):
        raise AsrKdError(f"--prune {threshold}: must be 0 or more")
    sentences = _sentences(args)
    vocabulary = read_vocabulary(args.vocabulary) if args.vocabulary else None

    def work() -> None:
        model = estimate(sentences, order, vocabulary, log)
        log(f"{len(sentences)} sentences: {_sizes(model)}")
        if threshold:
            model = prune(model, threshold)
            log(f"pruned at {threshold:g}: {_sizes(model)}")
        write_arpa(args.out, model)

    make(
        args.out,
        work,
        command=args.command_line,
        text=file_digest([args.data / "text" if args.data else args.text]),
        uniq=file_digest(p for p in [args.data / "utt2uniq"] if p.exists()) if args.data else None,
        vocabulary=vocabulary,
        order=order,
        prune=threshold,
        unit=args.unit,
    )


def _sizes(model: object) -> str:
    return ", ".join(f"{len(level)} {n}-grams" for n, level in enumerate(model.levels, 1))


@command(
    "perplexity",
    "of a text under a language model",
    path("--lm", "ARPA file, gunzipped where it is named *.gz"),
    TEXT,
    UNIT,
)
def perplexity(args: argparse.Namespace) -> None:
    """Print the perplexity of a text, with words that the model lacks counted apart, as SRILM's ngram -ppl does."""
    from asr_kd.lm.arpa import read_arpa
    from asr_kd.lm.perplexity import measure

    found = measure(read_arpa(args.lm, log), _sentences(args))
    if 2 * found.num_oovs > found.num_words:
        units, unit = ("letters", "char") if args.unit == "word" else ("words", "word")
        log(f"warning: {args.lm} lacks most words of the text; if it is of {units}, give --unit {unit}")
    per_word = f"{found.per_word:.2f}" if math.isfinite(found.per_word) else "undefined"
    print(
        f"{found.num_sentences} sentences, {found.num_words} words, {found.num_oovs} of them not in the model\n"
        f"log10 probability {found.log10_prob:.6g}, perplexity {found.perplexity:.2f}, "
        f"{per_word} without the ends of sentences"
    )
