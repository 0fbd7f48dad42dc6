"""`asr-kd env`."""

import argparse
import importlib
import importlib.metadata

from asr_kd.commands.command import command
from asr_kd.errors import install_hint

PARTS = {
    "soundfile": ("reading audio", "pip install soundfile"),
    "librosa": ("resampling and pictures of audio", install_hint("audio")),
    "torchaudio": (
        "the peer that filterbanks are measured against; nothing else uses it",
        install_hint("audio"),
    ),
    "kaldi_hmm_gmm": ("HMMs, alignment, graphs", install_hint("hmm")),
    "kaldifst": ("HMMs, alignment, graphs", install_hint("hmm")),
    "numba": ("features and decoding", "pip install numba"),
    "espeakng_loader": ("the embedded corpus of recipes/mini (GPLv3)", install_hint("mini")),
}


@command("env", "what this environment can do")
def env(args: argparse.Namespace) -> None:
    """Print versions, devices, and which parts are missing."""
    import torch

    from asr_kd.nnet.device import resolve_device, resolve_precision
    from asr_kd.runinfo import run_info

    device = resolve_device("auto")
    info = run_info(device=str(device))
    for key in ("version", "git_commit", "python", "platform", "torch", "numpy", "num_cores", "num_threads", "device"):
        print(f"{key:12} {info[key]}")
    print(f"{'precision':12} {str(resolve_precision('auto', device)).removeprefix('torch.')}")
    for module, (purpose, remedy) in PARTS.items():
        print(f"{module:16} {check_part(module, remedy, torch.version.cuda)}  [{purpose}]")


def check_part(module: str, remedy: str, cuda_version: str | None) -> str:
    """Whether a part can be imported and, if not, what to do; cuda_version is torch's, None if it is CPU-only."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        return f"missing ({error.name}): {remedy}"
    except (ImportError, OSError) as error:
        if module == "torchaudio" and cuda_version is None:
            return (
                "cannot be imported beside this CPU-only torch: torchaudio 2.11 needs a CUDA build of torch, even "
                "without a GPU; everything else works without it"
            )
        return f"installed, but cannot be imported ({' '.join(str(error).split())})"
    try:
        return importlib.metadata.version(module.replace("_", "-"))
    except importlib.metadata.PackageNotFoundError:
        return "ok"
