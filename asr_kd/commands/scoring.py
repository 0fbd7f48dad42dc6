"""`asr-kd decode`, `score`, `report`."""

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from asr_kd.cli_common import log
from asr_kd.commands.command import command, option, output, path
from asr_kd.commands.options import COUNTS, DEVICE, GRAPH, NJ, SEARCH, SYSTEMS, resolve_compute
from asr_kd.config import DecodeConfig, resolve
from asr_kd.distill.specialist_inference import SPECIALISTS
from asr_kd.errors import AsrKdError
from asr_kd.nnet.priors import read_decoding_priors
from asr_kd.runinfo import file_digest, make, require_ours, run_info
from asr_kd.scoring.schema import HEADLINE
from asr_kd.scoring.significance import RESAMPLING_UNITS
from asr_kd.scoring.system_list import SystemSpec, read_systems
from asr_kd.store.atomic import write_json
from asr_kd.store.parsing import parse_json


@command(
    "decode",
    "turn nets into words",
    SYSTEMS,
    GRAPH,
    COUNTS,
    path("--dev-feats", "features to tune the scales on"),
    path("--dev-data", "their data directory"),
    path("--test-feats", "features to decode"),
    path("--test-data", "their data directory"),
    path("--out", "folder of the words"),
    option("--lattices", "write lattices of dev and test too", action="store_true"),
    NJ,
    DEVICE,
    config=[*SEARCH, "lattice_beam", "acwts", "insertion_penalties", "tuning_utts", "precision", "top_n"],
)
def decode(args: argparse.Namespace) -> None:
    """Decode dev and test with every system of systems.yaml; scales are chosen on dev.

    Writes OUT/NAME/scales.json, OUT/NAME/seedK/{dev,test}.txt (Kaldi's text), OUT/NAME/seed1/test.path.h5 (the states
    of the paths, for the report's picture) and OUT/NAME/decode.json; with --lattices also
    OUT/NAME/seedK/{dev,test}.lat.gz, Kaldi's tables of lattices, made at the chosen scales.
    """
    from asr_kd.hmm.graph import Graph
    from asr_kd.scoring.decoding import SetDecoder, references
    from asr_kd.store.feats import FeatsReader

    config, compute = resolve(DecodeConfig, args.values), resolve_compute(args)
    if args.lattices and config.lattice_beam > config.beam:
        raise AsrKdError(f"lattice_beam {config.lattice_beam:g}: must be at most the beam, {config.beam:g}")
    graph = Graph.load(args.graph)
    sets = {"dev": FeatsReader(args.dev_feats), "test": FeatsReader(args.test_feats)}
    refs = {name: references(getattr(args, f"{name}_data"), reader) for name, reader in sets.items()}
    if shared := refs["dev"].keys() & refs["test"].keys():
        log(
            f"warning: {len(shared)} utterances, such as {min(shared)}, are in dev and in test: scales are chosen on "
            "what is scored"
        )
    priors = read_decoding_priors(args.counts, config.prior_floor, graph.num_pdfs)
    clock = time.process_time if compute.device.type == "cpu" else time.perf_counter
    with SetDecoder(graph, priors, config, args.nj, clock) as decoder:
        for system in read_systems(args.systems):
            out = args.out / system.name
            require_ours(out)
            seeds = [out / f"seed{number}" for number in range(1, len(system.nets) + 1)]
            make(
                out,
                lambda out=out, system=system: _decode_system(
                    out, system, decoder, sets, refs["dev"], compute, args.values["top_n"], args.lattices
                ),
                command=args.command_line,
                holds=[out / "scales.json", *(seed / f"{name}.txt" for seed in seeds for name in sets)],
                nets=[[card["digest"] for card in cards] for cards in system.cards()],
                combination=system.combination,
                graph=graph.digest,
                counts=file_digest([args.counts]),
                feats=[reader.content_digest for reader in sets.values()],
                refs=refs,
                config=config,
                outputs=["txt", "path.h5", *(["lat.gz"] if args.lattices else [])],
                **_how_called(system, args.values),
            )


def _how_called(system: SystemSpec, values: dict[str, Any]) -> dict[str, Any]:
    """What else the answers of specialists depend on."""
    return {"top_n": values["top_n"]} if system.combination == SPECIALISTS else {}


def _posteriors(system: SystemSpec, nets, reader, compute, top_n: int, model_digest: str | None = None):
    from asr_kd.scoring.set_posteriors import SetPosteriors

    combination = system.combination or "arithmetic"  # a single net's
    how = {"top_n": top_n, "model_digest": model_digest}
    return SetPosteriors(nets, reader, combination, compute.device, compute.dtype, **how)


def _decode_system(out, system: SystemSpec, decoder, sets, dev_refs, compute, top_n: int, lattices: bool) -> None:
    from asr_kd.hmm.lattice_table import write_lattices
    from asr_kd.scoring.decoding import LATTICE_FILE, PATH_FILE, load_nets, write_hyps
    from asr_kd.scoring.set_posteriors import kept_if_small
    from asr_kd.store.ali import FAILED, write_ali

    scales, rtfs = None, []
    for number, paths in enumerate(system.nets, 1):
        nets = load_nets(paths, compute.device)
        for name, reader in sets.items():
            seed = out / f"seed{number}"
            log_post = _posteriors(system, nets, reader, compute, top_n, decoder.model_digest)
            if scales is None:
                # Tuned on, and decoded: where the answers can be kept, the nets give them once.
                log_post = kept_if_small(log_post, reader.layout.utt_ids, decoder.num_pdfs)
                scales = decoder.tune(log_post, dev_refs)
            path_pdf = np.full(reader.layout.num_frames, FAILED) if number == 1 and name == "test" else None
            before = decoder.seconds
            hyps = decoder.decode(log_post, scales.acwt, scales.insertion_penalty, path_pdf)
            seconds = decoder.seconds - before
            if unfinished := decoder.unfinished:
                log(
                    f"warning: {system.name}, {name}: {len(unfinished)} of {len(hyps)} utterances, such as "
                    f"{unfinished[0]}, come to no end of the graph; their words are those of the best path that is left"
                )
            if name == "test":
                rtfs.append(seconds / (reader.layout.num_frames * reader.layout.frame_shift_ms / 1000.0))
            write_hyps(seed / f"{name}.txt", hyps)
            if path_pdf is not None:
                write_ali(
                    seed / PATH_FILE.format(split=name),
                    reader.layout,
                    path_pdf,
                    num_pdfs=decoder.num_pdfs,
                    model_digest=decoder.model_digest,
                    sil_pdfs=(),
                )
            if lattices:
                found = decoder.lattices(log_post, scales.acwt, scales.insertion_penalty)
                write_lattices(f"ark:{seed / LATTICE_FILE.format(split=name)}", found)
    write_json(out / "scales.json", dataclasses.asdict(scales))
    digests = [[card["digest"] for card in seed] for seed in system.cards()]
    write_json(out / "decode.json", {"decode_rtf": float(np.mean(rtfs)), "nets": digests})
    log(
        f"{system.name}: acwt {scales.acwt:g}, insertion penalty {scales.insertion_penalty:g}, "
        f"dev WER {min(row['wer'] for row in scales.tried):.2f} %, {np.mean(rtfs):.4f} x real time per core"
    )


@command(
    "score",
    "frame accuracy and WER of systems, utterance by utterance",
    SYSTEMS,
    path("--decoded", "folder made by asr-kd decode"),
    option("--split", "which of the decoded sets", choices=["dev", "test"], required=True),
    path("--feats", "features of the set"),
    path("--ali", "its states"),
    path("--data", "Kaldi data directory with the references"),
    path("--vocabulary", "words.txt of the graph: count the words that it lacks", required=False),
    path("--out", "folder of the scores"),
    DEVICE,
    config=["precision", "top_n", "score_letters"],
)
def score(args: argparse.Namespace) -> None:
    """Score every system of systems.yaml on one set: OUT/NAME.json holds counts per utterance and seed."""
    from asr_kd.lm.text import read_vocabulary
    from asr_kd.scoring import systems
    from asr_kd.scoring.decoding import references
    from asr_kd.store.ali import AliReader, require_fit
    from asr_kd.store.feats import FeatsReader
    from asr_kd.training.data import digest_of

    compute = resolve_compute(args)
    reader, ali = FeatsReader(args.feats), AliReader(args.ali)
    require_fit(ali.layout, reader.layout, (str(args.ali), str(args.feats)))
    refs = references(args.data, reader)
    vocabulary = None if args.vocabulary is None else set(read_vocabulary(args.vocabulary))
    for system in read_systems(args.systems):

        def work(system: SystemSpec = system) -> None:
            scores = _score_system(args, system, reader, ali, refs, vocabulary, compute)
            scores.save(args.out / f"{system.name}.json")
            num_seeds = len(scores.seeds)
            log(
                f"{system.name}: {args.split} frame accuracy "
                f"{100 * scores.correct.sum() / (scores.num_frames.sum() * num_seeds):.2f} %, "
                f"WER {100 * scores.errors.sum() / (scores.num_ref_words.sum() * num_seeds):.2f} %"
            )

        make(
            args.out / f"{system.name}.json",
            work,
            command=args.command_line,
            system=[system.name, system.role, system.combination],
            nets=[[card["digest"] for card in cards] for cards in system.cards()],
            decoded=_decode_record(args.decoded / system.name),
            hyps=file_digest(sorted((args.decoded / system.name).glob(f"seed*/{args.split}.txt"))),
            feats=reader.content_digest,
            ali=[ali.model_digest, digest_of(ali.pdf)],
            refs=refs,
            dtype=compute.dtype,
            version=systems.VERSION,
            **_how_called(system, args.values),
            **({"score_letters": True} if args.values["score_letters"] else {}),
            **({} if vocabulary is None else {"vocabulary": sorted(vocabulary)}),
        )


def _score_system(args, system: SystemSpec, reader, ali, refs, vocabulary, compute):
    from asr_kd.scoring.decoding import load_nets, read_hyps
    from asr_kd.scoring.frame_detail import over_seeds
    from asr_kd.scoring.frames import per_utterance_frame_scores
    from asr_kd.scoring.labels import ali_labels
    from asr_kd.scoring.systems import SystemScores
    from asr_kd.scoring.wer import as_letters, count_errors

    decoded = args.decoded / system.name
    utt_ids, cards = list(reader.layout.utt_ids), system.cards()
    record = _decode_record(decoded)
    if record["nets"] != [[card["digest"] for card in seed] for seed in cards]:
        raise AsrKdError(f"{decoded}: decoded with other nets than those of system {system.name} now; decode again")
    labels = ali_labels(ali)
    by_seed, hyps, errors, letter_errors = [], [], [], []
    for number, paths in enumerate(system.nets, 1):
        nets = load_nets(paths, compute.device)
        if nets[0].labels["model_digest"] != ali.model_digest:
            raise AsrKdError(f"{ali.path}: its states are of another HMM than those of system {system.name}")
        posteriors = _posteriors(system, nets, reader, compute, args.values["top_n"])
        by_seed.append(per_utterance_frame_scores(posteriors.blocks(), labels))
        hyps.append(read_hyps(decoded / f"seed{number}" / f"{args.split}.txt"))
        if missing := [utt_id for utt_id in utt_ids if utt_id not in hyps[-1]]:
            raise AsrKdError(f"{decoded}/seed{number}/{args.split}.txt: has no line for {missing[0]}; decode again")
        seed_errors, num_ref = count_errors(refs, hyps[-1], utt_ids)
        errors.append(seed_errors)
        if args.values["score_letters"]:
            seed_errors, num_letters = count_errors(as_letters(refs), as_letters(hyps[-1]), utt_ids)
            letter_errors.append(seed_errors)
    trainings = [[card["training"] for card in seed] for seed in cards]
    return SystemScores(
        name=system.name,
        role=system.role,
        num_members=max(map(len, system.nets)),
        combination=system.combination,
        num_parameters=sum(card["num_parameters"] for card in cards[0]),
        seeds=[seed[0]["seed"] for seed in trainings],
        utt_ids=utt_ids,
        spk_ids=reader.spk_ids,
        num_frames=by_seed[0].num_frames,
        num_nonsil=by_seed[0].num_nonsil,
        correct=np.stack([scores.correct for scores in by_seed]),
        correct_nonsil=np.stack([scores.correct_nonsil for scores in by_seed]),
        xent_sum=np.stack([scores.xent_sum for scores in by_seed]),
        errors=np.stack(errors),
        num_ref_words=num_ref,
        hyps=hyps,
        refs=refs,
        decode_rtf=record["decode_rtf"],
        train_frames_per_second=float(np.mean([t["frames_per_second"] for seed in trainings for t in seed])),
        train_seconds=float(np.mean([sum(t["train_seconds"] for t in seed) for seed in trainings])),
        num_oov_words=None if vocabulary is None else _count_missing(refs, utt_ids, vocabulary),
        **(_letter_scores(letter_errors, num_letters) if letter_errors else {}),
        correct_top5=np.stack([scores.correct_top5 for scores in by_seed]),
        detail=over_seeds([scores.detail for scores in by_seed]),
        split=args.split,
    )


def _letter_scores(errors, num_ref) -> dict[str, Any]:
    return {"phone_errors": np.stack(errors), "num_ref_phones": num_ref, "per_unit": "letter"}


def _count_missing(refs: dict[str, str], utt_ids, vocabulary: set[str]) -> np.ndarray:
    return np.array([sum(word not in vocabulary for word in refs[utt_id].split()) for utt_id in utt_ids])


def _decode_record(decoded: Path) -> dict[str, Any]:
    """What asr-kd decode noted of a system; raises AsrKdError where it did not, or not all."""
    try:
        record = parse_json((decoded / "decode.json").read_text())
        return {"nets": record["nets"], "decode_rtf": float(record["decode_rtf"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AsrKdError(f"{decoded}: was not decoded (decode.json: {error}); run asr-kd decode first") from error


@command(
    "report",
    "results.json and the HTML page",
    SYSTEMS,
    path("--scores", "folder made by asr-kd score on the test set"),
    path("--dev-scores", "the same on dev, where the headline is chosen"),
    option("--split", "name of the scored set (default test)", default="test"),
    option("--recipe", "name for the page", required=True),
    option("--preset", "name for the page", required=True),
    option("--resampling-unit", "auto: speakers from 20 on", choices=RESAMPLING_UNITS, default="auto"),
    path("--sweep", "sweep.json made by asr-kd sweep", required=False),
    path("--commands", "file of the commands that made this, one a line", required=False),
    path(
        "--decoded",
        "folder made by asr-kd decode: draw an utterance of the student's; needs the next three",
        required=False,
    ),
    path("--feats", "features of the test set", required=False),
    path("--ali", "its states", required=False),
    path("--hmm", "folder made by asr-kd train-hmm, for its lexicon", required=False),
    path("--data", "data directory of the test set: draw the audio, not the features", required=False),
    option("--utterance", "the one to draw (default: one of handy length with an error)"),
    output("--out", "folder of the report", mark="results.json"),
    config=[],
)
def report(args: argparse.Namespace) -> None:
    """Choose the headline systems on dev and compare them on test.

    Writes OUT/results.json, OUT/index.html (one file that loads nothing), OUT/tables/*.csv and *.tex, and
    OUT/RESULTS.row.md.
    """
    from asr_kd.scoring.report import ReportContext, results_row, write_report
    from asr_kd.scoring.results import build_results
    from asr_kd.scoring.systems import SystemScores
    from asr_kd.store.atomic import write_text

    specs = read_systems(args.systems)
    systems = [SystemScores.load(args.scores / f"{spec.name}.json") for spec in specs]
    for scores in systems:
        if scores.split not in (None, args.split):
            raise AsrKdError(f"--scores {args.scores}: are of the set {scores.split}, not of {args.split} (--split)")
    dev = [SystemScores.load(args.dev_scores / f"{spec.name}.json") for spec in specs]
    results = build_results(
        args.recipe, args.preset, args.split, systems, choose_headline(dev), resampling_unit=args.resampling_unit
    )
    curves = {
        f"{spec.name} seed {card['training']['seed']}": card["training"]["history"]
        for spec in specs
        if max(map(len, spec.nets)) == 1
        for (card,) in spec.cards()
    }
    sweep = _read_sweep(args.sweep) if args.sweep else []
    commands = args.commands.read_text(errors="replace").splitlines() if args.commands else []
    trio = [scores for scores in systems if scores.name in results["headline"].values()]
    context = ReportContext(
        curves=curves,
        sweep=sweep,
        config=args.values,
        run_info=run_info(args.command_line),
        commands=commands,
        details={scores.name: scores.detail for scores in trio if scores.detail is not None},
        utterance=_utterance_view(args, next(s for s in systems if s.name == results["headline"]["student"])),
    )
    write_report(args.out, results, context)
    write_text(args.out / "RESULTS.row.md", results_row(results) + "\n")
    log(f"{args.out / 'index.html'}")


def _read_sweep(path: Path) -> list[dict[str, Any]]:
    """What asr-kd sweep tried; raises AsrKdError where the file is not its list."""
    keys = {"temperature", "soft_weight", "combination", "dev_frame_acc", "dev_xent"}
    try:
        rows = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AsrKdError(f"{path}: is not JSON ({error}); run asr-kd sweep again") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) and keys <= set(row) for row in rows):
        raise AsrKdError(f"{path}: is not a list of settings as asr-kd sweep writes it")
    return rows


def _utterance_view(args, student):
    """An utterance as the student's first seed recognised it; None where the options or the path are not there."""
    from asr_kd.corpus.lexicon import read_lexicon_in
    from asr_kd.scoring.decoding import PATH_FILE
    from asr_kd.scoring.utterance_view import choose_utterance, view_utterance
    from asr_kd.store.ali import AliReader, require_fit
    from asr_kd.store.feats import FeatsReader

    if args.decoded is None:
        return None
    for needed in ("feats", "ali", "hmm"):
        if getattr(args, needed) is None:
            raise AsrKdError(f"--decoded: to draw an utterance, --{needed} is needed too")
    reader, ali = FeatsReader(args.feats), AliReader(args.ali)
    require_fit(ali.layout, reader.layout, (str(args.ali), str(args.feats)))
    found = AliReader(args.decoded / student.name / "seed1" / PATH_FILE.format(split=args.split))
    require_fit(found.layout, ali.layout, (str(found.path), str(args.ali)))
    hyps = student.hyps[0]
    utt_id = args.utterance or choose_utterance(ali, found, student.refs, hyps)
    if utt_id is None or utt_id not in hyps:
        raise AsrKdError(f"--utterance: {utt_id or 'no utterance'} can be drawn; {args.ali} has no such aligned one")
    lexicon = read_lexicon_in(args.hmm)
    picture = _picture(args, reader, utt_id)
    return view_utterance(
        utt_id, student.name, ali, found, student.refs[utt_id], hyps[utt_id], lexicon.entries, picture
    )


def _picture(args, reader, utt_id: str):
    """The audio's spectrogram; the features where there is no data directory or librosa."""
    from asr_kd.scoring.utterance_plot import audio_picture, mel_picture

    try:
        if args.data is not None:
            from asr_kd.corpus.datadir import read_data_dir
            from asr_kd.features.audio import read_samples

            utterance = next(u for u in read_data_dir(args.data, need_text=False) if u.utt_id == utt_id)
            sample_rate = int(reader.attrs["sample_rate"])
            return audio_picture(read_samples(utterance, sample_rate), sample_rate)
    except (AsrKdError, ImportError, StopIteration) as error:
        log(f"warning: {utt_id}: the features are drawn, not the audio ({error})")
    return mel_picture(reader[utt_id], reader.layout.frame_shift_ms / 1000.0)


def choose_headline(dev: list) -> dict[str, str]:
    """The best baseline, ensemble and student by frame accuracy on dev; raises AsrKdError where a role is missing.

    Where no student has seen the baseline's speech alone, a control is it.
    """
    headline = {}
    for role in HEADLINE:
        candidates = [scores for scores in dev if scores.role == role]
        if role == "student":
            candidates = candidates or [scores for scores in dev if scores.role == "control"]
        if not candidates:
            raise AsrKdError(f"no system has the role {role}; a report compares baseline, ensemble and student")
        best = max(candidates, key=lambda s: s.correct.sum() / (s.num_frames.sum() * len(s.seeds)))
        headline[role] = best.name
    return headline
