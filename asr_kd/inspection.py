"""What a file holds, for people and programs: features, alignments, soft targets, Kaldi's tables, nets."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.store.ali import FAILED, AliReader
from asr_kd.store.ali import FORMAT_NAME as ALI_FORMAT
from asr_kd.store.feats import FORMAT_NAME as FEATS_FORMAT
from asr_kd.store.feats import FeatsReader
from asr_kd.store.hdf5 import Layout, h5_format, readable
from asr_kd.store.kaldi_ark import object_kind, read_int_vectors, read_matrices, read_vectors
from asr_kd.store.parsing import parse_json
from asr_kd.store.targets import FORMAT as TARGETS_FORMAT
from asr_kd.store.targets import TargetsReader

Description = dict[str, Any]
NET_CARD, ENSEMBLE_PATTERN = "net.json", "*/net.json"
HISTOGRAM_BINS = 12
_BARS = " ▁▂▃▄▅▆▇█"


class _Columns:
    """Mean, deviation, extremes and flaws of the columns of matrices that come one after the other."""

    def __init__(self) -> None:
        self._shift: np.ndarray | None = None
        self.num_rows = 0
        self.not_finite: list[str] = []

    def add(self, key: str, rows: np.ndarray) -> None:
        """Take in the matrix (num_rows, dim) of a key; raises AsrKdError for another dim than before."""
        if not np.isfinite(rows).all():
            self.not_finite.append(key)
            rows = rows[np.isfinite(rows).all(axis=1)]
        if not len(rows):
            return
        rows = rows.astype(np.float64)
        if self._shift is None:  # sums about a typical value, so that little is lost to rounding
            self._shift = rows.mean(axis=0)
            self._sum, self._squares = np.zeros_like(self._shift), np.zeros_like(self._shift)
            self._low, self._high = np.full_like(self._shift, np.inf), np.full_like(self._shift, -np.inf)
        if rows.shape[1] != len(self._shift):
            raise AsrKdError(f"{key!r} has {rows.shape[1]} columns, but those before it have {len(self._shift)}")
        centred = rows - self._shift
        self.num_rows += len(rows)
        self._sum += centred.sum(axis=0)
        self._squares += np.square(centred).sum(axis=0)
        self._low = np.minimum(self._low, rows.min(axis=0))
        self._high = np.maximum(self._high, rows.max(axis=0))

    def describe(self) -> Description:
        """Lists with one number a column, and the keys with values that are not finite."""
        out: Description = {"keys_not_finite": self.not_finite}
        if self._shift is not None:
            mean = self._sum / self.num_rows
            deviation = np.sqrt(np.maximum(self._squares / self.num_rows - np.square(mean), 0))
            out["constant_columns"] = np.flatnonzero(self._low == self._high).tolist()
            out |= {
                "mean": (mean + self._shift).tolist(),
                "std": deviation.tolist(),
                "min": self._low.tolist(),
                "max": self._high.tolist(),
            }
        return out


def _lengths(lengths: np.ndarray, frame_shift_ms: float | None = None) -> Description:
    """The distribution of lengths in frames, and in seconds where the frame shift is known."""
    if not len(lengths):
        return {"num_frames": 0}
    quantiles = np.quantile(lengths, [0, 0.25, 0.5, 0.75, 1], method="nearest")
    names = ("shortest", "quarter", "median", "three_quarters", "longest")
    out: Description = {"num_frames": int(lengths.sum())}
    if frame_shift_ms is not None:
        out["hours"] = out["num_frames"] * frame_shift_ms / 3.6e6
    out["frames_per_utterance"] = {name: int(value) for name, value in zip(names, quantiles, strict=True)}
    if frame_shift_ms is not None:
        out["seconds_per_utterance"] = {
            name: float(value * frame_shift_ms / 1000) for name, value in zip(names, quantiles, strict=True)
        }
    counts, edges = np.histogram(lengths, bins=min(HISTOGRAM_BINS, len(np.unique(lengths))))
    bars = "".join(_BARS[int(np.ceil(8 * count / counts.max()))] for count in counts)
    out["length_histogram"] = f"{edges[0]:.0f} |{bars}| {edges[-1]:.0f} frames"
    return out


def _layout(layout: Layout) -> Description:
    return {"num_utts": layout.num_utts, **_lengths(layout.lengths, layout.frame_shift_ms)}


def _damaged(reader: FeatsReader, columns: _Columns) -> list[str]:
    """Take in all values; returns the utterances whose values are not those of their digest."""
    damaged = []
    digests, stored = reader.utt_digests, np.dtype(reader.attrs["dtype"]).newbyteorder("<")
    for utt_id, digest in zip(reader.layout.utt_ids, digests, strict=True):
        feats = reader[utt_id]
        columns.add(utt_id, feats)
        with np.errstate(over="ignore"):
            if hashlib.sha256(np.ascontiguousarray(feats, dtype=stored)).digest() != digest.tobytes():
                damaged.append(utt_id)
    return damaged


def describe_feats(path: Path, quick: bool = False) -> Description:
    """A feats.h5; quick: statistics from its tables, without reading and checking the values."""
    with FeatsReader(path) as reader:
        spk_ids, counts = np.unique(reader.spk_ids, return_counts=True)
        out: Description = {"kind": f"features ({reader.attrs['kind']})", "feat_dim": reader.feat_dim}
        out |= _layout(reader.layout)
        out["num_speakers"] = len(spk_ids)
        if len(spk_ids):
            out["utts_per_speaker"] = {"fewest": int(counts.min()), "most": int(counts.max())}
        out["num_skipped"], out["num_noted"] = len(reader.skipped), len(reader.noted)
        out["num_shards"] = len(reader.shards)
        if quick:
            total = reader.cmvn_stats.sum(axis=0)
            if total[0, -1] > 0:
                mean = total[0, :-1] / total[0, -1]
                variance = total[1, :-1] / total[0, -1] - np.square(mean)
                out |= {"mean": mean.tolist(), "std": np.sqrt(np.maximum(variance, 0)).tolist()}
        else:
            columns = _Columns()
            out["damaged_utts"] = _damaged(reader, columns)
            out |= columns.describe()
        out["attributes"] = {name: _plain(value) for name, value in sorted(reader.attrs.items())}
        out["attributes"]["options"] = parse_json(reader.attrs["options"])
        return out


def describe_ali(path: Path) -> Description:
    """An ali.h5: states, silence, what is unlabelled, and how long a state lasts."""
    ali = AliReader(path)
    labelled = ali.pdf != FAILED
    counts = np.bincount(ali.pdf[labelled], minlength=ali.num_pdfs)
    num_labelled = int(labelled.sum())
    out: Description = {"kind": "alignment", **_layout(ali.layout), "num_pdfs": ali.num_pdfs}
    out["num_pdfs_seen"] = int((counts > 0).sum())
    out["share_unlabelled"] = 1 - num_labelled / max(len(ali.pdf), 1)
    out["failed_utts"] = ali.failed_utt_ids
    if num_labelled:
        out["share_silence"] = float(counts[ali.sil_pdfs].sum() / num_labelled)
        out["share_most_frequent_pdf"] = float(counts.max() / num_labelled)
        starts = np.ones(len(ali.pdf), dtype=bool)
        starts[1:] = ali.pdf[1:] != ali.pdf[:-1]
        starts[ali.layout.offsets[:-1][ali.layout.lengths > 0]] = True
        out["mean_frames_in_a_state"] = float(num_labelled / (starts & labelled).sum())
    if ali.phones is not None and ali.phone is not None:
        shares = np.bincount(ali.phone[labelled], minlength=len(ali.phones)) / max(num_labelled, 1)
        out["phone_shares"] = dict(zip(ali.phones, shares.tolist(), strict=True))
    return out | {"model_digest": ali.model_digest, "layout_digest": ali.layout.digest}


# Attributes of targets that are more than the teachers' mean: what was kept of it, and what an HMM made of it.
_HOW_MADE = {"target_pruning", "target_bits", "top_k_kl", "lost_kl", "sequence_weight", "sequence_acwt"}


def describe_targets(path: Path) -> Description:
    """A targets.h5: how soft the targets are, and what mass the entries that were kept hold."""
    targets = TargetsReader(path)
    out: Description = {"kind": "soft targets", **_layout(targets.layout), "num_pdfs": targets.num_pdfs}
    out["entries_per_frame"] = targets.prob.shape[1] if targets.pdf is not None else "dense"
    for name in ("temperature", "combination"):
        out[name] = getattr(targets, name)
    out |= {key: np.asarray(value).item() for key, value in targets.attributes.items() if key in _HOW_MADE}
    out["num_members"] = len(targets.members)
    if len(targets.prob):
        kept, entropy = [], []
        for rows in np.array_split(targets.prob, max(1, len(targets.prob) >> 14)):
            prob = rows.astype(np.float64)
            kept.append(prob.sum(axis=1))
            entropy.append(-(prob * np.log(np.maximum(prob, 1e-12))).sum(axis=1))
        out["mean_largest"] = float(targets.prob.max(axis=1).mean(dtype=np.float64))
        out["mean_mass_kept"] = float(np.concatenate(kept).mean())
        out["mean_entropy_of_kept_nats"] = float(np.concatenate(entropy).mean())
    out["members"] = [str(member) for member in targets.members]
    digests = ("content_digest", "model_digest")
    return out | {name: getattr(targets, name) for name in digests} | {"layout_digest": targets.layout.digest}


def describe_net(path: Path) -> Description:
    """A folder with a net, or with folders of nets; the weights are checked against their digest."""
    from asr_kd.nnet.net_dir import load_card, load_net

    if (path / NET_CARD).exists():
        card = load_card(path)
        load_net(path)
        if "options" in card.get("front_end", {}):
            card["front_end"]["options"] = parse_json(card["front_end"]["options"])
        return {"kind": "net", **{name: value for name, value in card.items() if name not in ("format", "version")}}
    members = sorted(path.glob(ENSEMBLE_PATTERN))
    if not members:
        raise AsrKdError(f"{path}: is a folder that holds no net ({NET_CARD}), no nets, and no record of this project")
    return {"kind": "nets", "members": {card.parent.name: describe_net(card.parent) for card in members}}


def _describe_folder(path: Path) -> Description:
    """A net, several nets, or another of the project's folders by its record."""
    for record in sorted(path.glob("*.json")):
        try:
            found = parse_json(record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        kind = str(found.get("format")) if isinstance(found, dict) else ""
        if kind.startswith("asr_kd") and record.name != NET_CARD:
            return {"kind": f"folder ({kind})"} | {name: found[name] for name in found if name != "format"}
    return describe_net(path)


def describe_table(rspecifier: str) -> Description:
    """One of Kaldi's tables, of matrices, float vectors or whole numbers."""
    kind = object_kind(rspecifier)
    lengths: list[int] = []
    out: Description = {"kind": f"Kaldi's table ({kind})", "num_utts": 0}
    if kind == "int vector":
        values: set[int] = set()
        for _, vector in read_int_vectors(rspecifier):
            lengths.append(len(vector))
            values.update(np.unique(vector).tolist())
        extremes = {"min": min(values), "max": max(values), "num_distinct": len(values)} if values else {}
    else:
        columns = _Columns()
        for key, array in read_matrices(rspecifier) if kind == "matrix" else read_vectors(rspecifier):
            lengths.append(len(array))
            try:
                columns.add(key, array if array.ndim == 2 else array[:, None])
            except AsrKdError as error:
                raise AsrKdError(f"{rspecifier}: {error}") from error
        extremes = columns.describe()
        out["feat_dim"] = len(extremes.get("mean", []))
    out["num_utts"] = len(lengths)
    return out | _lengths(np.array(lengths, dtype=np.int64)) | extremes


_OF_FORMAT: dict[str, Callable[[Path], Description]] = {ALI_FORMAT: describe_ali, TARGETS_FORMAT: describe_targets}


def _describe_h5(path: Path, quick: bool) -> Description:
    found_format = h5_format(path)
    with readable(path):
        if found_format == FEATS_FORMAT:
            return describe_feats(path, quick)
        if found_format in _OF_FORMAT:
            return _OF_FORMAT[found_format](path)
    raise AsrKdError(f"{path}: is an HDF5 file, but not one of this project (its format is {found_format!r})")


def _is_audio(path: Path) -> bool:
    """Whether a file begins as WAV, FLAC, Ogg or NIST sphere does."""
    try:
        with open(path, "rb") as file:
            return file.read(7).startswith((b"RIFF", b"fLaC", b"OggS", b"NIST_1A"))
    except OSError:
        return False


def describe(path: str | Path, quick: bool = False) -> Description:
    """What `path` holds: feats.h5, ali.h5, targets.h5, a folder of nets, an HMM or graph, an ark, scp or rspecifier.

    All values are read, checked to be finite and, in feats.h5, to be those of their digests; with quick, the values
    of feats.h5 are not read. The result can be written as JSON.

    Raises AsrKdError for whatever it is not, or is damaged.
    """
    text, path = str(path), Path(path)
    if text.startswith(("ark", "scp")) and ":" in text:
        found = describe_table(text)
    elif path.is_dir():
        found = _describe_folder(path)
    elif path.suffix in (".ark", ".scp") or text.endswith(".ark.gz"):
        found = describe_table(text)
    else:
        if _is_audio(path):
            raise AsrKdError(
                f"{path}: is audio; what is looked at here is made of it (features, alignments, targets, nets), and "
                "recordings are checked by data_prep/data_dir.py validate"
            )
        if path.is_file() and not h5py.is_hdf5(path):
            raise AsrKdError(
                f"{path}: is neither HDF5, nor a table of Kaldi's by its name (.ark, .scp, ark:FILE), nor a folder; "
                "lattices are looked at by asr-kd lattice-nbest and lattice-oracle"
            )
        found = _describe_h5(path, quick)
    return {"file": text, **found}


def flaws(description: Description) -> list[str]:
    """What is wrong with a file that could be read, one sentence each."""
    what = {
        "damaged_utts": "utterances have other values than were written",
        "keys_not_finite": "utterances have values that are not finite",
    }
    return [
        f"{description['file']}: {len(description[name])} {sentence}, the first is {description[name][0]}"
        for name, sentence in what.items()
        if description.get(name)
    ]


def format_description(description: Description, depth: int = 0) -> Iterator[str]:
    """Lines for people: `name value`, what belongs together indented, long lists wrapped."""
    margin = "  " * depth
    for name, value in description.items():
        if isinstance(value, dict):
            yield f"{margin}{name}"
            yield from format_description(value, depth + 1)
        elif isinstance(value, list):
            yield f"{margin}{name} ({len(value)})"
            per_line = 10 if all(isinstance(entry, int | float) for entry in value) else 1
            for start in range(0, len(value), per_line):
                yield f"{margin}  " + " ".join(f"{_short(entry):>9}" for entry in value[start : start + per_line])
        else:
            yield f"{margin}{name:24} {_short(value)}"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(entry)}" for name, entry in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
