"""What the frame scores of systems say about single phones and states, for results.json and the tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from asr_kd.scoring.calibration import Bins
from asr_kd.scoring.frame_detail import FrameDetail
from asr_kd.scoring.significance import ClusterBootstrap

# Intervals of some hundred differences need fewer resamples than one p value does.
NUM_RESAMPLES = 2000
NUM_CONFUSIONS = 20


def calibration_entry(detail: FrameDetail) -> dict[str, Any]:
    """Calibration of one system: errors in points, mean over seeds, and the reliability diagram of all seeds together.

    `ece` is over bins of equal width, `ece_equal_mass` over bins of equally many frames, `max_error` over the latter.
    """
    seeds = detail.calibration
    names = ("ece", "ece_equal_mass", "max_error", "mean_confidence")
    bins = [Bins(**{name: np.array(values) for name, values in seed["equal_width"].items()}) for seed in seeds]
    num = np.sum([b.num_frames for b in bins], axis=0)
    pooled = Bins(
        bins[0].edges,
        num,
        np.sum([b.confidence * b.num_frames for b in bins], axis=0) / np.maximum(num, 1),
        np.sum([b.accuracy * b.num_frames for b in bins], axis=0) / np.maximum(num, 1),
    )
    return {
        **{name: float(np.mean([seed[name] for seed in seeds])) for name in names},
        "ece_per_seed": [seed["ece"] for seed in seeds],
        "bins": pooled.to_json(),
    }


def per_phone_rows(details: Mapping[str, FrameDetail], reference: str, units: Sequence[str]) -> list[dict[str, Any]]:
    """Accuracy of every phone's frames for several systems, and its gain over the system named `reference`.

    details: by name of the system, scored on the same labels; units: of resampling, one for each utterance. Rows are
    in the order of the phones, those without frames left out: `phone`, `num_frames`, `accuracy` {name: percent},
    `gain` {name: {"difference": points, "ci95": [low, high]}}. Intervals are not corrected for the number of phones;
    of a single unit there are no rows.
    """
    first = details[reference]
    phones = [p for p in range(len(first.phones)) if first.phone_frames[:, p].any()]
    columns = {f"frames {p}": first.phone_frames[:, p] for p in phones}
    for name, detail in details.items():
        columns |= {f"{name} {p}": detail.phone_correct[:, p] / detail.num_seeds for p in phones}
    if not phones or len(set(units)) < 2:
        return []
    bootstrap = ClusterBootstrap(units, columns, NUM_RESAMPLES)
    rows = []
    for p in phones:
        gains = {}
        for name in details:
            if name != reference:
                test = bootstrap.compare(f"{name} {p}", f"{reference} {p}", f"frames {p}")
                gains[name] = {"difference": 100 * test.difference, "ci95": [100 * bound for bound in test.ci95]}
        rows.append(
            {
                "phone": first.phones[p],
                "num_frames": int(first.phone_frames[:, p].sum()),
                "accuracy": {name: 100 * bootstrap.ratio(f"{name} {p}", f"frames {p}") for name in details},
                "gain": gains,
            }
        )
    return rows


def confusion_entry(detail: FrameDetail) -> dict[str, Any]:
    """The most frequent confusions of one system among states and among phones, and the matrix of phones.

    Rows: `label`, `predicted` (states by number and phone, phones by name), `num_frames` (mean over seeds) and `share`
    of the label's frames in percent. `phone_matrix`: percent of each true phone's frames by the phone of the predicted
    state, rows and columns in the order of `phones`, what is missing to 100 has no known phone.
    """
    entry: dict[str, Any] = {"max_undercount": detail.max_undercount, "states": [], "phones": [], "phone_matrix": None}
    for label, predicted, count in detail.state_confusions[:NUM_CONFUSIONS].tolist():
        names = {"label": label, "label_phone": _phone(detail, label)}
        names |= {"predicted": predicted, "predicted_phone": _phone(detail, predicted)}
        entry["states"].append(names | _share(count, detail.num_seeds, detail.state_frames[label]))
    if not detail.phones:
        return entry
    matrix, frames = detail.phone_matrix(), detail.phone_frames.sum(axis=0)
    wrong = [row for row in detail.phone_confusions.tolist() if row[0] != row[1] and row[1] < len(detail.phones)]
    for label, predicted, count in wrong[:NUM_CONFUSIONS]:
        names = {"label": detail.phones[label], "predicted": detail.phones[predicted]}
        entry["phones"].append(names | _share(count, detail.num_seeds, frames[label]))
    seen = np.flatnonzero(frames)
    shares = 100.0 * matrix[np.ix_(seen, seen)] / (frames[seen, None] * detail.num_seeds)
    entry["phone_matrix"] = {"phones": [detail.phones[p] for p in seen], "percent": np.round(shares, 2).tolist()}
    return entry


def _phone(detail: FrameDetail, state: int) -> str | None:
    phone = detail.state_phone[state]
    return detail.phones[phone] if phone >= 0 else None


def _share(count: int, num_seeds: int, num_frames: int) -> dict[str, float]:
    mean = count / num_seeds
    return {"num_frames": mean, "share": 100.0 * mean / max(int(num_frames), 1)}
