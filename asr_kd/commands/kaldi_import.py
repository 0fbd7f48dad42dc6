"""`asr-kd import-kaldi`, `import-targets`: from what Kaldi, or anyone, trained."""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from asr_kd.choices import Combination, require_choice
from asr_kd.cli_common import log, share
from asr_kd.commands.command import command, one_of, option, path
from asr_kd.errors import AsrKdError
from asr_kd.runinfo import file_digest, make
from asr_kd.store.table_names import names_table, parse_specifier

if TYPE_CHECKING:
    from asr_kd.config import DistillConfig
    from asr_kd.hmm.import_kaldi import KnownFrontEnd, Processing
    from asr_kd.hmm.imported import ImportedHmm
    from asr_kd.store.exchange import ForeignFrontEnd
    from asr_kd.store.feats import FeatsReader

APPLIED = ("cmvn", "deltas")


@command(
    "import-kaldi",
    "go on from a system that Kaldi trained",
    path("--data", "data directory with feats.scp (what the nets shall see) and utt2spk", required=False),
    path("--ali", "folder of the alignments: ali.*.gz, final.mdl, tree (exp/tri3_ali)", required=False),
    path("--graph", "folder made by mkgraph.sh: HCLG.fst, words.txt (exp/tri3/graph)", required=False),
    path("--lang", "data/lang, for phones.txt and pronunciations that --ali and --graph lack", required=False),
    path("--lexicon", "lexicon.txt, where there is no phones/align_lexicon.txt", required=False),
    path("--model", "final.mdl, where it is not that of --ali or beside --graph", required=False),
    option("--silence-phones", "like SIL,SPN (default: those of phones/silence.csl, or SIL)"),
    option("--set", "name of the set in OUT (default: that of the folder --data)"),
    path("--feature-conf", "fbank.conf or mfcc.conf of the features (default: DATA/conf, if there)", required=False),
    option("--kind", "fbank, mfcc or another name (default: as the conf is called, or fbank)"),
    option("--sample-frequency", "in Hz, where there is no conf", type=float),
    option("--apply", "cmvn, or cmvn,deltas: by cmvn.scp of --data, cmvn_opts and delta_opts of --ali"),
    path("--cmvn-opts", "another file of options than that of --ali, for --apply cmvn", required=False),
    option("--max-bad-share", "of utterances that may lack features or an alignment (default 0.05)", type=share),
    path("--out", "the experiment's folder"),
)
def import_kaldi(args: argparse.Namespace) -> None:
    """Take over a Kaldi system: nothing is retrained. Call it for each set, with what there is of it.

    Writes OUT/feats/SET.KIND.h5, OUT/ali/SET.h5, OUT/ali/ali_SET_pdf.counts, OUT/hmm (the states) and OUT/graph, as
    the other commands take them. Features stay raw, and the nets' key `cmvn` says how they are normalised
    (--cmvn speaker does what cmvn.scp and --norm-vars=true do); --apply changes them for good. Of --data and --ali only
    the utterances in both have labels. Chain models are refused.
    """
    args.max_bad_share = 0.05 if args.max_bad_share is None else args.max_bad_share
    if args.data is None and args.ali is None and args.graph is None:
        raise AsrKdError("nothing to import: give --data, --ali, --graph, or several of them")
    if args.ali is not None and args.data is None:
        raise AsrKdError("--ali: alignments fit features; give the --data that has them")
    for key in ("set", "kind"):
        if (name := getattr(args, key)) is not None and (name in ("", ".", "..") or Path(name).name != name):
            raise AsrKdError(f"--{key} {name}: becomes a part of file names in OUT; give a name without / or ..")
    hmm = _read_hmm(args) if args.ali is not None or args.graph is not None else None
    feats = _import_feats(args) if args.data is not None else None
    if args.ali is not None:
        _import_ali(args, hmm, feats)
    if args.graph is not None:
        _import_graph(args, hmm)
    if hmm is not None:
        # Last: states that the alignments or the graph turned out not to be of must not claim OUT for their model.
        make(args.out / "hmm", lambda: hmm.save(args.out / "hmm"), command=args.command_line, hmm=hmm.seal)


def _read_hmm(args: argparse.Namespace) -> "ImportedHmm":
    """The states, as they are to stand in OUT/hmm; raises AsrKdError where those of another model are there."""
    from asr_kd.hmm.import_kaldi import refuse_chain_folder
    from asr_kd.hmm.imported import ImportedHmm
    from asr_kd.hmm.kaldi_lang import read_lang
    from asr_kd.hmm.kaldi_model import read_mdl

    if args.ali is not None:
        refuse_chain_folder(args.ali)
    places = [args.ali / "final.mdl"] if args.ali is not None else []
    places += [args.graph / "final.mdl", args.graph.parent / "final.mdl"] if args.graph is not None else []
    mdl = args.model or next((place for place in places if place.is_file()), None)
    if mdl is None:
        raise AsrKdError(f"no final.mdl as {', '.join(map(str, places))}; give it as --model")
    refuse_chain_folder(mdl.parent)
    out = args.out / "hmm"
    if out.exists():
        there = ImportedHmm.load(out)
        if there.digest != read_mdl(mdl).transitions.digest:
            raise AsrKdError(
                f"{out}: is of another model than {mdl}; import each model into an --out of its own, or remove "
                f"{out} if it was a mistake"
            )
        if args.lang is None and args.lexicon is None and args.silence_phones is None:
            return there
    folders = [folder for folder in (args.lang, args.graph, args.ali, mdl.parent) if folder is not None]
    silence = None if args.silence_phones is None else args.silence_phones.split(",")
    lang = read_lang(folders, args.lexicon, silence, log)
    tree = next((folder / "tree" for folder in (mdl.parent, args.ali) if folder and (folder / "tree").is_file()), None)
    if tree is None:
        log(f"warning: no tree beside {mdl}: asr-kd needs none, but Kaldi's scripts do where the net goes back to it")
    return ImportedHmm.read(mdl, tree, lang)


def _import_feats(args: argparse.Namespace) -> "FeatsReader":
    """The features, in OUT/feats."""
    from asr_kd.store.exchange import source_of_table, write_feats
    from asr_kd.store.feats import FeatsReader

    front_end, processing = _front_end(args), _processing(args)
    scp, utt2spk = args.data / "feats.scp", args.data / "utt2spk"
    utt2spk = utt2spk if utt2spk.is_file() else None
    out = args.out / "feats" / f"{_set_name(args)}.{front_end.kind}.h5"

    def work() -> None:
        source = source_of_table(f"scp:{scp}", front_end, utt2spk)
        if processing.cmvn is not None or processing.deltas is not None:
            source = processing.applied(source)
        num_utts = write_feats(out, source, max_bad_share=args.max_bad_share, log=log)
        log(f"{out}: {num_utts} utterances")

    make(
        out,
        work,
        command=args.command_line,
        scp=_scp_digest(scp),
        utt2spk=file_digest([utt2spk] if utt2spk else []),
        front_end=front_end,
        processing=processing,
        stats=_scp_digest(Path(processing.stats.removeprefix("scp:"))) if processing.stats else "",
        max_bad_share=args.max_bad_share,
    )
    return FeatsReader(out)


def _set_name(args: argparse.Namespace) -> str:
    return args.set or args.data.resolve().name


def _front_end(args: argparse.Namespace) -> "KnownFrontEnd | ForeignFrontEnd":
    """How the features were made; raises AsrKdError where nothing tells."""
    from asr_kd.features.kaldi_conf import kind_of_conf, read_front_end
    from asr_kd.hmm.import_kaldi import KnownFrontEnd
    from asr_kd.store.exchange import ForeignFrontEnd

    conf = args.feature_conf
    if conf is None and args.sample_frequency is None:
        places = [args.data / "conf" / f"{kind}.conf" for kind in ([args.kind] if args.kind else ["fbank", "mfcc"])]
        conf = next((place for place in places if place.is_file()), None)
        if conf is None:
            raise AsrKdError(
                f"{args.data}: does not say how its features were made: give --feature-conf (their fbank.conf or "
                "mfcc.conf), or --kind and --sample-frequency"
            )
    if conf is None:
        return ForeignFrontEnd(args.kind or "fbank", args.sample_frequency)
    kind = args.kind or kind_of_conf(conf) or "fbank"
    known = read_front_end(conf, kind)
    if args.sample_frequency not in (None, known.sample_frequency):
        raise AsrKdError(f"{conf}: is for {known.sample_frequency:g} Hz, not the {args.sample_frequency:g} given")
    return KnownFrontEnd(kind, known)


def _processing(args: argparse.Namespace) -> "Processing":
    """What --apply asks for; raises AsrKdError for what is unknown or missing."""
    from asr_kd.features.kaldi_conf import read_cmvn_options, read_delta_options
    from asr_kd.hmm.import_kaldi import Processing

    asked = args.apply.split(",") if args.apply else []
    if unknown := [each for each in asked if each not in APPLIED]:
        raise AsrKdError(f"--apply {unknown[0]}: choose among {', '.join(APPLIED)}")

    def options(name: str, given: Path | None = None) -> Path | None:
        beside = args.ali / name if args.ali is not None else None
        return given or (beside if beside is not None and beside.is_file() else None)

    cmvn = read_cmvn_options(options("cmvn_opts", args.cmvn_opts)) if "cmvn" in asked else None
    deltas = read_delta_options(options("delta_opts")) if "deltas" in asked else None
    needs_stats = cmvn is not None and cmvn.norm_means
    return Processing(cmvn, f"scp:{args.data / 'cmvn.scp'}" if needs_stats else "", deltas)


def _scp_digest(scp: Path) -> str:
    """What a script's contents depend on, without reading them: the script, and its archives' sizes and times."""
    import hashlib

    from asr_kd.store.kaldi_ark import read_script

    digest, archives = hashlib.sha256(), {}
    for entry in read_script(str(scp)):
        digest.update(repr(entry).encode())
        archives.setdefault(entry.file, None)
    for archive in archives:
        try:
            status = Path(archive).stat()
        except OSError as error:
            where = "" if Path(archive).is_absolute() else "; as in Kaldi, such a path is from the current directory"
            raise AsrKdError(f"{scp}: names {archive}, which cannot be read ({error.strerror}){where}") from error
        digest.update(f"{archive} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _import_ali(args: argparse.Namespace, hmm: "ImportedHmm", feats: "FeatsReader") -> None:
    """States of the features' frames and how often each occurs, in OUT/ali."""
    from asr_kd.hmm.import_kaldi import alignment_tables, import_alignments
    from asr_kd.nnet.priors import count_pdfs, write_counts
    from asr_kd.store.ali import AliReader

    name = _set_name(args)
    out = args.out / "ali" / f"{name}.h5"
    tables = [Path(table.partition(":")[2]) for table in alignment_tables(args.ali)]
    make(
        out,
        lambda: import_alignments(out, args.ali, hmm, feats.layout, max_bad_share=args.max_bad_share, log=log),
        command=args.command_line,
        tables=[_scp_digest(table) if table.suffix == ".scp" else file_digest([table]) for table in tables],
        hmm=hmm.seal,
        feats=feats.layout.digest,
        max_bad_share=args.max_bad_share,
    )
    ali = AliReader(out)
    write_counts(args.out / "ali" / f"ali_{name}_pdf.counts", count_pdfs(ali.pdf, ali.num_pdfs))
    num_labelled = int((ali.pdf >= 0).sum())
    log(f"{out}: {num_labelled} of {len(ali.pdf)} frames have one of {ali.num_pdfs} states")


def _import_graph(args: argparse.Namespace, hmm: "ImportedHmm") -> None:
    """The decoding graph, in OUT/graph."""
    from asr_kd.hmm.import_kaldi import import_graph

    out = args.out / "graph"

    def work() -> None:
        graph = import_graph(args.graph, hmm)
        graph.save(out)
        log(f"{out}: {graph.arcs.num_states} states, {len(graph.arcs.source)} arcs, {len(graph.words)} words")

    files = [args.graph / name for name in ("HCLG.fst", "words.txt")]
    make(out, work, command=args.command_line, graph=file_digest(files), hmm=hmm.digest)


@command(
    "import-targets",
    "soft targets from foreign teachers",
    one_of(
        path("--posteriors", "matrices of a teacher each: ark:FILE, scp:FILE or HDF5", nargs="+", type=str),
        path("--sparse", "Kaldi Posterior table of one teacher: ark:FILE or scp:FILE", type=str),
    ),
    path("--feats", "features of the frames, as the student sees them"),
    path("--ali", "their states, which the targets are over"),
    option("--stored-temperature", "at which the teachers' posteriors were made (default 1)", type=float, default=1.0),
    option("--logits", "the matrices are outputs before the softmax", action="store_true"),
    path("--counts", "the matrices are log-likelihoods; this ali_train_pdf.counts made their priors", required=False),
    option("--prior-floor", "the smallest of these priors (default 1e-8)", type=float, default=1e-8),
    option("--normalize", "scale the weights of a --sparse frame to sum to one (for pruned ones)", action="store_true"),
    path("--transition-ids-of", "the --sparse table names transition-ids of this HMM folder, not pdfs", required=False),
    path("--out", "targets.h5"),
    config=["temperature", "combination", "top_k"],
)
def import_targets(args: argparse.Namespace) -> None:
    """Make targets.h5 of what teachers of any toolkit said to the same frames, for asr-kd distill --targets.

    Matrices (num_frames, num_pdfs) hold probabilities or their logarithms, told apart by their rows; they are brought
    from --stored-temperature to --temperature and averaged, arithmetically or geometrically. A Posterior table is taken
    as it is, so that its temperature is --stored-temperature, and --temperature has to be the same.
    Raises an error unless there are targets for exactly the frames of --feats and the states of --ali.
    """
    from asr_kd.config import DistillConfig, resolve
    from asr_kd.distill.foreign_targets import dense_targets, sparse_targets, widest_frame
    from asr_kd.hmm.imported import load_hmm
    from asr_kd.nnet.priors import read_log_priors
    from asr_kd.store.ali import AliReader, require_fit
    from asr_kd.store.feats import FeatsReader
    from asr_kd.store.targets import write_targets

    distill, reader, ali = resolve(DistillConfig, args.values), FeatsReader(args.feats), AliReader(args.ali)
    require_fit(ali.layout, reader.layout, (str(args.ali), str(args.feats)))
    tables = args.posteriors or [args.sparse]
    _check_targets(args, distill, ali.num_pdfs)
    digests = [_table_digest(table) for table in tables]
    log_priors = None if args.counts is None else read_log_priors(args.counts, args.prior_floor)
    t2pdf = None
    if args.transition_ids_of is not None:
        hmm = load_hmm(args.transition_ids_of)
        if hmm.digest != ali.model_digest:
            raise AsrKdError(f"{args.transition_ids_of}: is another HMM than that of {args.ali}")
        t2pdf = hmm.t2pdf

    def work() -> None:
        top_k = distill.top_k
        if args.sparse:
            top_k = min(top_k or ali.num_pdfs, widest_frame(args.sparse), ali.num_pdfs - 1)
            blocks = sparse_targets(
                args.sparse, reader.layout, ali.num_pdfs, top_k, normalize=args.normalize, t2pdf=t2pdf
            )
        else:
            blocks = dense_targets(
                tables,
                reader.layout,
                ali.num_pdfs,
                temperature=distill.temperature,
                stored_temperature=args.stored_temperature,
                combination=distill.combination,
                top_k=top_k,
                logits=args.logits,
                log_priors=log_priors,
            )
        write_targets(
            args.out,
            reader.layout,
            blocks,
            num_pdfs=ali.num_pdfs,
            top_k=top_k,
            attributes={
                "temperature": distill.temperature,
                "mean": distill.combination,
                "members": digests,
                "out_of_fold": False,
                "content_digest": reader.content_digest,
                "model_digest": ali.model_digest,
            },
        )
        log(f"{args.out}: {reader.layout.num_frames:,} frames, {args.out.stat().st_size / 1e6:.1f} MB")

    make(
        args.out,
        work,
        command=args.command_line,
        tables=digests,
        feats=reader.content_digest,
        ali=[ali.model_digest, ali.num_pdfs],
        how={key: getattr(distill, key) for key in ("temperature", "combination", "top_k")},
        options=[args.stored_temperature, args.logits, args.normalize, bool(args.sparse)],
        priors=None if log_priors is None else log_priors.tolist(),
        t2pdf=None if t2pdf is None else t2pdf.tolist(),
    )


def _check_targets(args: argparse.Namespace, distill: "DistillConfig", num_pdfs: int) -> None:
    """Raise AsrKdError for options that do not go together."""
    if not 0 < args.stored_temperature < math.inf:
        raise AsrKdError(f"--stored-temperature {args.stored_temperature:g}: must be above 0, and finite")
    require_choice("--combination of foreign teachers", distill.combination, Combination)
    if distill.kept.keys() != {"top_k"}:
        raise AsrKdError(
            "top_k_kl, target_pruning random and target_bits 8 are for our own teachers; foreign ones take --top-k"
        )
    if distill.top_k is not None and not 0 < distill.top_k <= num_pdfs:
        raise AsrKdError(f"--top-k {distill.top_k}: must lie between 1 and the number of states, {num_pdfs}")
    if args.sparse is None:
        if args.normalize or args.transition_ids_of is not None:
            raise AsrKdError("--normalize and --transition-ids-of go with --sparse alone")
        return
    if args.logits or args.counts is not None:
        raise AsrKdError("--logits and --counts go with --posteriors; a Posterior table holds weights")
    if distill.temperature != args.stored_temperature:
        raise AsrKdError(
            f"--temperature {distill.temperature:g}: a few states a frame cannot be brought to it from the "
            f"--stored-temperature {args.stored_temperature:g}; give both the temperature that the teacher had"
        )


def _table_digest(table: str) -> str:
    """What a teacher's table depends on; raises AsrKdError for the standard input, which cannot be read again."""
    if not names_table(table):  # HDF5
        return file_digest([table])
    kinds, file = parse_specifier(table)
    if file == "-":
        raise AsrKdError(f"{table}: targets are made of files, which can be read again")
    return _scp_digest(Path(file)) if "scp" in kinds else file_digest([file])
