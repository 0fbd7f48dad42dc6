"""From nets to words: posteriors over priors, scale and insertion penalty chosen on dev, then the best path."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from asr_kd.cli_common import log
from asr_kd.config import DecodeConfig
from asr_kd.corpus.datadir import read_words
from asr_kd.corpus.processes import WorkerDied, Workers
from asr_kd.errors import AsrKdError
from asr_kd.nnet.net_dir import TrainedNet, load_net
from asr_kd.scoring.set_posteriors import KeptMatrices, Matrices, SetMatrices, kept_if_small
from asr_kd.scoring.transcripts import read_transcripts
from asr_kd.scoring.wer import count_errors
from asr_kd.store.atomic import write_text
from asr_kd.store.feats import FeatsReader

if TYPE_CHECKING:
    from asr_kd.hmm.lattice import Lattice
    from asr_kd.hmm.searcher import Found, Task


def load_nets(paths: Sequence[Path], device: torch.device) -> list[TrainedNet]:
    """Load nets onto a device."""
    nets = [load_net(path) for path in paths]
    for trained in nets:
        trained.net.to(device)
    return nets


@dataclass
class Scales:
    """What is chosen on dev: acoustic scale and insertion penalty, with every setting tried and its errors."""

    acwt: float
    insertion_penalty: float
    tried: list[dict[str, float]] = field(default_factory=list)


class SearchProgress:
    """Tells every ten seconds how far the search has come."""

    def __init__(self, num_utts: int, frame_shift_s: float, every_s: float = 10.0):
        self._num_utts, self._frame_shift_s, self._every_s = num_utts, frame_shift_s, every_s
        self._done, self._seconds, self._audio_s, self._last = 0, 0.0, 0.0, time.perf_counter()

    def add(self, task: "Task", seconds: float) -> None:
        """An utterance is done, in so many seconds of processor time."""
        self._done, self._seconds = self._done + 1, self._seconds + seconds
        self._audio_s += len(task.loglik) * self._frame_shift_s
        if time.perf_counter() - self._last >= self._every_s:
            self._last = time.perf_counter()
            rtf = self._seconds / self._audio_s
            log(f"searched {self._done} of {self._num_utts} utterances, {rtf:.4f} x real time per core")


class SetDecoder:
    """Decodes log posteriors of whole sets with one graph and one vector of log priors (num_pdfs,).

    nj: processes; use it in a `with`, so that they end. seconds: of processor time that went so far into searches,
    and, by `clock`, into what is searched.
    unfinished: the utterances of the last decode whose best path ends in no final state of the graph.
    """

    def __init__(self, graph, log_priors: np.ndarray, config: DecodeConfig, nj: int = 1, clock=time.process_time):
        from asr_kd.hmm.beam_search import Limits
        from asr_kd.hmm.searcher import Searcher

        if len(log_priors) != graph.num_pdfs:
            raise AsrKdError(f"priors of {len(log_priors)} states do not fit a graph of {graph.num_pdfs}")
        self._graph, self._log_priors, self._config = graph, log_priors, config
        limits = Limits(config.beam, config.min_active, config.max_active)
        self._workers = Workers(nj, Searcher, graph, limits, config.lattice_beam)
        self.seconds, self._clock = 0.0, clock
        self.unfinished: list[str] = []

    def __enter__(self) -> "SetDecoder":
        return self

    def __exit__(self, *exception: object) -> None:
        self._workers.__exit__(*exception)

    @property
    def model_digest(self) -> str:
        """Of the HMM that the graph was made from."""
        return self._graph.model_digest

    def decode(
        self,
        log_post: SetMatrices,
        acwt: float,
        insertion_penalty: float,
        path_pdf: np.ndarray | None = None,
        utt_ids: Sequence[str] | None = None,
    ) -> dict[str, str]:
        """Words of every utterance, or of utt_ids, joined by blanks; empty, with a warning, where no path survives.

        path_pdf: (num_frames,) int, filled with the states of the best paths where given; left as it is where none is.
        """
        utt_ids = log_post.layout.utt_ids if utt_ids is None else utt_ids
        hyps, self.unfinished = dict.fromkeys(utt_ids, ""), []
        for utt_id, found in self._search(log_post, utt_ids, acwt, insertion_penalty, lattice=False):
            hyps[utt_id] = " ".join(found.decoded.words)
            if not found.decoded.complete:
                self.unfinished.append(utt_id)
            if path_pdf is not None:
                path_pdf[log_post.layout.rows(utt_id)] = found.decoded.pdfs
        return hyps

    def lattices(self, log_post: SetMatrices, acwt: float, insertion_penalty: float) -> Iterator[tuple[str, "Lattice"]]:
        """The determinised lattice of every utterance of which a path survives."""
        for utt_id, found in self._search(log_post, log_post.layout.utt_ids, acwt, insertion_penalty, lattice=True):
            yield utt_id, found.lattice

    def _search(
        self,
        log_post: SetMatrices,
        utt_ids: Sequence[str],
        acwt: float,
        insertion_penalty: float,
        lattice: bool,
    ) -> Iterator[tuple[str, "Found"]]:
        from asr_kd.hmm.beam_search import NoPathError
        from asr_kd.hmm.searcher import Task

        tasks = (
            Task(utt_id, matrix - self._log_priors, acwt, insertion_penalty, lattice)
            for utt_id, matrix in self._timed(log_post.of(utt_ids))
        )
        progress = SearchProgress(len(utt_ids), log_post.layout.frame_shift_ms / 1000.0)
        num_died = 0
        for task, found in self._workers.results(tasks):
            if isinstance(found, NoPathError | WorkerDied):
                log(f"warning: {task.utt_id}: {found}; counted as no words")
                progress.add(task, 0.0)
                num_died += isinstance(found, WorkerDied)
            elif isinstance(found, AsrKdError):
                raise AsrKdError(f"{task.utt_id}: {found}") from found
            else:
                self.seconds += found.seconds
                progress.add(task, found.seconds)
                yield task.utt_id, found
        if num_died == len(utt_ids) > 0:
            raise AsrKdError(f"the processes of all {num_died} searches ended: is there memory enough for the graph?")

    def _timed(self, matrices: Matrices) -> Matrices:
        begin = self._clock()
        for item in matrices:
            self.seconds += self._clock() - begin
            yield item
            begin = self._clock()

    @property
    def num_pdfs(self) -> int:
        """States of the graph's HMM."""
        return self._graph.num_pdfs

    @property
    def words(self) -> list[str]:
        """Of the graph, by word id − 1."""
        return self._graph.words

    def tune(self, log_post: SetMatrices, refs: dict[str, str]) -> Scales:
        """Choose the acoustic scale at no penalty, then the penalty, by word errors on dev; ties go to the first."""
        tried: list[dict[str, float]] = []
        utt_ids = log_post.layout.utt_ids
        if 0 < self._config.tuning_utts < len(utt_ids):
            rows = np.linspace(0, len(utt_ids) - 1, self._config.tuning_utts).astype(int)
            utt_ids = [utt_ids[row] for row in rows]
        log_post = kept_if_small(log_post, utt_ids, self.num_pdfs)
        if not isinstance(log_post, KeptMatrices):
            log(
                f"{self.num_pdfs} states of {len(utt_ids)} utterances are more than is kept; they are computed anew "
                "for every setting (tuning_utts takes fewer utterances)"
            )

        def errors(acwt: float, insertion_penalty: float) -> int:
            for row in tried:
                if (row["acwt"], row["insertion_penalty"]) == (acwt, insertion_penalty):
                    return int(row["errors"])
            hyps = self.decode(log_post, acwt, insertion_penalty, utt_ids=utt_ids)
            counts, num_ref = count_errors(refs, hyps, utt_ids)
            total = int(counts.sum())
            wer = 100.0 * total / max(int(num_ref.sum()), 1)
            tried.append({"acwt": acwt, "insertion_penalty": insertion_penalty, "errors": total, "wer": wer})
            return total

        acwt = min(self._config.acwts, key=lambda value: errors(value, 0.0))
        penalty = min(self._config.insertion_penalties, key=lambda value: (errors(acwt, value), abs(value)))
        return Scales(acwt, penalty, tried)


def references(data_dir: str | Path, reader: FeatsReader) -> dict[str, str]:
    """Transcripts of the utterances in `reader`, words joined by blanks, by `text` of the data directory alone.

    Raises AsrKdError where one is missing.
    """
    words = read_words(data_dir)
    missing = [utt_id for utt_id in reader.layout.utt_ids if utt_id not in words]
    if missing:
        raise AsrKdError(f"{data_dir}/text: no transcript of utterance {missing[0]}, which {reader.path} holds")
    return {utt_id: " ".join(words[utt_id]) for utt_id in reader.layout.utt_ids}


LATTICE_FILE = "{split}.lat.gz"  # a Kaldi table, beside the words of each seed
PATH_FILE = "{split}.path.h5"  # beside the words of a system's first seed: their states, in the form of ali.h5


def write_hyps(path: Path, hyps: dict[str, str]) -> None:
    """Write words in Kaldi's text format."""
    write_text(path, "".join(f"{utt_id} {words}".rstrip() + "\n" for utt_id, words in sorted(hyps.items())))


def read_hyps(path: Path) -> dict[str, str]:
    """Words of each utterance, joined by blanks, from Kaldi's text format, by `read_transcripts`."""
    return {utt_id: " ".join(words) for utt_id, words in read_transcripts(path).items()}
