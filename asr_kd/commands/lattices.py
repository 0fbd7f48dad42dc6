"""`asr-kd lattice-nbest`, `lattice-rescore`, `lattice-oracle`: what lattices hold, without decoding again."""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from asr_kd.cli_common import log
from asr_kd.commands.command import command, option, output, path
from asr_kd.commands.options import SCALES, resolve_scales
from asr_kd.errors import AsrKdError

if TYPE_CHECKING:
    from asr_kd.hmm.lattice import Lattice
    from asr_kd.hmm.lattice_rescore import BackoffModel, LanguageModel
    from asr_kd.hmm.word_search import Path as LatticePath

LATTICES = (
    option("--lattices", "Kaldi's table of lattices (ark:F, scp:F), as from asr-kd decode --lattices", required=True),
    path("--words", "words.txt of the graph that they were made with"),
)
LM = (
    path("--lm", "ARPA file, also gzipped: put this language model in the place of the graph's", required=False),
    path("--old-lm", "ARPA file that the graph was made with, to take off", required=False),
    path("--graph", "folder of the graph, if it is over a loop of words, to take that off", required=False),
    option("--lm-scale", "factor of what --lm changes (default 1)", type=float),
)


def _read(args: argparse.Namespace) -> tuple[list[str], "Iterator[tuple[str, Lattice]]"]:
    """Names by word id − 1, and the lattices with their ids.

    Raises AsrKdError at a lattice with a word that has no name, and at the end of a table that held none.
    """
    from asr_kd.corpus.symbols import read_symbols
    from asr_kd.hmm.lattice_table import read_lattices

    specifier = args.lattices if ":" in args.lattices else f"ark:{args.lattices}"
    words = read_symbols(args.words)[1:]

    def named() -> "Iterator[tuple[str, Lattice]]":
        utt_id = None
        for utt_id, lattice in read_lattices(specifier):
            if (word := int(lattice.word.max())) > len(words):
                raise AsrKdError(f"{utt_id}: has a word {word}, --words only {len(words)}: they are of other graphs")
            yield utt_id, lattice
        if utt_id is None:
            raise AsrKdError(f"{args.lattices}: holds no lattice; was it copied whole?")

    return words, named()


def _names(words: list[str], best: "LatticePath") -> list[str]:
    return [words[word - 1] for word in best.words]


@command(
    "lattice-nbest",
    "the best word sequences of lattices",
    *LATTICES,
    *SCALES,
    option("--n", "how many of each utterance at most (default 10)", type=int, default=10),
    output("--out", "folder of the lists"),
)
def lattice_nbest(args: argparse.Namespace) -> None:
    """List the best word sequences of every lattice, each once, in the order of their cost; the lists are exact.

    Writes OUT/text (Kaldi's text; utterance UTT's are UTT-1, UTT-2, …) and OUT/costs, a line for each with its graph
    cost, acoustic cost (without scale), and the whole cost at these scales.
    """
    from asr_kd.hmm.word_search import nbest
    from asr_kd.store.atomic import atomic_dir

    (words, lattices), (acwt, penalty) = _read(args), resolve_scales(args)
    if args.n < 1:
        raise AsrKdError(f"--n {args.n}: must be at least 1")
    count = 0
    with (
        atomic_dir(args.out) as folder,
        open(folder / "text", "w", encoding="utf-8") as text,
        open(folder / "costs", "w", encoding="utf-8") as costs,
    ):
        for utt_id, lattice in lattices:
            for number, best in enumerate(nbest(lattice, args.n, acwt, penalty), 1):
                text.write(" ".join([f"{utt_id}-{number}", *_names(words, best)]) + "\n")
                costs.write(f"{utt_id}-{number} {best.graph:.6g} {best.acoustic:.6g} {best.cost:.6f}\n")
            count += 1
    log(f"{args.out}: the {args.n} best of {count} utterances")


@command(
    "lattice-rescore",
    "words of lattices at other scales, or with another language model",
    *LATTICES,
    *SCALES,
    *LM,
    path("--data", "data directory with the references: print the WER", required=False),
    output(
        "--lattices-out",
        "write the lattices with the costs of the new language model (ark:F)",
        type=str,
        required=False,
    ),
    output("--out", "text file of the words"),
)
def lattice_rescore(args: argparse.Namespace) -> None:
    """Write the best word sequence of every lattice at these scales, with another language model if one is given.

    What --lm costs is added to every path, exactly, and what the graph's own model cost is taken off where it is known:
    by --old-lm, or by --graph for a loop of words. Without either, --lm comes on top of what is there.
    """
    from asr_kd.hmm.lattice_rescore import rescore
    from asr_kd.hmm.lattice_table import write_lattices
    from asr_kd.hmm.word_search import nbest
    from asr_kd.scoring.decoding import write_hyps

    (words, lattices), (acwt, penalty), (new, old) = _read(args), resolve_scales(args), _models(args)
    scale = 1.0 if args.lm_scale is None else args.lm_scale
    refs = _references(args.data) if args.data else None
    hyps, used = {}, set()

    def rescored() -> "Iterator[tuple[str, Lattice]]":
        for utt_id, lattice in lattices:
            if refs is not None:
                _require_reference(args.data, refs, utt_id)
            try:
                changed = rescore(lattice, words, new, old, scale) if new else lattice
            except AsrKdError as error:
                raise AsrKdError(f"{utt_id}: {error}") from error
            used.update(lattice.word[lattice.word > 0].tolist())
            hyps[utt_id] = " ".join(_names(words, nbest(changed, 1, acwt, penalty)[0]))
            yield utt_id, changed

    if args.lattices_out:
        write_lattices(args.lattices_out, rescored())
    else:
        for _ in rescored():
            pass
    if new and 2 * (lacked := sum(words[word - 1] not in new for word in used)) > len(used):
        log(f"warning: {args.lm} lacks {lacked} of the lattices' {len(used)} words: is it of other units?")
    write_hyps(args.out, hyps)
    if refs is not None:
        print(f"WER {_wer(refs, hyps)}")


def _models(args: argparse.Namespace) -> "tuple[BackoffModel | None, LanguageModel | None]":
    """The new language model and the old one."""
    if not args.lm:
        if args.old_lm or args.graph or args.lm_scale is not None:
            raise AsrKdError("--old-lm, --graph and --lm-scale say how --lm is put in: give --lm too")
        return None, None
    if args.lm_scale is not None and not math.isfinite(args.lm_scale):
        raise AsrKdError(f"--lm-scale {args.lm_scale}: must be a finite number")
    if args.old_lm and args.graph:
        raise AsrKdError("--old-lm and --graph both name the old language model: give one")
    from asr_kd.hmm.graph import Graph
    from asr_kd.hmm.lattice_rescore import BackoffModel, WordLoop
    from asr_kd.lm.arpa import read_arpa

    old = None
    if args.old_lm:
        old = BackoffModel(read_arpa(args.old_lm, log))
    elif args.graph:
        old = WordLoop.of_graph(Graph.load(args.graph))
    return BackoffModel(read_arpa(args.lm, log)), old


def _references(data_dir: Path) -> dict[str, list[str]]:
    from asr_kd.corpus.datadir import read_words

    return {utt_id: list(words) for utt_id, words in read_words(data_dir).items()}


def _require_reference(data_dir: Path, refs: dict[str, list[str]], utt_id: str) -> None:
    if utt_id not in refs:
        raise AsrKdError(f"{data_dir}/text: no transcript of utterance {utt_id}, which has a lattice")


def _wer(references: dict[str, list[str]], hyps: dict[str, str]) -> str:
    from asr_kd.scoring.wer import count_errors

    refs = {utt_id: " ".join(words) for utt_id, words in references.items()}
    counts, num_ref = count_errors(refs, {**dict.fromkeys(refs, ""), **hyps}, list(refs))
    total, absent = int(counts.sum()), len(refs.keys() - hyps.keys())
    return f"{100.0 * total / max(1, int(num_ref.sum())):.2f} % ({total} errors; {absent} utterances without a lattice)"


@command(
    "lattice-oracle",
    "how good lattices can be at best",
    *LATTICES,
    path("--data", "data directory with the references"),
)
def lattice_oracle(args: argparse.Namespace) -> None:
    """Print the word error rate of the path of every lattice that is nearest to its reference, and the lattices' depth.

    No rescoring of these lattices gets below it.
    """
    (words, lattices), refs = _read(args), _references(args.data)
    known = {word: number for number, word in enumerate(words, 1)}
    errors = num_ref = num_arcs = num_frames = count = 0
    for utt_id, lattice in lattices:
        _require_reference(args.data, refs, utt_id)
        ref = [known.get(word, -1) for word in refs[utt_id]]  # no lattice has a word −1
        errors, num_ref, count = errors + lattice.oracle_errors(ref), num_ref + len(ref), count + 1
        num_arcs += sum(map(len, lattice.tids)) // 4
        num_frames += lattice.num_frames
    if not num_ref:
        raise AsrKdError(f"{args.lattices}: no lattice with a reference that has words")
    print(
        f"{count} lattices: oracle WER {100.0 * errors / num_ref:.2f} % ({errors} errors in {num_ref} words), "
        f"{num_arcs / max(1, num_frames):.2f} arcs over a frame"
    )
