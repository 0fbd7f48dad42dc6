#!/usr/bin/env python3
"""Filterbanks against torchaudio.compliance.kaldi.fbank: ratio of speeds and largest difference, on one thread.

Both run in turn over the same generated waveforms; the median of the ratios is printed. Needs torchaudio, which imports
only beside a CUDA build of torch.
"""

import argparse
import statistics
import sys
import time

import numpy as np
import torch

from asr_kd.cli_common import run_main
from asr_kd.errors import AsrKdError
from asr_kd.features.fbank import compute_fbank
from asr_kd.features.options import FbankOptions


def seconds(function, waveforms: list[torch.Tensor]) -> float:
    """Wall time of one pass over all waveforms."""
    begin = time.perf_counter()
    for waveform in waveforms:
        function(waveform)
    return time.perf_counter() - begin


def main(args: argparse.Namespace) -> None:
    """Print one row for each length of utterance."""
    try:
        from torchaudio.compliance import kaldi
    except (ImportError, OSError) as error:
        raise AsrKdError(f"torchaudio cannot be imported ({error}); see asr-kd env") from error
    torch.set_num_threads(1)
    options = FbankOptions()

    def peer(waveform: torch.Tensor) -> torch.Tensor:
        return kaldi.fbank(waveform[None], num_mel_bins=40, dither=0.0)

    print("utterance  ours frames/s  torchaudio frames/s  ratio (median of runs)  largest difference")
    for length in (1, 3, 10):
        rng = np.random.default_rng(length)
        waves = [torch.from_numpy(rng.normal(0, 3000, 16000 * length).astype(np.float32)) for _ in range(60 // length)]
        difference = max(float((compute_fbank(wave, options) - peer(wave)).abs().max()) for wave in waves)
        num_frames = sum(len(peer(wave)) for wave in waves)
        pairs = [(seconds(lambda w: compute_fbank(w, options), waves), seconds(peer, waves)) for _ in range(args.runs)]
        ours, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratio = statistics.median(b / a for a, b in pairs)
        print(
            f"{length:6d} s  {num_frames / ours:13,.0f}  {num_frames / theirs:19,.0f}  {ratio:22.2f}  {difference:.1e}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9, help="counted runs of each (default 9)")
    sys.exit(run_main(main, parser))
