"""Speech to words from a model directory alone.

recognizer = Recognizer.load("model")
result = recognizer.recognize("hello.wav")
print(" ".join(result.words), result.times)
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from asr_kd.corpus.datadir import Utterance
from asr_kd.errors import AsrKdError
from asr_kd.features.audio import INT16_SCALE, read_audio, read_samples, resample_audio
from asr_kd.features.cmvn import accumulate, mean_and_istd
from asr_kd.features.fbank import compute_fbank
from asr_kd.features.mfcc import compute_mfcc
from asr_kd.features.options import OPTIONS_OF_KIND, FrontEndOptions
from asr_kd.hmm.beam_search import NoPathError
from asr_kd.hmm.decode import Decoder
from asr_kd.hmm.word_times import word_frames
from asr_kd.model_dir import Model, load_model
from asr_kd.nnet.device import resolve_device
from asr_kd.nnet.frames import Frames
from asr_kd.nnet.inference import mean_log_posteriors
from asr_kd.store.hdf5 import Layout
from asr_kd.store.parsing import parse_json

COMPUTE = {"fbank": compute_fbank, "mfcc": compute_mfcc}


@dataclass(frozen=True)
class WordTime:
    """A word and when it was said, in seconds from the start of the audio."""

    word: str
    start_s: float
    duration_s: float


@dataclass(frozen=True)
class Result:
    """What was said.

    words: in order; score: acwt-scaled log-likelihood and graph score of the best path; complete: whether the path
    ends where the grammar can end (else audio stops inside a word); times: of each word; num_frames: of the features;
    log_post: (num_frames, num_pdfs) float32, of the HMM states, if asked for.
    """

    words: list[str]
    score: float
    complete: bool
    times: list[WordTime]
    num_frames: int
    log_post: np.ndarray | None = None


class Recognizer:
    """Recognises one utterance a call; one thread at a time."""

    def __init__(self, model: Model, device: str = "cpu") -> None:
        """device: cpu, cuda or auto. Raises AsrKdError where the device or Kaldi's wheels are missing."""
        self.model = model
        self._device = resolve_device(device)
        self._nets = [trained.net.to(self._device).eval() for trained in model.nets]
        self._front_end, self._options = model.nets[0].front_end, _front_end_options(model)
        s = model.scales
        self._decoder = Decoder(model.graph, s.beam, s.min_active, s.acwt, s.insertion_penalty, s.max_active)

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> "Recognizer":
        """From a directory made by asr-kd export; raises AsrKdError for one that is damaged or of another version."""
        return cls(load_model(path), device)

    @property
    def sample_rate(self) -> int:
        """Hz that the model hears."""
        return int(self._options.sample_frequency)

    @property
    def words(self) -> list[str]:
        """All words that it knows, sorted."""
        return self.model.lang.words

    def recognize(
        self,
        audio: str | Path | np.ndarray,
        sample_rate: int | None = None,
        *,
        channel: int | None = None,
        resample: bool = False,
        posteriors: bool = False,
    ) -> Result:
        """Recognise a file, or samples (num_samples,): floats in [-1, 1] at `sample_rate` Hz, or int16.

        channel: of a file with several, from 0. resample: bring audio of another rate to the model's.
        posteriors: return those of the HMM states too.

        Raises AsrKdError that says what is wrong with the audio, NoPathError if it is too short for any word.
        """
        if isinstance(audio, np.ndarray):
            samples = self._as_samples(audio, sample_rate, resample)
        else:
            samples = read_audio(audio, self.sample_rate, channel=channel, resample=resample)
        feats = self._feats(samples, "samples" if isinstance(audio, np.ndarray) else str(audio))
        return self._search(self._normalised(feats, [feats]), posteriors)

    def recognize_utterances(
        self,
        utterances: Iterable[Utterance],
        *,
        resample: bool = False,
        allow_pipes: bool = False,
    ) -> Iterator[tuple[Utterance, Result | AsrKdError]]:
        """Recognise many, of a data directory or files; what cannot be used comes with its error, and the rest goes on.

        Where the nets were trained on features normalised by speaker, those of successive utterances of one speaker
        are normalised together, and held in memory for that.
        """
        by_speaker = self.model.nets[0].cmvn.mode == "speaker"
        for _, group in groupby(utterances, lambda utt: utt.spk_id if by_speaker else utt.utt_id):
            feats: list[tuple[Utterance, np.ndarray | AsrKdError]] = []
            for utterance in group:
                try:
                    samples = read_samples(utterance, self.sample_rate, resample=resample, allow_pipes=allow_pipes)
                    feats.append((utterance, self._feats(samples, f"{utterance.utt_id}: {utterance.recording.source}")))
                except AsrKdError as error:
                    feats.append((utterance, error))
            usable = [each for _, each in feats if isinstance(each, np.ndarray)]
            for utterance, each in feats:
                if isinstance(each, AsrKdError):
                    yield utterance, each
                    continue
                try:
                    yield utterance, self._search(self._normalised(each, usable), posteriors=False)
                except NoPathError as error:
                    yield utterance, error

    def _as_samples(self, audio: np.ndarray, sample_rate: int | None, resample: bool) -> np.ndarray:
        """Samples as float32 at int16 scale and the model's rate."""
        if sample_rate is None:
            raise AsrKdError("samples need their sample_rate")
        if audio.ndim != 1 or not len(audio):
            raise AsrKdError(f"samples of shape {audio.shape} are not those of one channel")
        if audio.dtype == np.int16:
            samples = audio.astype(np.float32)
        elif audio.dtype.kind == "f":
            samples = audio.astype(np.float32) * np.float32(INT16_SCALE)
        else:
            raise AsrKdError(f"samples are of type {audio.dtype}, but must be int16, or floats in [-1, 1]")
        if not np.isfinite(samples).all():
            raise AsrKdError("samples hold NaN or infinity")
        if sample_rate != self.sample_rate:
            if not resample:
                raise AsrKdError(f"the samples are at {sample_rate} Hz, the model hears {self.sample_rate}; resample")
            samples = resample_audio(samples, sample_rate, self.sample_rate)
        return samples

    def _feats(self, samples: np.ndarray, source: str) -> np.ndarray:
        try:
            return COMPUTE[self._front_end["kind"]](samples, self._options)
        except AsrKdError as error:  # they fill no frame
            raise AsrKdError(f"{source}: {error}") from error

    def _normalised(self, feats: np.ndarray, of_speaker: Sequence[np.ndarray]) -> np.ndarray:
        """`feats` as the nets want to see them; of_speaker: all that is known of the speaker, `feats` included."""
        cmvn = self.model.nets[0].cmvn
        if cmvn.fixed:
            mean, istd = cmvn.mean, cmvn.istd
        else:
            group = of_speaker if cmvn.mode == "speaker" else [feats]
            mean, istd = mean_and_istd(sum(accumulate(each) for each in group), norm_vars=True)
        return (feats - mean) * istd

    def _search(self, normalised: np.ndarray, posteriors: bool) -> Result:
        model = self.model
        log_post = self._log_posteriors(normalised)
        decoded = self._decoder.decode(log_post - model.log_priors)
        spans = word_frames(decoded.words, decoded.transition_ids, model.lang, model.phone_table, decoded.complete)
        times = []
        for span in spans:
            begin, end = self._seconds(span.begin), self._seconds(span.end)
            times.append(WordTime(span.word, begin, end - begin))
        kept = log_post if posteriors else None
        return Result(decoded.words, decoded.score, decoded.complete, times, len(normalised), kept)

    def _log_posteriors(self, normalised: np.ndarray) -> np.ndarray:
        a = self.model.nets[0].net.architecture
        layout = Layout.from_lengths(["utterance"], [len(normalised)])
        frames = Frames(normalised, layout, a.left_context, a.right_context, self._device)
        blocks = mean_log_posteriors(self._nets, frames, combination=self.model.combination)
        return np.concatenate([log_post.cpu().numpy() for _, log_post in blocks])

    def _seconds(self, frame: int) -> float:
        """Where a frame begins: half a shift before the centre of its window; the first begins with the audio."""
        shift, length = self._front_end["frame_shift_ms"], self._front_end["frame_length_ms"]
        offset = (length - shift) / 2 if self._front_end["snip_edges"] and frame else 0.0
        return (frame * shift + offset) / 1000.0


def _front_end_options(model: Model) -> FrontEndOptions:
    """The options of the features that the nets were trained on.

    Raises AsrKdError for features from elsewhere, for what was made of them since, and for those of a newer version.
    """
    front_end = model.nets[0].front_end
    try:
        fields = parse_json(front_end["options"])
        if since := [name for name in ("foreign", "cmvn", "deltas") if name in fields]:
            raise AsrKdError(
                f"the model hears features that are not made from audio here ({', '.join(since)}); train it on some "
                "that were imported with --feature-conf and without --apply"
            )
        return OPTIONS_OF_KIND[front_end["kind"]](**fields)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise AsrKdError(f"this asr_kd cannot make the features that the model hears ({error!r})") from error
