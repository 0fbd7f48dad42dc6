#!/usr/bin/env python3
"""Filterbanks from warm-cache 16-bit wav files to a closed HDF5 file, against a loop over torchaudio's, on one core.

In each round all run in turn over the same recordings, and the time of each is compared with that of
torchaudio.compliance.kaldi.fbank over waveforms that lie in memory, in the same round; the median of the ratios is
printed, above 1 for what is faster. "User's" is torchaudio or another peer written as a user writes it, from reading
the files to a data set of HDF5 for each utterance. With --memory, the peak memory of an extraction of a corpus is
measured against one of 16 times its size. Peers that are not installed are named and left out.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import soundfile
import torch

from asr_kd.cli_common import log, run_main
from asr_kd.errors import AsrKdError
from asr_kd.features.extract import extract
from asr_kd.features.fbank import compute_fbank, compute_fbanks
from asr_kd.features.options import FbankOptions
from asr_kd.features.wav_list import utterances_of_files

RATE = 16000
OPTIONS = FbankOptions()
Way = Callable[[], object]


def make_wavs(folder: Path, total_s: int, length_s: float) -> list[Path]:
    """Recordings of noise, 16 bits at 16 kHz, `total_s` seconds in all."""
    rng = np.random.default_rng(0)
    paths = []
    for i in range(max(1, round(total_s / length_s))):
        paths.append(folder / f"utt{i:06d}.wav")
        soundfile.write(paths[-1], rng.normal(0, 3000, round(RATE * length_s)).astype(np.int16), RATE)
    return paths


def _import_torchaudio():
    try:
        from torchaudio.compliance import kaldi
    except (ImportError, OSError) as error:
        raise AsrKdError(f"torchaudio cannot be imported ({error}); see asr-kd env") from error
    return kaldi


def _users_loop(paths: list[Path], out: Path, fbank: Callable[[np.ndarray], np.ndarray]) -> Way:
    """Features as most people store them: read, compute, one data set for each utterance."""

    def run() -> None:
        with h5py.File(out, "w") as file:
            for path in paths:
                samples, _ = soundfile.read(path, dtype="float32")
                file[path.stem] = fbank(samples * 32768)

    return run


def kaldi_native_fbank(samples: np.ndarray) -> np.ndarray:
    """A peer in C++; it gives its frames one at a time."""
    import kaldi_native_fbank as knf

    options = knf.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.samp_freq = RATE
    options.mel_opts.num_bins = OPTIONS.num_mel_bins
    computer = knf.OnlineFbank(options)
    computer.accept_waveform(RATE, samples)
    computer.input_finished()
    return np.stack([computer.get_frame(i) for i in range(computer.num_frames_ready)])


def lhotse_fbank() -> Callable[[np.ndarray], np.ndarray]:
    """A peer in torch, from speech toolkits."""
    from lhotse.features.kaldi import Fbank, FbankConfig

    extractor = Fbank(FbankConfig(sampling_rate=RATE, num_filters=OPTIONS.num_mel_bins, dither=0.0))
    return lambda samples: extractor.extract(samples / 32768, RATE)


def ways_of(paths: list[Path], folder: Path) -> tuple[Way, dict[str, Way]]:
    """The loop that all are compared with, and everything else, by name."""
    kaldi = _import_torchaudio()
    waves = [soundfile.read(path, dtype="int16")[0].astype(np.float32) for path in paths]
    tensors = [torch.from_numpy(wave) for wave in waves]

    def torchaudio_fbank(wave: torch.Tensor) -> torch.Tensor:
        return kaldi.fbank(wave[None], num_mel_bins=OPTIONS.num_mel_bins, dither=0.0)

    pairs = zip(waves[:20], tensors[:20], strict=True)
    difference = max(np.abs(compute_fbank(wave, OPTIONS) - torchaudio_fbank(t).numpy()).max() for wave, t in pairs)
    log(f"largest difference from torchaudio: {difference:.1e}")

    def ours() -> None:
        (folder / "ours.h5").unlink(missing_ok=True)
        extract(utterances_of_files(paths), folder / "ours.h5", OPTIONS)

    def batches() -> None:
        for first in range(0, len(waves), 8):
            compute_fbanks(waves[first : first + 8], OPTIONS)

    ways = {
        "extract_fbank, wav to HDF5": ours,
        "compute_fbanks, in memory": batches,
        "compute_fbank one by one, in memory": lambda: [compute_fbank(wave, OPTIONS) for wave in waves],
        "torchaudio, user's": _users_loop(
            paths, folder / "torchaudio.h5", lambda samples: torchaudio_fbank(torch.from_numpy(samples)).numpy()
        ),
    }
    for name, peer in (("kaldi-native-fbank", lambda: kaldi_native_fbank), ("lhotse", lhotse_fbank)):
        try:
            fbank = peer()
            fbank(waves[0])
        except ImportError:
            log(f"{name} is not installed, and left out")
            continue
        ways[f"{name}, user's"] = _users_loop(paths, folder / "peer.h5", fbank)
    return lambda: [torchaudio_fbank(tensor) for tensor in tensors], ways


def seconds(way: Way, clock: Callable[[], float]) -> float:
    """Time of one run."""
    begin = clock()
    way()
    return clock() - begin


def compare(paths: list[Path], folder: Path, args: argparse.Namespace) -> None:
    """Print a row for each way."""
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    loop, ways = ways_of(paths, folder)
    rounds = []
    for _ in range(args.runs + 1):
        taken = {name: seconds(way, clock) for name, way in ways.items()}
        rounds.append((seconds(loop, clock), taken))
    rounds = rounds[1:]  # the first one warms up
    reference = statistics.median(time_s for time_s, _ in rounds)
    audio_s = sum(soundfile.info(path).duration for path in paths)
    print(f"{len(paths)} recordings of {audio_s / len(paths):g} s, {args.clock} time, {args.runs} rounds")
    print(f"{'':38}  ms per s of audio   speed against the loop: median (range)")
    print(f"{'torchaudio alone, in memory: the loop':38}  {1000 * reference / audio_s:17.3f}  {1:12.2f}")
    for name in ways:
        ratios = [loop_s / taken[name] for loop_s, taken in rounds]
        ours = statistics.median(taken[name] for _, taken in rounds)
        spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name:38}  {1000 * ours / audio_s:17.3f}  {statistics.median(ratios):12.2f} {spread}")


MEASURE = """
import json, resource, sys
from pathlib import Path
from asr_kd.features.extract import extract
from asr_kd.features.options import FbankOptions
from asr_kd.features.wav_list import utterances_of_files
paths = sorted(Path(sys.argv[1]).glob("*.wav"))[: int(sys.argv[2])]
extract(utterances_of_files(paths), sys.argv[3], FbankOptions())
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
"""


def memory(folder: Path) -> None:
    """Print the peak resident memory of an extraction of a corpus, and of one 16 times as large."""
    paths = make_wavs(folder, 3200, 2)
    peaks = []
    for count in (len(paths) // 16, len(paths)):
        out = folder / f"{count}.h5"
        command = [sys.executable, "-c", MEASURE, str(folder), str(count), str(out)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
        peaks.append(json.loads(done.stdout) / 1024)
        size = out.stat().st_size / 1e6
        print(f"{count:6d} utterances, feats.h5 of {size:6.1f} MB: peak resident memory {peaks[-1]:7.1f} MiB")
    print(f"16 times the corpus takes {peaks[1] - peaks[0]:.1f} MiB more")


def main(args: argparse.Namespace) -> None:
    """Make the recordings and print what was asked for."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if args.memory:
            memory(Path(folder))
        else:
            compare(make_wavs(Path(folder), args.total, args.length), Path(folder), args)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=float, default=3.0, help="seconds of a recording (default 3)")
    parser.add_argument("--total", type=int, default=1200, help="seconds of all recordings (default 1200)")
    parser.add_argument("--runs", type=int, default=7, help="counted rounds (default 7)")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="time to measure (default wall)")
    parser.add_argument("--memory", action="store_true", help="measure memory instead")
    sys.exit(run_main(main, parser))
