"""From nets to words: posteriors over priors, scale and insertion penalty chosen on dev, then the best path."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from asr_kd.cli_common import log
from asr_kd.config import DecodeConfig
from asr_kd.corpus.datadir import read_data_dir
from asr_kd.distill.soft_targets import check_members, joint_log_posteriors
from asr_kd.errors import AsrKdError
from asr_kd.nnet.frames import Frames
from asr_kd.nnet.net_dir import TrainedNet, load_net
from asr_kd.scoring.transcripts import read_transcripts
from asr_kd.scoring.wer import count_errors
from asr_kd.store.atomic import write_text
from asr_kd.store.feats import FeatsReader


def load_nets(paths: Sequence[Path], device: torch.device) -> list[TrainedNet]:
    """Load nets onto a device."""
    nets = [load_net(path) for path in paths]
    for trained in nets:
        trained.net.to(device)
    return nets


class FrameCache:
    """Sets of features as frames on the device, each loaded once for all systems that normalise alike."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self._device, self._dtype = device, dtype
        self._frames: dict[tuple, Frames] = {}

    def frames(self, reader: FeatsReader, trained: TrainedNet) -> Frames:
        """The frames of `reader` as `trained` wants to see them."""
        a = trained.net.architecture
        key = (reader.content_digest, a.left_context, a.right_context, trained.cmvn.mode, trained.cmvn.mean.tobytes())
        if key not in self._frames:
            self._frames[key] = Frames.from_reader(
                reader, trained.cmvn, a.left_context, a.right_context, self._device, self._dtype
            )
        return self._frames[key]


def log_posteriors(
    nets: Sequence[TrainedNet],
    combination: str | None,
    reader: FeatsReader,
    cache: FrameCache,
    dtype: torch.dtype,
    top_n: int = 1,
) -> np.ndarray:
    """Log posteriors of a system for all frames of a set, (num_frames, num_pdfs) float32.

    combination, top_n: as joint_log_posteriors takes them; None is for a single net.
    """
    check_members(nets, reader, combination=combination)
    frames = cache.frames(reader, nets[0])
    blocks = joint_log_posteriors(nets, frames, combination=combination or "arithmetic", dtype=dtype, top_n=top_n)
    return np.concatenate([log_post.cpu().numpy() for _, log_post in blocks])


@dataclass
class Scales:
    """What is chosen on dev: acoustic scale and insertion penalty, with every setting tried and its errors."""

    acwt: float
    insertion_penalty: float
    tried: list[dict[str, float]] = field(default_factory=list)


class SetDecoder:
    """Decodes log posteriors of whole sets with one graph and one vector of log priors (num_pdfs,)."""

    def __init__(self, graph, log_priors: np.ndarray, config: DecodeConfig):
        if len(log_priors) != graph.num_pdfs:
            raise AsrKdError(f"priors of {len(log_priors)} states do not fit a graph of {graph.num_pdfs}")
        self._graph, self._log_priors, self._config = graph, log_priors, config

    @property
    def model_digest(self) -> str:
        """Of the HMM that the graph was made from."""
        return self._graph.model_digest

    def decode(
        self,
        log_post: np.ndarray,
        reader: FeatsReader,
        acwt: float,
        insertion_penalty: float,
        path_pdf: np.ndarray | None = None,
    ) -> dict[str, str]:
        """Words of every utterance, joined by blanks; empty, with a warning, where no path survives.

        path_pdf: (num_frames,) int, filled with the states of the best paths where given; left as it is where none is.
        """
        from asr_kd.hmm.decode import Decoder, NoPathError

        config = self._config
        decoder = Decoder(
            self._graph,
            beam=config.beam,
            min_active=config.min_active,
            acwt=acwt,
            insertion_penalty=insertion_penalty,
        )
        hyps = {}
        for utt_id in reader.layout.utt_ids:
            loglik = log_post[reader.layout.rows(utt_id)] - self._log_priors
            try:
                decoded = decoder.decode(loglik)
                hyps[utt_id] = " ".join(decoded.words)
                if path_pdf is not None:
                    path_pdf[reader.layout.rows(utt_id)] = decoded.pdfs
            except NoPathError as error:
                log(f"warning: {utt_id}: {error}; counted as no words")
                hyps[utt_id] = ""
        return hyps

    @property
    def num_pdfs(self) -> int:
        """States of the graph's HMM."""
        return self._graph.num_pdfs

    def tune(self, log_post: np.ndarray, reader: FeatsReader, refs: dict[str, str]) -> Scales:
        """Choose the acoustic scale at no penalty, then the penalty, by word errors on dev; ties go to the first."""
        tried: list[dict[str, float]] = []

        def errors(acwt: float, insertion_penalty: float) -> int:
            for row in tried:
                if (row["acwt"], row["insertion_penalty"]) == (acwt, insertion_penalty):
                    return int(row["errors"])
            hyps = self.decode(log_post, reader, acwt, insertion_penalty)
            counts, num_ref = count_errors(refs, hyps, reader.layout.utt_ids)
            total = int(counts.sum())
            wer = 100.0 * total / max(int(num_ref.sum()), 1)
            tried.append({"acwt": acwt, "insertion_penalty": insertion_penalty, "errors": total, "wer": wer})
            return total

        acwt = min(self._config.acwts, key=lambda value: errors(value, 0.0))
        penalty = min(self._config.insertion_penalties, key=lambda value: (errors(acwt, value), abs(value)))
        return Scales(acwt, penalty, tried)


def references(data_dir: str | Path, reader: FeatsReader) -> dict[str, str]:
    """Transcripts of the utterances in `reader`, words joined by blanks; raises AsrKdError where one is missing."""
    words = {utterance.utt_id: " ".join(utterance.words) for utterance in read_data_dir(data_dir)}
    missing = [utt_id for utt_id in reader.layout.utt_ids if utt_id not in words]
    if missing:
        raise AsrKdError(f"{data_dir}/text: no transcript of utterance {missing[0]}, which {reader.path} holds")
    return {utt_id: words[utt_id] for utt_id in reader.layout.utt_ids}


PATH_FILE = "{split}.path.h5"  # beside the words of a system's first seed: their states, in the form of ali.h5


def write_hyps(path: Path, hyps: dict[str, str]) -> None:
    """Write words in Kaldi's text format."""
    write_text(path, "".join(f"{utt_id} {words}".rstrip() + "\n" for utt_id, words in sorted(hyps.items())))


def read_hyps(path: Path) -> dict[str, str]:
    """Words of each utterance, joined by blanks, from Kaldi's text format, by `read_transcripts`."""
    return {utt_id: " ".join(words) for utt_id, words in read_transcripts(path).items()}


class Timer:
    """Seconds of wall time since it was made."""

    def __init__(self):
        self._begin = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._begin
