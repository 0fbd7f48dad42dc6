"""A folder with a net for Kaldi's nnet1: what nnet-forward and steps/nnet/decode.sh take.

final.nnet                 the net, as text
final.feature_transform    CMVN where it is the same for all utterances, and the splicing of frames
cmvn_opts                  of apply-cmvn, which goes before, where CMVN is of the speaker or the utterance
ali_train_pdf.counts       if it is given: priors, for --class-frame-counts
final.mdl, tree            if the HMM is given: with the counts steps/nnet/decode.sh decodes with the folder
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from asr_kd.errors import AsrKdError
from asr_kd.hmm.imported import load_hmm
from asr_kd.nnet.net_dir import TrainedNet
from asr_kd.nnet.nnet1 import net_components, transform_components, write_nnet
from asr_kd.nnet.plain_layers import require_exportable
from asr_kd.nnet.priors import read_counts
from asr_kd.store.atomic import atomic_dir, require_replaceable

NNET, TRANSFORM, CMVN_OPTS, COUNTS = "final.nnet", "final.feature_transform", "cmvn_opts", "ali_train_pdf.counts"


def export_nnet1(
    out: str | Path,
    trained: TrainedNet,
    *,
    counts: str | Path | None = None,
    hmm: str | Path | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> None:
    """Write the folder `out`, as a whole or not at all.

    counts: ali_train_pdf.counts; hmm: folder made by asr-kd train-hmm or import-kaldi. Raises AsrKdError where they are
    of other states than the net, or `out` is a folder of something else; warns through log where the HMM has no tree.
    """
    require_exportable([trained])
    out, num_pdfs = Path(out), trained.net.architecture.num_pdfs
    require_replaceable(out, NNET)
    if counts is not None and len(read_counts(counts)) != num_pdfs:
        raise AsrKdError(f"{counts}: counts of {len(read_counts(counts))} states, but the net has {num_pdfs}")
    if hmm is not None and load_hmm(hmm).digest != trained.labels["model_digest"]:
        raise AsrKdError(f"{hmm}: is another HMM than that whose states the net was trained on")
    with atomic_dir(out) as folder:
        write_nnet(folder / NNET, net_components(trained))
        write_nnet(folder / TRANSFORM, transform_components(trained))
        if not trained.cmvn.fixed:
            (folder / CMVN_OPTS).write_text("--norm-means=true --norm-vars=true\n")
        if counts is not None:
            shutil.copyfile(counts, folder / COUNTS)
        for name in ("final.mdl", "tree") if hmm is not None else ():
            if (Path(hmm) / name).exists():
                shutil.copyfile(Path(hmm) / name, folder / name)
            else:  # an imported system may lack its tree
                log(f"warning: {hmm} has no {name}, which Kaldi's scripts look for; copy the system's own into {out}")
