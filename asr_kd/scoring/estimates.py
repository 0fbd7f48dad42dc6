"""Metrics of systems scored on the same utterances, with intervals and paired tests: what every table is made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from asr_kd.scoring.significance import NUM_RESAMPLES, ClusterBootstrap, Difference, resampling_unit
from asr_kd.scoring.systems import mean_over_seeds


@dataclass(frozen=True)
class Metric:
    """A ratio of sums over utterances: count (S, U) by seed and utterance, over total (U,), times scale."""

    count: Callable[[Any], np.ndarray | None]
    total: Callable[[Any], np.ndarray | None]
    more_is_better: bool
    scale: float = 100.0

    def scored(self, system: Any) -> bool:
        """Whether the system was scored so, on anything at all."""
        total = self.total(system)
        return self.count(system) is not None and total is not None and bool(total.any())

    def per_seed(self, system: Any) -> np.ndarray:
        """Value of each seed, (S,)."""
        return self.scale * self.count(system).sum(axis=1) / self.total(system).sum()


def _sum_of_kinds(errors: np.ndarray | None) -> np.ndarray | None:
    return None if errors is None else errors.sum(axis=2)


FRAME_METRICS = {
    "frame_accuracy": Metric(lambda s: s.correct, lambda s: s.num_frames, True),
    "frame_accuracy_nonsil": Metric(lambda s: s.correct_nonsil, lambda s: s.num_nonsil, True),
    "frame_accuracy_top5": Metric(lambda s: s.correct_top5, lambda s: s.num_frames, True),
    "cross_entropy": Metric(lambda s: s.xent_sum, lambda s: s.num_frames, False, scale=1.0),
}
WORD_METRICS = {
    "wer": Metric(lambda s: _sum_of_kinds(s.errors), lambda s: s.num_ref_words, False),
    "per": Metric(lambda s: _sum_of_kinds(s.phone_errors), lambda s: s.num_ref_phones, False),
}


class Estimates:
    """Values, intervals and differences of systems by metric, all from the same resamples of the same utterances.

    systems: objects with `name`, `utt_ids`, `spk_ids` and what the metrics ask for, scored on the same material.
    Of a single unit there are no intervals and no tests. What the unit is, `resampling_unit` decides by the number of
    speakers unless one is asked for.
    """

    def __init__(
        self,
        systems: Sequence[Any],
        metrics: Mapping[str, Metric],
        unit: str = "auto",
        num_resamples: int = NUM_RESAMPLES,
        seed: int = 0,
    ) -> None:
        self.metrics = metrics
        self.resampling_unit, self.resampling_note = resampling_unit(systems[0].spk_ids, unit)
        self.units = systems[0].utt_ids if self.resampling_unit == "utterance" else systems[0].spk_ids
        columns = {}
        for system in systems:
            for name, metric in metrics.items():
                if metric.scored(system):
                    # Seeds are averaged before systems are paired.
                    columns[_num(system, name)] = mean_over_seeds(metric.count(system))
                    columns[_den(name)] = metric.total(system)
        self.num_units = len(set(self.units))
        self.bootstrap = ClusterBootstrap(self.units, columns, num_resamples, seed) if self.num_units > 1 else None

    def estimate(self, system: Any, name: str) -> dict[str, Any] | None:
        """Value (mean over seeds), 95 % interval over the units, and value of each seed; None where not scored."""
        metric = self.metrics[name]
        if not metric.scored(system):
            return None
        per_seed, interval = metric.per_seed(system), None
        if self.bootstrap is not None:
            interval = [metric.scale * bound for bound in self.bootstrap.interval(_num(system, name), _den(name))]
        return {"value": float(per_seed.mean()), "ci95": interval, "per_seed": per_seed.tolist()}

    def compare(self, a: Any, b: Any, name: str) -> dict[str, Any] | None:
        """The entry of a paired bootstrap test of a − b; None where one of them was not scored."""
        if self.bootstrap is None or not (self.metrics[name].scored(a) and self.metrics[name].scored(b)):
            return None
        test = self.bootstrap.compare(_num(a, name), _num(b, name), _den(name))
        return comparison_entry(a.name, b.name, name, test, self.metrics[name].scale)

    def covariance(self, systems: Sequence[Any], name: str) -> np.ndarray:
        """Sampling covariance of the systems' values, (len(systems), len(systems))."""
        return self.metrics[name].scale ** 2 * self.bootstrap.covariance([_num(s, name) for s in systems], _den(name))


def _num(system: Any, metric: str) -> str:
    return f"{metric} of {system.name}"


def _den(metric: str) -> str:
    return f"total for {metric}"


def comparison_entry(a: str, b: str, metric: str, test: Difference, scale: float = 100.0) -> dict[str, Any]:
    """A test as it stands in results.json: difference and interval in the metric's own scale."""
    entry = {"a": a, "b": b, "metric": metric, **asdict(test)}
    entry["difference"] = scale * test.difference
    entry["ci95"] = None if test.ci95 is None else [scale * bound for bound in test.ci95]
    if test.reason is None:
        del entry["reason"]
    return entry
