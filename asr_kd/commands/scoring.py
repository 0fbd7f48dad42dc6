"""`asr-kd decode`, `score`, `report`."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from asr_kd.cli_common import log
from asr_kd.commands.options import add_device_option, add_sets
from asr_kd.config import DecodeConfig, DnnConfig, add_config_options, config_from_args, resolve
from asr_kd.errors import AsrKdError
from asr_kd.nnet.device import resolve_device, resolve_precision
from asr_kd.nnet.priors import read_log_priors
from asr_kd.runinfo import file_digest, fingerprint, run_info, stamp, up_to_date
from asr_kd.scoring.system_list import SystemSpec, read_systems
from asr_kd.store.atomic import write_json


def add_decode(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "decode",
        help="turn nets into words",
        description="Decode dev and test with every system of systems.yaml; scales are chosen on dev. "
        "Writes OUT/NAME/scales.json, OUT/NAME/seedK/{dev,test}.txt (Kaldi's text) and OUT/NAME/decode.json.",
    )
    parser.add_argument("--systems", type=Path, required=True, help="systems.yaml")
    parser.add_argument("--graph", type=Path, required=True, help="folder made by asr-kd make-graph")
    parser.add_argument("--counts", type=Path, required=True, help="ali_train_pdf.counts made by asr-kd align")
    add_sets(parser, {"dev": "feats.h5 and data directory to tune on", "test": "the same to decode"}, ("feats", "data"))
    parser.add_argument("--out", type=Path, required=True)
    add_device_option(parser)
    add_config_options(parser, [DecodeConfig, DnnConfig])
    parser.set_defaults(main=decode)


def decode(args: argparse.Namespace) -> None:
    from asr_kd.hmm.graph import Graph
    from asr_kd.scoring.decoding import FrameCache, SetDecoder, references
    from asr_kd.store.feats import FeatsReader

    values = config_from_args(args)
    config, device = resolve(DecodeConfig, values), resolve_device(args.device)
    dtype = resolve_precision(values["precision"], device)
    systems = read_systems(args.systems)
    graph = Graph.load(args.graph)
    sets = {"dev": FeatsReader(args.dev_feats), "test": FeatsReader(args.test_feats)}
    refs = {name: references(getattr(args, f"{name}_data"), reader) for name, reader in sets.items()}
    decoder = SetDecoder(graph, read_log_priors(args.counts, config.prior_floor), config)
    cache = FrameCache(device, dtype)
    for system in systems:
        made_from = fingerprint(
            nets=[[card["digest"] for card in cards] for cards in system.cards()],
            combination=system.combination,
            graph=graph.digest,
            counts=file_digest([args.counts]),
            feats=[reader.content_digest for reader in sets.values()],
            refs=refs,
            config=config,
        )
        if up_to_date(args.out / system.name, made_from):
            log(f"{args.out / system.name}: up to date")
            continue
        _decode_system(args.out / system.name, system, decoder, sets, refs["dev"], cache, device, dtype)
        stamp(args.out / system.name, made_from, command=args.command_line)


def _decode_system(out, system: SystemSpec, decoder, sets, dev_refs, cache, device, dtype) -> None:
    from asr_kd.distill.soft_targets import check_members
    from asr_kd.scoring.decoding import Timer, load_nets, log_posteriors, write_hyps

    scales, rtfs = None, []
    for number, paths in enumerate(system.nets, 1):
        nets = load_nets(paths, device)
        check_members(nets, sets["dev"], decoder.model_digest)
        for name, reader in sets.items():
            cache.frames(reader, nets[0])  # loading is not part of the real-time factor
            timer = Timer()
            log_post = log_posteriors(nets, system.combination, reader, cache, dtype)
            forward_seconds = timer.seconds()
            if scales is None:
                scales = decoder.tune(log_post, reader, dev_refs)
            timer = Timer()
            hyps = decoder.decode(log_post, reader, scales.acwt, scales.insertion_penalty)
            seconds = forward_seconds + timer.seconds()
            if name == "test":
                rtfs.append(seconds / (reader.layout.num_frames * reader.layout.frame_shift_ms / 1000.0))
            write_hyps(out / f"seed{number}" / f"{name}.txt", hyps)
    write_json(out / "scales.json", dataclasses.asdict(scales))
    digests = [[card["digest"] for card in seed] for seed in system.cards()]
    write_json(out / "decode.json", {"decode_rtf": float(np.mean(rtfs)), "nets": digests})
    log(
        f"{system.name}: acwt {scales.acwt:g}, insertion penalty {scales.insertion_penalty:g}, "
        f"dev WER {min(row['wer'] for row in scales.tried):.2f} %, real-time factor {np.mean(rtfs):.4f}"
    )


def add_score(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "score",
        help="frame accuracy and WER of systems, utterance by utterance",
        description="Score every system of systems.yaml on one set: OUT/NAME.json holds counts per utterance and seed.",
    )
    parser.add_argument("--systems", type=Path, required=True, help="systems.yaml")
    parser.add_argument("--decoded", type=Path, required=True, help="folder made by asr-kd decode")
    parser.add_argument("--split", choices=["dev", "test"], required=True, help="which of the decoded sets")
    parser.add_argument("--feats", type=Path, required=True)
    parser.add_argument("--ali", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="Kaldi data directory with the references")
    parser.add_argument("--out", type=Path, required=True)
    add_device_option(parser)
    add_config_options(parser, [DnnConfig])
    parser.set_defaults(main=score)


def score(args: argparse.Namespace) -> None:
    from asr_kd.scoring.decoding import FrameCache, references
    from asr_kd.store.ali import AliReader, require_fit
    from asr_kd.store.feats import FeatsReader

    values = config_from_args(args)
    device = resolve_device(args.device)
    dtype = resolve_precision(values["precision"], device)
    reader, ali = FeatsReader(args.feats), AliReader(args.ali)
    require_fit(ali.layout, reader.layout, (str(args.ali), str(args.feats)))
    refs = references(args.data, reader)
    cache = FrameCache(device, dtype)
    for system in read_systems(args.systems):
        scores = _score_system(args, system, reader, ali, refs, cache, device, dtype)
        scores.save(args.out / f"{system.name}.json")
        log(
            f"{system.name}: {args.split} frame accuracy "
            f"{100 * scores.correct.sum() / (scores.num_frames.sum() * len(scores.seeds)):.2f} %, "
            f"WER {100 * scores.errors.sum() / (scores.num_ref_words.sum() * len(scores.seeds)):.2f} %"
        )


def _score_system(args, system: SystemSpec, reader, ali, refs, cache, device, dtype):
    from asr_kd.scoring.decoding import load_nets, log_posteriors, read_hyps
    from asr_kd.scoring.frames import per_utterance_frame_scores
    from asr_kd.scoring.systems import SystemScores
    from asr_kd.scoring.wer import count_errors

    decoded = args.decoded / system.name
    utt_ids, cards = list(reader.layout.utt_ids), system.cards()
    record = _decode_record(decoded)
    if record["nets"] != [[card["digest"] for card in seed] for seed in cards]:
        raise AsrKdError(f"{decoded}: decoded with other nets than those of system {system.name} now; decode again")
    by_seed, hyps, errors = [], [], []
    for number, paths in enumerate(system.nets, 1):
        nets = load_nets(paths, device)
        for trained in nets:
            if trained.labels["model_digest"] != ali.model_digest:
                raise AsrKdError(f"{ali.path}: its states are of another HMM than those of system {system.name}")
        log_post = log_posteriors(nets, system.combination, reader, cache, dtype)
        by_seed.append(per_utterance_frame_scores(log_post, ali.pdf, reader.layout.offsets, ali.sil_pdfs))
        hyps.append(read_hyps(decoded / f"seed{number}" / f"{args.split}.txt"))
        seed_errors, num_ref = count_errors(refs, hyps[-1], utt_ids)
        errors.append(seed_errors)
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
    )


def _decode_record(decoded: Path) -> dict[str, Any]:
    try:
        return json.loads((decoded / "decode.json").read_text())
    except (OSError, ValueError) as error:
        raise AsrKdError(f"{decoded}: was not decoded (decode.json: {error}); run asr-kd decode first") from error


def add_report(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "report",
        help="results.json and the HTML page",
        description="Choose the headline systems on dev, compare them on test, and write OUT/results.json, "
        "OUT/index.html and OUT/RESULTS.row.md.",
    )
    parser.add_argument("--systems", type=Path, required=True, help="systems.yaml")
    parser.add_argument("--scores", type=Path, required=True, help="folder made by asr-kd score on the test set")
    parser.add_argument("--dev-scores", type=Path, required=True, help="the same on dev, where the headline is chosen")
    parser.add_argument("--split", default="test", help="name of the scored set (default test)")
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--preset", required=True)
    parser.add_argument("--resampling-unit", choices=["utterance", "speaker"], default="utterance")
    parser.add_argument("--sweep", type=Path, help="sweep.json made by asr-kd sweep")
    parser.add_argument("--commands", type=Path, help="file of the commands that made this, one a line")
    parser.add_argument("--out", type=Path, required=True)
    add_config_options(parser, [])
    parser.set_defaults(main=report)


def report(args: argparse.Namespace) -> None:
    from asr_kd.scoring.report import results_row, write_report
    from asr_kd.scoring.results import build_results
    from asr_kd.scoring.systems import SystemScores
    from asr_kd.store.atomic import write_text

    specs = read_systems(args.systems)
    systems = [SystemScores.load(args.scores / f"{spec.name}.json") for spec in specs]
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
    sweep = json.loads(args.sweep.read_text()) if args.sweep else []
    commands = args.commands.read_text().splitlines() if args.commands else []
    write_report(args.out, results, curves, sweep, config_from_args(args), run_info(args.command_line), commands)
    write_text(args.out / "RESULTS.row.md", results_row(results) + "\n")
    log(f"{args.out / 'index.html'}")


def choose_headline(dev: list) -> dict[str, str]:
    """The best baseline, ensemble and student by frame accuracy on dev; raises AsrKdError where a role is missing."""
    headline = {}
    for role in ("baseline", "ensemble", "student"):
        candidates = [scores for scores in dev if scores.role == role]
        if not candidates:
            raise AsrKdError(f"no system has the role {role}; a report compares baseline, ensemble and student")
        best = max(candidates, key=lambda s: s.correct.sum() / (s.num_frames.sum() * len(s.seeds)))
        headline[role] = best.name
    return headline
