"""What several tests need: a small generated set whose states can be learned, as feats.h5 and ali.h5."""

import os
import signal
from pathlib import Path

# A shell starts what it runs in the background (`tests/run.sh &`) with interrupts ignored, and so would be all that the
# tests start: those of interrupts would wait in vain.
signal.signal(signal.SIGINT, signal.default_int_handler)
# One thread: tests of bit-for-bit equality must not depend on the machine, and small nets gain nothing from more.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

from asr_kd.cli import main
from asr_kd.features.options import FbankOptions
from asr_kd.store.ali import write_ali
from asr_kd.store.feats import FeatsReader
from asr_kd.store.feats_writer import FeatsWriter
from asr_kd.training import loop

torch.set_num_threads(1)

NUM_PDFS = 6


def train_in_pieces(argv: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command that saves after every step; it is broken off after 7, 12, 17, … saves until it ends by itself."""
    save, broken = loop.save_checkpoint, 0
    while True:
        calls = []

        def save_then_stop(folder, contents, calls=calls, after=7 + 5 * broken):
            save(folder, contents)
            calls.append(1)
            if len(calls) == after:
                raise KeyboardInterrupt

        monkeypatch.setattr(loop, "save_checkpoint", save_then_stop)
        status = main([str(a) for a in (*argv, "--checkpoint-minutes", 1e-9)])
        if status == 0:
            break
        assert status == 130
        broken += 1
    assert broken >= 3


def write_set(folder: Path, prefix: str, num_utts: int, seed: int) -> tuple[Path, Path]:
    """A feats.h5 and an ali.h5: each state is a Gaussian around its own mean, states come in runs."""
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(7).normal(size=(NUM_PDFS, 40))
    feats_path, ali_path = folder / f"{prefix}.fbank.h5", folder / f"{prefix}.ali.h5"
    pdfs = []
    with FeatsWriter(feats_path, kind="fbank", options=FbankOptions(), sample_rate=16000) as writer:
        for u in range(num_utts):
            pdf = np.repeat(rng.integers(0, NUM_PDFS, size=6), rng.integers(3, 9, size=6))
            feats = means[pdf] + rng.normal(scale=2.0, size=(len(pdf), 40))
            writer.append(f"{prefix}{u % 2}-utt{u:03d}", f"{prefix}{u % 2}", feats.astype(np.float32))
            pdfs.append(pdf)
    layout = FeatsReader(feats_path).layout
    order = {
        utt_id: pdf for utt_id, pdf in zip([f"{prefix}{u % 2}-utt{u:03d}" for u in range(num_utts)], pdfs, strict=True)
    }
    pdf = np.concatenate([order[utt_id] for utt_id in layout.utt_ids])
    write_ali(ali_path, layout, pdf, num_pdfs=NUM_PDFS, model_digest="toy", sil_pdfs=[0])
    return feats_path, ali_path


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Paths of a training and a dev set: feats, ali, dev_feats, dev_ali."""
    folder = tmp_path_factory.mktemp("toy")
    feats, ali = write_set(folder, "a", 30, seed=1)
    dev_feats, dev_ali = write_set(folder, "b", 8, seed=2)
    return {"feats": feats, "ali": ali, "dev_feats": dev_feats, "dev_ali": dev_ali}
