"""What scoring keeps of a system: its counts per utterance and seed, from which every published figure is made."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.scoring.frame_detail import FrameDetail
from asr_kd.store.atomic import write_json
from asr_kd.store.parsing import parse_json

PER_UNITS = ("phone", "letter")  # what the phone error rate may count
ROLES = ("member", "baseline", "ensemble", "student", "control", "specialists")

_FORMAT = "asr_kd.system_scores"
VERSION = 2  # 2: correct_top5, detail


@dataclass
class SystemScores:
    """Scores of one system on one set; S seeds, U utterances in the order of `utt_ids`.

    A system is one way of training: its seeds are repetitions, averaged in every figure. `num_frames` counts labelled
    frames. `xent_sum` is in nats; `errors` holds insertions, deletions, substitutions. `hyps` (one dictionary per
    seed) and `refs` map utt_id to words joined by blanks. `phone_errors` and `num_ref_phones` are there where phones
    were scored too, or what `per_unit` says instead, `num_oov_words` where the recogniser's vocabulary was known,
    `correct_top5` and `detail` where frames were scored to that depth. `num_parameters` counts those
    of all the nets that answer together. `split` names the set (None where an earlier version scored).
    """

    name: str
    role: str
    num_members: int
    combination: str | None
    num_parameters: int
    seeds: list[int]
    utt_ids: list[str]
    spk_ids: list[str]
    num_frames: np.ndarray  # (U,)
    num_nonsil: np.ndarray  # (U,)
    correct: np.ndarray  # (S, U)
    correct_nonsil: np.ndarray  # (S, U)
    xent_sum: np.ndarray  # (S, U)
    errors: np.ndarray  # (S, U, 3)
    num_ref_words: np.ndarray  # (U,)
    hyps: list[dict[str, str]]
    refs: dict[str, str]
    decode_rtf: float
    train_frames_per_second: float
    train_seconds: float
    phone_errors: np.ndarray | None = None  # (S, U, 3)
    num_ref_phones: np.ndarray | None = None  # (U,)
    per_unit: str = PER_UNITS[0]
    num_oov_words: np.ndarray | None = None  # (U,)
    correct_top5: np.ndarray | None = None  # (S, U)
    detail: FrameDetail | None = None
    split: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.detail, dict):
            self.detail = FrameDetail.from_json(self.detail, len(self.utt_ids))
        for field, dtype in _DTYPES.items():
            value = getattr(self, field)
            if value is not None:
                setattr(self, field, _array(value, dtype, f"system {self.name}, {field}"))
        self.validate()

    def validate(self) -> None:
        """Raise AsrKdError, naming the system and field, where shapes or counts do not agree."""
        num_seeds, num_utts = len(self.seeds), len(self.utt_ids)
        self._require(isinstance(self.name, str), "name", "must be a word")
        self._require(self.role in ROLES, "role", f"must be one of {', '.join(ROLES)}, not {self.role}")
        self._require(num_seeds > 0, "seeds", "must not be empty")
        self._require(num_utts > 0 and len(set(self.utt_ids)) == num_utts, "utt_ids", "must be distinct, at least one")
        self._require(len(self.spk_ids) == num_utts, "spk_ids", f"must be {num_utts} long, as utt_ids is")
        self._require((self.phone_errors is None) == (self.num_ref_phones is None), "num_ref_phones", "needs its pair")
        self._require(self.per_unit in PER_UNITS, "per_unit", f"must be one of {', '.join(PER_UNITS)}")
        for field in _DTYPES:
            value = getattr(self, field)
            if value is not None:
                shape = {1: (num_utts,), 2: (num_seeds, num_utts), 3: (num_seeds, num_utts, 3)}[_NUM_DIMS[field]]
                self._require(value.shape == shape, field, f"must have shape {shape}, not {value.shape}")
                self._require(bool(np.all(value >= 0) and np.all(np.isfinite(value))), field, "must be 0 or more")
        self._require(np.all(self.num_nonsil <= self.num_frames), "num_nonsil", "exceeds num_frames")
        self._require(np.all(self.correct <= self.num_frames), "correct", "exceeds num_frames")
        if self.num_oov_words is not None:
            self._require(np.all(self.num_oov_words <= self.num_ref_words), "num_oov_words", "exceeds num_ref_words")
        if self.correct_top5 is not None:
            ordered = np.all(self.correct <= self.correct_top5) and np.all(self.correct_top5 <= self.num_frames)
            self._require(bool(ordered), "correct_top5", "must lie between correct and num_frames")
        if self.detail is not None:
            self._require(self.detail.num_seeds == num_seeds, "detail", f"must be of {num_seeds} seeds")
        self._require(np.all(self.correct_nonsil <= self.num_nonsil), "correct_nonsil", "exceeds num_nonsil")
        for field in ("decode_rtf", "train_frames_per_second", "train_seconds"):
            self._require(math.isfinite(getattr(self, field)), field, "must be a finite number")
        self._require(len(self.hyps) == num_seeds, "hyps", f"must have one dictionary for each of {num_seeds} seeds")
        for texts, field in ((self.refs, "refs"), *((hyp, "hyps") for hyp in self.hyps)):
            self._require(set(texts) == set(self.utt_ids), field, "must have exactly the utterances of utt_ids")

    def _require(self, holds: bool, field: str, what: str) -> None:
        if not holds:
            raise AsrKdError(f"scores of system {self.name}: {field} {what}.")

    def save(self, path: str | Path) -> None:
        """Write JSON atomically; arrays become nested lists."""
        self.validate()
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in fields.items()}
        plain["detail"] = None if self.detail is None else self.detail.to_json()
        write_json(path, {"format": _FORMAT, "version": VERSION, **plain})

    @classmethod
    def load(cls, path: str | Path) -> "SystemScores":
        """Read what `save` wrote; raises AsrKdError, naming the file, where it is not that."""
        try:
            content = parse_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise AsrKdError(f"{path}: cannot be read ({error.strerror}).") from error
        except ValueError as error:
            raise AsrKdError(f"{path}: is not JSON ({error}).") from error
        if not isinstance(content, dict) or (content.pop("format", None), content.pop("version", None)) != (
            _FORMAT,
            VERSION,
        ):
            raise AsrKdError(f"{path}: is not a {_FORMAT} file of version {VERSION}.")
        try:
            return cls(**content)
        except TypeError as error:
            raise AsrKdError(f"{path}: does not have the fields of a system's scores ({error}).") from error
        except AsrKdError as error:
            raise AsrKdError(f"{path}: {error}") from error


_DTYPES = {
    "num_frames": np.int64,
    "num_nonsil": np.int64,
    "correct": np.int64,
    "correct_nonsil": np.int64,
    "xent_sum": np.float64,
    "errors": np.int64,
    "num_ref_words": np.int64,
    "phone_errors": np.int64,
    "num_ref_phones": np.int64,
    "num_oov_words": np.int64,
    "correct_top5": np.int64,
}
_NUM_DIMS = {
    "num_frames": 1,
    "num_nonsil": 1,
    "num_ref_words": 1,
    "num_ref_phones": 1,
    "num_oov_words": 1,
    "correct": 2,
    "correct_nonsil": 2,
    "xent_sum": 2,
    "errors": 3,
    "phone_errors": 3,
    "correct_top5": 2,
}


def _array(value: object, dtype: type, what: str) -> np.ndarray:
    try:
        array = np.asarray(value)
        converted = array.astype(dtype, casting="same_kind") if array.size else array.astype(dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise AsrKdError(f"{what} is no array of {np.dtype(dtype).name} ({error}).") from error
    return converted


ERROR_KINDS = ("ins", "del", "sub")


def error_kinds(errors: np.ndarray) -> dict[str, object]:
    """Errors (S, U, 3) by kind: `ins`, `del`, `sub` of the first seed, and `mean` over seeds, whole if there is one."""
    per_seed = np.asarray(errors).sum(axis=1)
    mean = per_seed[0] if len(per_seed) == 1 else per_seed.mean(axis=0)
    first, mean = (dict(zip(ERROR_KINDS, kinds.tolist(), strict=True)) for kinds in (per_seed[0], mean))
    return {**first, "mean": mean}


def mean_over_seeds(per_seed: np.ndarray) -> np.ndarray:
    """Average (S, U) counts over the seeds of a system, (U,) float64: seeds are averaged before systems are paired."""
    return np.asarray(per_seed, dtype=np.float64).mean(axis=0)
