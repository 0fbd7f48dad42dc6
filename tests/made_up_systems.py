"""Systems scored on made-up material: random outputs around made-up labels, and transcripts with made-up errors."""

import numpy as np

from asr_kd.scoring.frame_detail import over_seeds
from asr_kd.scoring.frames import FrameLabels, per_utterance_frame_scores
from asr_kd.scoring.systems import SystemScores
from asr_kd.scoring.wer import count_errors

HEADLINE = {"baseline": "baseline", "ensemble": "ensemble", "student": "student"}
PHONES = ["SIL", "AH", "N", "<b>&m"]
NUM_PDFS = 3 * len(PHONES)


def make_labels(num_utts=90):
    """Labels in runs; three states a phone, those of SIL being silence."""
    rng = np.random.default_rng(11)  # the material is the same for all systems
    pdfs = [np.repeat(rng.integers(0, NUM_PDFS, size=20), rng.integers(2, 8, size=20)) for _ in range(num_utts)]
    pdf = np.concatenate(pdfs)
    offset = np.concatenate([[0], np.cumsum([len(p) for p in pdfs])])
    return FrameLabels(pdf, offset, [0, 1, 2], pdf // 3, PHONES)


def noisy_outputs(labels, margin, rng):
    """Logits (num_frames, NUM_PDFS) whose largest is the label's the more often the larger the margin."""
    logits = rng.normal(size=(len(labels.pdf), NUM_PDFS))
    logits[np.arange(len(labels.pdf)), labels.pdf] += margin
    return logits


def noisy_hyps(rng, refs, error_rate):
    return {u: " ".join(w if rng.random() > error_rate else "oops" for w in ref.split()) for u, ref in refs.items()}


def make_system(name, role, seeds, margin, word_error, rng, num_utts=90):
    utt_ids = [f"utt{u:03d}" for u in range(num_utts)]
    labels = make_labels(num_utts)
    choice = np.random.default_rng(11)
    refs = {u: " ".join(choice.choice(["one", "two", "six", "ten"], size=5)) for u in utt_ids}
    hyps = [noisy_hyps(rng, refs, word_error) for _ in seeds]
    words = [count_errors(refs, hyp, utt_ids) for hyp in hyps]
    frames = [per_utterance_frame_scores(noisy_outputs(labels, margin, rng), labels) for _ in seeds]
    by_seed = ("correct", "correct_nonsil", "correct_top5", "xent_sum")
    return SystemScores(
        name=name,
        role=role,
        num_members=4 if role == "ensemble" else 1,
        combination="arithmetic mean of posteriors" if role == "ensemble" else None,
        num_parameters=1_200_000 * (4 if role == "ensemble" else 1),
        seeds=list(seeds),
        utt_ids=utt_ids,
        spk_ids=[f"spk{u % 15}" for u in range(num_utts)],
        num_frames=frames[0].num_frames,
        num_nonsil=frames[0].num_nonsil,
        **{field: np.stack([getattr(scores, field) for scores in frames]) for field in by_seed},
        errors=np.stack([errors for errors, _ in words]),
        num_ref_words=words[0][1],
        hyps=hyps,
        refs=refs,
        decode_rtf=0.012,
        train_frames_per_second=41_000.0,
        train_seconds=95.5,
        detail=over_seeds([scores.detail for scores in frames]),
    )


def make_systems():
    """Baseline, ensemble, student and one member."""
    rng = np.random.default_rng(12)
    return [
        make_system("baseline", "baseline", [1, 2, 3], 2.0, 0.30, rng),
        make_system("ensemble", "ensemble", [1], 2.4, 0.22, rng),
        make_system("student", "student", [1, 2, 3], 2.3, 0.24, rng),
        make_system("member1", "member", [1], 2.0, 0.31, rng),
    ]
