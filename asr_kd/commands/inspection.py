"""`asr-kd inspect`."""

import argparse
import json

from asr_kd.cli_common import log
from asr_kd.commands.command import Option, command, option, output
from asr_kd.errors import AsrKdError


@command(
    "inspect",
    "what files hold: lengths, statistics, digests, a picture",
    Option(
        "files",
        {
            "nargs": "+",
            "metavar": "FILE",
            "help": "feats.h5, ali.h5, targets.h5, the folder of a net, nets, HMM or graph, .ark, .scp, ark:FILE",
        },
    ),
    option(
        "--quick", "leave the values of feats.h5 unread; statistics are those stored beside them", action="store_true"
    ),
    option("--json", "print JSON, a list with one object a file", action="store_true"),
    output(
        "--picture",
        "draw an utterance of a feats.h5 (an ali.h5 beneath) or ark: .png, .svg, .pdf",
        required=False,
    ),
    option("--utt", "the utterance to draw; default: the first", metavar="ID"),
)
def inspect(args: argparse.Namespace) -> None:
    """Print what files hold: kind, options, lengths, statistics of each column, silence, digests.

    Every value is read, and those of feats.h5 are compared with their digests; values that are not finite or were
    changed make the exit status 1. Files that belong together may be given together: it is checked that they fit.

    example: asr-kd inspect feats/dev.fbank.h5 ali/dev.h5 --picture dev.png --utt spk1-utt1
    """
    from asr_kd.inspection import describe, flaws, format_description

    if args.utt and not args.picture:
        raise AsrKdError("--utt names the utterance of --picture, which is not given")
    found, problems = [], []
    for file in args.files:
        try:
            found.append(describe(file, args.quick))
            problems += flaws(found[-1])
            if not args.json:
                print("\n".join(format_description(found[-1])) + "\n")
        except AsrKdError as error:
            problems.append(str(error))
    if args.json:
        print(json.dumps(found, indent=1))
    problems += _layouts_that_differ(found)
    if args.picture:
        _draw(args, found)
    for problem in problems[:-1]:
        log(f"error: {problem}")
    if problems:
        raise AsrKdError(problems[-1])


def _layouts_that_differ(found: list[dict]) -> list[str]:
    """Features, alignments and targets given together are of the same frames, or there is a sentence that says so."""
    digests = {
        each["file"]: each.get("layout_digest") or each.get("attributes", {}).get("layout_digest") for each in found
    }
    files = [file for file, digest in digests.items() if digest]
    return [
        f"{file} is not of the same utterances and frames as {files[0]}"
        for file in files[1:]
        if digests[file] != digests[files[0]]
    ]


def _draw(args: argparse.Namespace, found: list[dict]) -> None:
    from asr_kd.inspection_picture import draw, draw_matrix
    from asr_kd.store.ali import AliReader
    from asr_kd.store.feats import FeatsReader

    feats = [each["file"] for each in found if each["kind"].startswith("features")]
    alis = [each["file"] for each in found if each["kind"] == "alignment"]
    tables = [each["file"] for each in found if each["kind"] == "Kaldi's table (matrix)"]
    if not feats and not alis and len(tables) == 1:
        log(f"{args.picture}: {draw_matrix(tables[0], args.utt, args.picture)}")
        return
    if len(feats) != 1 or len(alis) > 1 or tables:
        raise AsrKdError("--picture needs one feats.h5 and at most one ali.h5 among the files, or a table of Kaldi")
    with FeatsReader(feats[0]) as reader:
        if not reader.layout.num_utts:
            raise AsrKdError(f"{feats[0]}: has no utterance to draw")
        utt_id = args.utt or reader.layout.utt_ids[0]
        draw(reader, utt_id, args.picture, AliReader(alis[0]) if alis else None)
    log(f"{args.picture}: {utt_id}")
