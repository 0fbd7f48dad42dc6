"""Generated frames and soft targets, made on the device, for benchmarks that need no corpus."""

import numpy as np
import torch

from asr_kd.config import DnnConfig
from asr_kd.distill.soft_targets import StoredTargets
from asr_kd.nnet.frames import Cmvn, Frames, as_held
from asr_kd.store.hdf5 import Layout
from asr_kd.training.data import LabelledSet

FEAT_DIM, UTT_FRAMES = 40, 300
BLOCK = 1 << 17  # frames made at a time: what making them takes beside them stays small


def frames_and_states(
    num_frames: int, num_pdfs: int, seed: int, device: torch.device, held_as: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Feats (num_frames, FEAT_DIM), as_held, and states (num_frames,) int32.

    States come in runs of 3 to 11 frames, each a Gaussian around its own mean; the Gaussians overlap.
    """
    generator = torch.Generator(device).manual_seed(seed)
    same_for_all = torch.Generator(device).manual_seed(0)
    means = 0.35 * torch.randn((num_pdfs, FEAT_DIM), generator=same_for_all, device=device)
    feats = torch.empty((num_frames, FEAT_DIM), device=device, dtype=held_as)
    pdf = torch.empty(num_frames, device=device, dtype=torch.int32)
    for begin in range(0, num_frames, BLOCK):
        rows = slice(begin, min(begin + BLOCK, num_frames))
        number = rows.stop - begin
        lengths = torch.randint(3, 12, (number // 3 + 1,), generator=generator, device=device)
        states = torch.randint(num_pdfs, lengths.shape, generator=generator, device=device)
        states = states.repeat_interleave(lengths)[:number]
        pdf[rows] = states.int()
        noise = torch.randn((number, FEAT_DIM), generator=generator, device=device)
        feats[rows] = as_held(means[states] + noise, held_as)
    return feats, pdf


def labelled_set(
    num_frames: int, num_pdfs: int, seed: int, config: DnnConfig, device: torch.device, dtype: torch.dtype
) -> LabelledSet:
    """Generated frames as the training loop takes them, in utterances of UTT_FRAMES."""
    held_as = torch.int8 if config.eight_bit_frames else dtype
    feats, pdf = frames_and_states(num_frames, num_pdfs, seed, device, held_as)
    num_utts = num_frames // UTT_FRAMES
    layout = Layout.from_lengths([f"utt{u:08d}" for u in range(num_utts)], [UTT_FRAMES] * num_utts)
    frames = Frames(feats, layout, config.left_context, config.right_context, device, dtype, held_as)
    cmvn = Cmvn("global", np.zeros(FEAT_DIM, np.float32), np.ones(FEAT_DIM, np.float32))
    labels = {"num_pdfs": num_pdfs, "model_digest": "generated"}
    return LabelledSet(frames, pdf, num_pdfs, cmvn, {}, labels, f"{seed}", f"{seed}", num_utts)


def top_k_targets(num_frames: int, num_pdfs: int, k: int, device: torch.device) -> StoredTargets:
    """The k largest of every frame at T = 2, of the types in which they are stored, a tenth of the mass in the tail."""
    prob = torch.full((num_frames, k), 0.9 / k, dtype=torch.float16, device=device)
    pdf = torch.empty((num_frames, k), dtype=torch.int16 if num_pdfs <= 1 << 16 else torch.int32, device=device)
    generator = torch.Generator(device).manual_seed(3)
    apart = torch.arange(k, device=device) * (num_pdfs // k)
    for begin in range(0, num_frames, BLOCK):
        rows = slice(begin, min(begin + BLOCK, num_frames))
        first = torch.randint(num_pdfs, (rows.stop - begin, 1), generator=generator, device=device)
        pdf[rows] = ((first + apart) % num_pdfs).to(pdf.dtype)
    return StoredTargets(2.0, prob, pdf, torch.full((num_frames,), 0.1, dtype=torch.float16, device=device))
