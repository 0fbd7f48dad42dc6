"""The schema of results.json, as a checker for each key."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.scoring.systems import ERROR_KINDS, PER_UNITS, ROLES

HEADLINE = ("baseline", "ensemble", "student")
METRICS = ("frame_accuracy", "wer", "per")

# A checker takes a value and its place, and raises where the value is odd.
_Checker = Callable[[Any, str], None]


def _odd(place: str, expected: str) -> AsrKdError:
    return AsrKdError(f"results: {place} must be {expected}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _string(value: Any, place: str) -> None:
    if not isinstance(value, str):
        raise _odd(place, "a string")


def _number(low: float = -np.inf, high: float = np.inf) -> _Checker:
    def check(value: Any, place: str) -> None:
        if not (_is_number(value) and low <= value <= high):
            raise _odd(place, f"a finite number in [{low}, {high}]")

    return check


def _count(value: Any, place: str) -> None:
    if not (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        raise _odd(place, "a whole number, 0 or more")


def _interval(value: Any, place: str) -> None:
    if not (isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)) and value[0] <= value[1]):
        raise _odd(place, "two finite numbers, the lower first")


def _one_of(*choices: str) -> _Checker:
    def check(value: Any, place: str) -> None:
        if value not in choices:
            raise _odd(place, f"one of {', '.join(choices)}")

    return check


def _or_null(check: _Checker) -> _Checker:
    return lambda value, place: None if value is None else check(value, place)


def _list_of(check_item: _Checker) -> _Checker:
    def check(value: Any, place: str) -> None:
        if not isinstance(value, list):
            raise _odd(place, "a list")
        for i, item in enumerate(value):
            check_item(item, f"{place}[{i}]")

    return check


def _values(check_value: _Checker) -> _Checker:
    """An object of any keys whose values are alike."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, Mapping):
            raise _odd(place, "an object")
        for key, each in value.items():
            check_value(each, f"{place}.{key}")

    return check


def _object(keys: Mapping[str, _Checker], extras: Mapping[str, _Checker] | None = None) -> _Checker:
    """Every key must be there; `extras` and others may be, so that the schema can grow without breaking a reader."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, Mapping):
            raise _odd(place or "the whole", "an object")
        for key, check_value in keys.items():
            inner = f"{place}.{key}" if place else key
            if key not in value:
                raise AsrKdError(f"results: {inner} is missing.")
            check_value(value[key], inner)
        for key, check_value in (extras or {}).items():
            if key in value:
                check_value(value[key], f"{place}.{key}" if place else key)

    return check


_ESTIMATE = {"value": _number(0, 100), "ci95": _interval, "per_seed": _list_of(_number(0, 100))}
_ERROR_RATE = {
    "value": _number(0),
    "ci95": _interval,
    "per_seed": _list_of(_number(0)),
    **dict.fromkeys(ERROR_KINDS, _count),
    "mean": _object(dict.fromkeys(ERROR_KINDS, _number(0))),
}
_CALIBRATION = {
    **dict.fromkeys(("ece", "ece_equal_mass", "max_error", "mean_confidence"), _number(0, 100)),
    "ece_per_seed": _list_of(_number(0, 100)),
    "bins": _object(
        {
            "edges": _list_of(_number(0, 1)),
            "num_frames": _list_of(_count),
            "confidence": _list_of(_number(0, 1.001)),
            "accuracy": _list_of(_number(0, 1)),
        }
    ),
}
# Keys beyond the contract, checked where they are there.
_SYSTEM_EXTRAS = {
    "frame_accuracy_nonsil": _or_null(_object(_ESTIMATE)),
    "frame_accuracy_top5": _or_null(_object(_ESTIMATE)),
    "calibration": _or_null(_object(_CALIBRATION)),
}
_SYSTEM = {
    "name": _string,
    "role": _one_of(*ROLES),
    "num_members": _count,
    "combination": _or_null(_string),
    "num_parameters": _count,
    "seeds": _list_of(_count),
    "frame_accuracy": _object(_ESTIMATE),
    "wer": _object(_ERROR_RATE),
    "per": _or_null(_object(_ERROR_RATE)),
    "cross_entropy": _number(0),
    "decode_rtf": _number(0),
    "train_frames_per_second": _number(0),
    "train_seconds": _number(0),
}
_PHONE = {
    "phone": _string,
    "num_frames": _count,
    "accuracy": _values(_number(0, 100)),
    "gain": _values(_object({"difference": _number(-100, 100), "ci95": _interval})),
}
_CONFUSION = {"num_frames": _number(0), "share": _number(0, 100.001)}
_CONFUSIONS = {
    "max_undercount": _count,
    "states": _list_of(_object({"label": _count, "predicted": _count, **_CONFUSION})),
    "phones": _list_of(_object({"label": _string, "predicted": _string, **_CONFUSION})),
    "phone_matrix": _or_null(
        _object({"phones": _list_of(_string), "percent": _list_of(_list_of(_number(0, 100.001)))})
    ),
}
_COMPARISON = {
    "a": _string,
    "b": _string,
    "metric": _one_of(*METRICS),
    "difference": _number(),
    "ci95": _interval,
    "p_value": _number(0, 1),
    "test": _string,
    "n": _count,
}
_GAIN = {
    "value": _or_null(_number()),
    "ci95": _or_null(_interval),
    "p_at_least_086": _or_null(_number(0, 1)),
    "shortfall_points": _number(),
    "ensemble_minus_baseline": _object({"difference": _number(), "ci95": _interval}),
    "reason": _or_null(_string),
}
_RESULTS = _object(
    {
        "recipe": _string,
        "preset": _string,
        "split": _string,
        "num_utts": _count,
        "num_frames": _count,
        "num_words": _count,
        "resampling_unit": _string,
        "headline": _object(dict.fromkeys(HEADLINE, _string)),
        "systems": _list_of(_object(_SYSTEM, _SYSTEM_EXTRAS)),
        "comparisons": _list_of(_object(_COMPARISON)),
        "gain_recovered": _object(dict.fromkeys(("frame_accuracy", "wer"), _object(_GAIN))),
    },
    {
        "per_unit": _one_of(*PER_UNITS),
        "oov": _or_null(_object({"num_words": _count, "share": _number(0, 1)})),
        "per_phone": _list_of(_object(_PHONE)),
        "confusions": _values(_object(_CONFUSIONS)),
    },
)


def check_results(results: Mapping[str, Any]) -> None:
    """Raise AsrKdError, naming the key, where `results` does not follow the schema of results.json.

    Extra keys are allowed; systems named in the headline or a comparison must be among the systems.
    """
    _RESULTS(results, "")
    names = [system["name"] for system in results["systems"]]
    if len(set(names)) < len(names):
        raise AsrKdError("results: systems must have distinct names.")
    named = {f"headline.{role}": name for role, name in results["headline"].items()}
    for i, comparison in enumerate(results["comparisons"]):
        named |= {f"comparisons[{i}].{side}": comparison[side] for side in ("a", "b")}
    for place, name in named.items():
        if name not in names:
            raise AsrKdError(f"results: {place} names {name}, which is none of the systems.")
    for metric, gain in results["gain_recovered"].items():
        if (gain["value"] is None) == (gain["reason"] is None):
            raise AsrKdError(f"results: gain_recovered.{metric} needs a value or else a reason.")
