"""`asr-kd count-errors`."""

import argparse
from dataclasses import asdict

from asr_kd.commands.command import command, path
from asr_kd.commands.options import DEVICE, resolve_compute
from asr_kd.nnet.net_dir import load_net
from asr_kd.runinfo import file_digest, make
from asr_kd.store.atomic import write_json
from asr_kd.store.feats import FeatsReader


@command(
    "count-errors",
    "count the frames that nets get wrong, state by state",
    path("--nets", "folders of nets", nargs="+", metavar="DIR"),
    path("--feats", "the set to score"),
    path("--ali", "its states"),
    path("--out", "JSON with a row for every net"),
    DEVICE,
    config=["precision"],
)
def count_errors(args: argparse.Namespace) -> None:
    """Score single nets on the labelled frames of a set: errors in all and by state, and the cross-entropy.

    For sets whose frames are independent of each other, such as images; where they are not, see asr-kd score.
    """
    from asr_kd.distill.soft_targets import check_members
    from asr_kd.scoring.error_counts import count_errors
    from asr_kd.training.data import load_set

    compute = resolve_compute(args)
    nets = {str(folder): load_net(folder) for folder in args.nets}

    def work() -> None:
        rows, sets = [], {}
        for folder, trained in nets.items():
            a, c = trained.net.architecture, trained.cmvn
            # Nets that see the same windows share them.
            key = (a.left_context, a.right_context, c.mode, c.mean.tobytes(), c.istd.tobytes())
            if key not in sets:
                contexts = {"left_context": a.left_context, "right_context": a.right_context}
                sets = {
                    key: load_set(args.feats, args.ali, cmvn=c, **contexts, device=compute.device, dtype=compute.dtype)
                }
            check_members([trained], FeatsReader(args.feats), sets[key].labels["model_digest"])
            trained.net.to(compute.device)
            counts = count_errors(trained, sets[key], compute.dtype)
            rows.append(
                {
                    "net": folder,
                    "num_parameters": trained.net.num_parameters,
                    "seed": trained.training.get("seed"),
                    "errors": counts.errors,
                    "num_frames": sum(counts.frames_by_pdf),
                    **asdict(counts),
                }
            )
        write_json(args.out, rows)
        for row in rows:
            print(f"{row['net']}: {row['errors']} errors in {row['num_frames']}, cross-entropy {row['xent']:.4f}")

    make(
        args.out,
        work,
        command=args.command_line,
        nets={folder: trained.digest for folder, trained in nets.items()},
        sets=[FeatsReader(args.feats).content_digest, file_digest([args.ali])],
        dtype=compute.dtype,
    )
