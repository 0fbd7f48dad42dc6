"""Configuration: files in conf/ give every key its default and its meaning, the command line wins.

Each dataclass below declares the keys of one file and their types; the values stand in the file alone. Keys are unique
over all files, so one flat file (a preset, or the resolved configuration of an experiment) can hold any of them.
"""

import argparse
import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from asr_kd.choices import (
    CmvnMode,
    FeatsDtype,
    GmmCmvn,
    Questions,
    SilenceTopology,
    TeacherCombination,
    Topology,
    listed,
    words,
)
from asr_kd.errors import AsrKdError
from asr_kd.features.options import FbankOptions
from asr_kd.store.parsing import parse_yaml

T = TypeVar("T")

# What asr-kd sweep chooses, and the list that it chooses from, in the order in which it goes through them.
SWEPT = {
    "combination": "sweep_combinations",
    "temperature": "sweep_temperatures",
    "soft_weight": "sweep_soft_weights",
}

# Frames on the device are counted in int32, in half the memory of int64: 5965 h at 10 ms.
MAX_FRAMES = (1 << 31) - 1
MAX_CONTEXT = 1000  # ten seconds; a net whose input is much longer fills the memory of any machine
# Beyond these, logits divided by the temperature and its square leave what float32 holds, and targets are NaN.
TEMPERATURES = (1e-6, 1e6)

Schedule = Literal["linear", "cosine", "exponential", "constant", "newbob"]


@dataclass(frozen=True)
class FbankConfig:
    """conf/fbank.yaml: the front end."""

    sample_frequency: float
    num_mel_bins: int
    frame_length: float
    frame_shift: float
    low_freq: float
    high_freq: float
    snip_edges: bool
    feats_dtype: FeatsDtype

    def __post_init__(self) -> None:
        """Raises AsrKdError for values that no features can be made with."""
        FbankOptions(**{key: getattr(self, key) for key in _keys(FbankConfig) if key != "feats_dtype"})


@dataclass(frozen=True)
class HmmConfig:
    """conf/hmm.yaml: the GMM-HMM that labels the frames."""

    gmm_context: Literal["mono", "triphone"]
    gmm_num_iters: int
    gmm_total_gauss: int
    gmm_cmvn: GmmCmvn
    gmm_max_train_utts: int
    gmm_max_failed_share: float
    gmm_seed: int
    gmm_phone_topology: Topology
    gmm_silence_topology: SilenceTopology
    position_dependent_phones: bool
    silence_phones: list[str]
    sil_prob: float
    max_oov_share: float
    tree_num_leaves: int
    tree_questions: Questions
    tree_min_count: float
    tree_min_gain: float
    tree_merge: bool
    tri_num_iters: int
    tri_realign_iters: list[int]
    tri_total_gauss: int
    tri_max_train_utts: int

    def __post_init__(self) -> None:
        """Raises AsrKdError for a value that no HMM can be trained with."""
        passes, sizes = ("gmm_num_iters", "tri_num_iters"), ("gmm_total_gauss", "tri_total_gauss", "tree_num_leaves")
        _require(self, "at least 1", lambda x: x >= 1, *passes, *sizes)
        numbers = ("gmm_max_train_utts", "tri_max_train_utts", "tree_min_count", "tree_min_gain", "gmm_seed")
        _require(self, "at least 0", lambda x: x >= 0, *numbers)
        _require(self, "from 0 to 1", lambda x: 0 <= x <= 1, "gmm_max_failed_share", "max_oov_share")
        _require(self, "between 0 and 1", lambda x: 0 < x < 1, "sil_prob")


@dataclass(frozen=True)
class DnnConfig:
    """conf/dnn.yaml: the frame classifier and its training."""

    left_context: int
    right_context: int
    num_hidden_layers: int
    hidden_dim: int
    cmvn: CmvnMode
    dropout: float
    dropout_schedule: list[float] | None
    input_dropout: float
    max_norm: float
    label_smoothing: float
    feature_noise: float
    time_warp: float
    freq_warp: float
    time_masks: int
    time_mask_width: int
    freq_masks: int
    freq_mask_width: int
    image_affine: float
    image_elastic: float
    image_jitter: int
    view_share: float
    optimizer: Literal["adamw", "sgd"]
    learning_rate: float
    schedule: Schedule
    final_learning_rate_ratio: float
    warmup_steps: int
    start_halving_impr: float
    end_halving_impr: float
    halving_factor: float
    keep_lr_iters: int
    min_iters: int
    weight_decay: float
    average_share: float
    max_grad_norm: float
    batch_size: int
    num_epochs: int
    max_steps: int | None
    steps_per_epoch: int | None
    keep_best: Literal["frame_acc", "xent", "last"]
    patience: int
    checkpoint_minutes: float
    tensorboard: bool
    compile: bool
    cuda_graphs: bool
    precision: Literal["auto", "float32", "bfloat16"]
    resident_frames: int
    eight_bit_frames: bool

    def __post_init__(self) -> None:
        """Raises AsrKdError for a value that no net can be trained with."""
        _require(self, f"from 0 to {MAX_FRAMES:,}", lambda x: 0 <= x <= MAX_FRAMES, "resident_frames")
        _require(self, "at least 1", lambda x: x >= 1, "hidden_dim", "batch_size", "num_epochs")
        _require(self, "at least 1, or null", lambda x: x is None or x >= 1, "max_steps", "steps_per_epoch")
        _require(self, "above 0", lambda x: x > 0, "learning_rate", "checkpoint_minutes")
        counts = ("left_context", "right_context", "num_hidden_layers", "time_masks", "time_mask_width", "freq_masks")
        counts += ("freq_mask_width", "image_jitter", "warmup_steps", "keep_lr_iters", "min_iters", "patience")
        _require(self, "at least 0", lambda x: x >= 0, *counts, "feature_noise", "weight_decay", "max_grad_norm")
        _require(self, "at least 0", lambda x: x >= 0, "image_elastic")
        _require(self, f"at most {MAX_CONTEXT}", lambda x: x <= MAX_CONTEXT, "left_context", "right_context")
        _require(self, "at least 0", lambda x: x >= 0, "max_norm")
        _require(self, "from 0 to below 1", lambda x: 0 <= x < 1, "dropout", "input_dropout", "label_smoothing")
        _require(self, "from 0 to below 1", lambda x: 0 <= x < 1, "time_warp", "freq_warp", "image_affine")
        _require(self, "from 0 to 1", lambda x: 0 <= x <= 1, "final_learning_rate_ratio", "view_share")
        _require(self, "between 0 and 1", lambda x: 0 < x < 1, "start_halving_impr", "end_halving_impr")
        _require(self, "between 0 and 1", lambda x: 0 < x < 1, "halving_factor")
        shares = "null, or rates from 0 to below 1"
        _require(self, shares, lambda x: x is None or (x and all(0 <= y < 1 for y in x)), "dropout_schedule")
        _require(self, "from 0 to 1", lambda x: 0 <= x <= 1, "average_share")
        if self.average_share and self.schedule == "newbob":
            raise AsrKdError("average_share: schedule newbob goes back to weights of before; choose another")
        if self.eight_bit_frames and self.cmvn == "none":
            raise AsrKdError("eight_bit_frames: features that are not normalised (cmvn none) do not fit into 8 bits")
        if self.schedule == "exponential":
            _require(self, "above 0 for exponential decay", lambda x: x > 0, "final_learning_rate_ratio")


def _require(config: Any, what: str, holds: Callable[[Any], bool], *keys: str) -> None:
    for key in keys:
        if not holds(getattr(config, key)):
            raise AsrKdError(f"{key} {getattr(config, key)}: must be {what}")


@dataclass(frozen=True)
class EnsembleConfig:
    """conf/ensemble.yaml: how many nets, and over how many seeds single nets are reported."""

    num_members: int
    num_seeds: int
    sweep_seeds: int
    stacked: Literal["auto", "always", "never"]

    def __post_init__(self) -> None:
        """Raises AsrKdError for a value that is none of its key's."""
        _require(self, "at least 1", lambda x: x >= 1, "num_members", "num_seeds", "sweep_seeds")


@dataclass(frozen=True)
class DistillConfig:
    """conf/distill.yaml: soft targets, the distillation loss, and the student's own schedule."""

    temperature: float
    soft_weight: float
    hard_weight: float | None
    combination: TeacherCombination
    matching: Literal["soft_targets", "logits"]
    label_use: Literal["weighted", "conditional", "swap"]
    top_k: int | None
    top_k_kl: float | None
    target_pruning: Literal["tail", "random"]
    target_bits: int
    sequence_weight: float
    sequence_acwt: float
    online_targets: bool
    online_members: int | None
    student_start: Literal["random", "member"]
    student_epochs: int
    student_learning_rate: float
    student_schedule: Schedule | None
    student_average_share: float
    student_view_share: float | None
    student_patience: int
    sweep_temperatures: list[float]
    sweep_soft_weights: list[float]
    sweep_combinations: list[TeacherCombination]
    sweep_epochs: int

    def __post_init__(self) -> None:
        """Raises AsrKdError for a value that nothing can be distilled with."""
        _require(self, "above 0", lambda x: x > 0, "student_learning_rate")
        _require(self, "at least 0", lambda x: x >= 0, "soft_weight")
        _require(self, "null, or at least 0", lambda x: x is None or x >= 0, "hard_weight")
        most = 1 if self.hard_weight is None else math.inf  # what is left to it is the hard weight
        _require(self, "at most 1 where hard_weight is null", lambda x: x <= most, "soft_weight")
        each = "one or more, each at least 0, and at most 1 where hard_weight is null"
        _require(self, each, lambda xs: xs and all(0 <= x <= most for x in xs), "sweep_soft_weights")
        low, high = TEMPERATURES
        _require(self, f"from {low:g} to {high:g}", lambda x: low <= x <= high, "temperature")
        _require(self, "one or more", bool, "sweep_combinations")
        each = f"one or more, each from {low:g} to {high:g}"
        _require(self, each, lambda xs: xs and all(low <= x <= high for x in xs), "sweep_temperatures")
        _require(self, "at least 1", lambda x: x >= 1, "student_epochs", "sweep_epochs")
        _require(self, "at least 0", lambda x: x >= 0, "student_patience")
        _require(self, "from 0 to 1", lambda x: 0 <= x <= 1, "student_average_share")
        _require(self, "null, or from 0 to 1", lambda x: x is None or 0 <= x <= 1, "student_view_share")
        _require(self, "above 0, or null", lambda x: x is None or x > 0, "top_k", "top_k_kl", "online_members")
        _require(self, "from 0 to 1", lambda x: 0 <= x <= 1, "sequence_weight")
        _require(self, "above 0, and at most 1", lambda x: 0 < x <= 1, "sequence_acwt")
        _require(self, "16 or 8", lambda x: x in (16, 8), "target_bits")
        if self.label_use != "conditional" and self.soft_weight == 0 and self.hard_weight == 0:
            raise AsrKdError("soft_weight 0 and hard_weight 0: leave nothing to learn from; set one of them above 0")
        if self.sequence_weight and self.online_targets:
            raise AsrKdError(
                f"sequence_weight {self.sequence_weight:g}: needs stored soft targets of whole utterances; "
                "set it to 0, or online_targets to false"
            )
        if self.top_k_kl is not None and (self.top_k is not None or self.target_pruning == "random"):
            raise AsrKdError(f"top_k_kl {self.top_k_kl:g}: chooses top_k for target_pruning tail; set top_k to null")
        if self.online_members and set(self.sweep_combinations) | {self.combination} != {"arithmetic"}:
            raise AsrKdError(
                f"online_members {self.online_members}: members drawn at random are right on average for the "
                "arithmetic mean alone; set combination and sweep_combinations to arithmetic, or online_members to null"
            )
        if self.target_pruning == "random" and self.top_k is None:
            raise AsrKdError("target_pruning random: needs top_k, the number of targets that are drawn a frame")
        if self.target_bits == 8 and (self.target_pruning == "random" or {self.top_k, self.top_k_kl} == {None}):
            raise AsrKdError(
                "target_bits 8: is for the largest targets; set top_k or top_k_kl, and target_pruning to tail"
            )

    @property
    def kept(self) -> dict[str, Any]:
        """The keys that say what of a frame's targets is kept; only those in effect, but top_k always."""
        kept: dict[str, Any] = {"top_k": self.top_k}
        if self.top_k_kl is not None:
            kept["top_k_kl"] = self.top_k_kl
        if self.target_pruning != "tail":
            kept["target_pruning"] = self.target_pruning
        if self.target_bits != 16:
            kept["target_bits"] = self.target_bits
        return kept


@dataclass(frozen=True)
class SpecialistsConfig:
    """conf/specialists.yaml: nets for states that a generalist confuses, and how they answer together."""

    num_specialists: int
    specialist_size: int | None
    clustering: Literal["kmeans", "confusions", "random"]
    specialist_outputs: Literal["dustbin", "full"]
    specialist_soft_targets: bool
    specialist_epochs: int
    specialist_learning_rate: float
    top_n: int

    def __post_init__(self) -> None:
        """Raises AsrKdError for a value that no specialist can be trained with."""
        _require(self, "at least 2", lambda x: x >= 2, "num_specialists")
        _require(self, "at least 1, or null", lambda x: x is None or x >= 1, "specialist_size")
        _require(self, "at least 1", lambda x: x >= 1, "specialist_epochs", "top_n")
        _require(self, "above 0", lambda x: x > 0, "specialist_learning_rate")


@dataclass(frozen=True)
class CompressConfig:
    """conf/compress.yaml: nets that are pruned and quantized while they are trained; teachers never are."""

    prune_sparsity: float
    prune_scope: Literal["layer", "global"]
    prune_begin: float
    prune_end: float
    prune_every: int
    quantize: Literal["int8", "int4"] | None
    quantize_group: int

    def __post_init__(self) -> None:
        """Raises AsrKdError for a value that no net can be compressed with."""
        _require(self, "from 0 to below 1", lambda x: 0 <= x < 1, "prune_sparsity")
        _require(self, "from 0 to 1", lambda x: 0 <= x <= 1, "prune_begin", "prune_end")
        _require(self, f"at most prune_end, {self.prune_end:g}", lambda x: x <= self.prune_end, "prune_begin")
        _require(self, "at least 1", lambda x: x >= 1, "prune_every")
        _require(self, "at least 2", lambda x: x >= 2, "quantize_group")

    @property
    def in_effect(self) -> dict[str, Any]:
        """The keys that a net depends on; none where nothing is compressed."""
        keys = [key for key in _keys(CompressConfig) if key.startswith("prune_") and self.prune_sparsity]
        keys += ["quantize"] if self.quantize else []
        keys += ["quantize_group"] if self.quantize == "int4" else []
        return {key: getattr(self, key) for key in keys}


@dataclass(frozen=True)
class DecodeConfig:
    """conf/decode.yaml: the graph's grammar, the search, and what is tuned on dev."""

    grammar: Literal["unigram", "uniform", "ngram"]
    ngram_order: int
    ngram_prune: float
    beam: float
    min_active: int
    max_active: int
    lattice_beam: float
    acwts: list[float]
    insertion_penalties: list[float]
    tuning_utts: int
    prior_floor: float

    def __post_init__(self) -> None:
        """Raises AsrKdError for a value that no grammar can be made with, or nothing can be searched with."""
        _require(self, "from 1 to 10", lambda x: 1 <= x <= 10, "ngram_order")
        _require(self, "at least 0", lambda x: x >= 0, "ngram_prune")
        _require(self, "above 0", lambda x: x > 0, "beam", "lattice_beam")
        _require(self, "at least 0", lambda x: x >= 0, "min_active", "tuning_utts")
        limit = f"above 1 and above min_active, {self.min_active}"
        _require(self, limit, lambda x: x > max(1, self.min_active), "max_active")
        _require(self, "one or more, each above 0", lambda xs: xs and all(x > 0 for x in xs), "acwts")
        _require(self, "one or more numbers", bool, "insertion_penalties")


@dataclass(frozen=True)
class ScoreConfig:
    """conf/score.yaml: what is scored beside frames and words."""

    score_letters: bool


CONCERNS: dict[str, type] = {
    "fbank": FbankConfig,
    "hmm": HmmConfig,
    "dnn": DnnConfig,
    "ensemble": EnsembleConfig,
    "distill": DistillConfig,
    "specialists": SpecialistsConfig,
    "compress": CompressConfig,
    "decode": DecodeConfig,
    "score": ScoreConfig,
}


def conf_dir() -> Path:
    """The folder of the default configuration: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).parent
    for path in (package / "conf", package.parent / "conf"):
        if path.is_dir():
            return path
    raise AsrKdError(f"{package}: its configuration files (conf/*.yaml) are missing; install asr_kd again")


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a flat YAML file of known keys; raises AsrKdError for anything else."""
    path = Path(path)
    try:
        values = parse_yaml(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise AsrKdError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise AsrKdError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise AsrKdError(f"{path}: expected lines of the form `key: value`")
    for key in values:
        if key not in key_types():
            raise AsrKdError(f"{path}: unknown key {key!r}{_suggestion(str(key))}")
    return {key: check_value(key, value, str(path)) for key, value in values.items()}


@cache
def key_types() -> Mapping[str, Any]:
    """The type of every configuration key, over all concerns."""
    return {
        key: annotation for concern in CONCERNS.values() for key, annotation in typing.get_type_hints(concern).items()
    }


def check_value(key: str, value: Any, source: str) -> Any:
    """Return `value` as the key's type; raises AsrKdError naming `source` if it cannot be."""
    converted = _convert(key_types()[key], value)
    if converted is _INVALID:
        told = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
        raise AsrKdError(f"{source}: {key} is {told}, but should be {_type_name(key_types()[key])}")
    return converted


_INVALID = object()
_MAX_INT = 2**53  # beyond it a float, which 1e6 is, does not tell one whole number from the next


def _convert(annotation: Any, value: Any) -> Any:
    origin = typing.get_origin(annotation)
    if origin in (types.UnionType, typing.Union):
        if value is None or value == "null":
            return None
        return _convert(next(a for a in typing.get_args(annotation) if a is not type(None)), value)
    if origin is list:
        items = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
        items = [item.strip() if isinstance(item, str) else item for item in items]
        converted = [_convert(typing.get_args(annotation)[0], item) for item in items]
        return _INVALID if _INVALID in converted else converted
    if annotation is bool:
        return {"true": True, "false": False}.get(str(value).lower(), _INVALID)
    if origin is Literal:
        return value if value in words(annotation) else _INVALID
    if annotation is str:
        return value if isinstance(value, str) else _INVALID
    if isinstance(value, bool):
        return _INVALID
    if isinstance(value, str) and "_" in value:  # Python takes 1_000 for a number
        return _INVALID
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return _INVALID
    if not math.isfinite(number) or (annotation is int and not (number.is_integer() and abs(number) < _MAX_INT)):
        return _INVALID
    return annotation(number)


def _type_name(annotation: Any) -> str:
    names = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a word"}
    origin = typing.get_origin(annotation)
    if origin is list:
        return f"a list, comma-separated, each {_type_name(typing.get_args(annotation)[0])}"
    if origin is Literal:
        return listed(words(annotation))
    if annotation in names:
        return names[annotation]
    return f"{_type_name(next(a for a in typing.get_args(annotation) if a is not type(None)))}, or null"


def _suggestion(key: str) -> str:
    import difflib

    close = difflib.get_close_matches(key.replace("-", "_"), key_types(), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


@cache
def defaults() -> Mapping[str, Any]:
    """Every key with its default, from conf/."""
    return {key: value for concern in CONCERNS for key, value in load_yaml(conf_dir() / f"{concern}.yaml").items()}


@cache
def help_texts() -> Mapping[str, str]:
    """What each key means: the comment that stands behind it in its file."""
    texts = {}
    for concern in CONCERNS:
        for line in (conf_dir() / f"{concern}.yaml").read_text(encoding="utf-8").splitlines():
            if match := re.match(r"(\w+):.*?\s#\s(.*)", line):
                texts[match[1]] = match[2]
    return texts


def resolve(concern: type[T], *overrides: Mapping[str, Any]) -> T:
    """Build one concern from its defaults and `overrides` (later ones win; keys of other concerns are passed over)."""
    values = dict(defaults())
    for override in overrides:
        for key, value in override.items():
            if key not in values:
                raise AsrKdError(f"unknown configuration key {key!r}{_suggestion(key)}")
            values[key] = check_value(key, value, "configuration")
    return concern(**{field.name: values[field.name] for field in dataclasses.fields(concern)})


def add_config_options(parser: argparse.ArgumentParser, concerns: Iterable[type | str]) -> None:
    """Give `parser` `--config FILE` and an option `--its-name` for every key of `concerns`, or for single keys.

    The file may hold any key of any concern, so that one file serves all commands.
    """
    parser.add_argument("--config", type=Path, action="append", default=[], metavar="FILE", help="YAML of keys below")
    wanted = {key for each in concerns for key in ([each] if isinstance(each, str) else _keys(each))}
    for concern in CONCERNS.values():
        keys = [key for key in _keys(concern) if key in wanted]
        if not keys:
            continue
        group = parser.add_argument_group(concern.__doc__.strip().rstrip("."))
        for key in keys:
            default = defaults()[key]
            shown = ",".join(map(str, default)) if isinstance(default, list) else "null" if default is None else default
            group.add_argument(
                f"--{key.replace('_', '-')}",
                dest=key,
                default=argparse.SUPPRESS,
                metavar="VALUE",
                help=f"{help_texts().get(key, '')} (default {shown})".replace("%", "%%"),
            )


def _keys(concern: type) -> list[str]:
    return [field.name for field in dataclasses.fields(concern)]


def config_from_args(args: argparse.Namespace) -> dict[str, Any]:
    """All keys: defaults, then each --config in order, then the options given.

    Raises AsrKdError for a key that is not known and a value that cannot be.
    """
    values = dict(defaults())
    by_hand = {
        key: check_value(key, getattr(args, key), f"--{key.replace('_', '-')}")
        for key in key_types()
        if key in vars(args)
    }
    files: dict[str, Path] = {}
    contents = [load_yaml(file) for file in args.config]  # once: a pipe has nothing more to say
    for file, given in zip(args.config, contents, strict=True):
        files |= dict.fromkeys(given, file)
    for given in (*contents, by_hand):
        values.update(given)
        # Who gives a value wants that one, not a search around it.
        values.update({sweep: [given[key]] for key, sweep in SWEPT.items() if key in given and sweep not in given})
    for concern in CONCERNS.values():  # a value that cannot be is told before hours of work, by whichever command
        try:
            resolve(concern, values)
        except AsrKdError as error:
            key = re.match(r"\w*", str(error))[0]
            raise AsrKdError(f"{files[key]}: {error}" if key in files and key not in by_hand else str(error)) from error
    return values
