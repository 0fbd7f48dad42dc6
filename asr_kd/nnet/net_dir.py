"""A trained net on disk: weights in safetensors, everything else in net.json; no pickle anywhere."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from asr_kd.errors import AsrKdError
from asr_kd.nnet.frames import Cmvn
from asr_kd.nnet.model import Architecture, FrameClassifier
from asr_kd.nnet.quantized import Quantization
from asr_kd.store.atomic import write_json, write_text
from asr_kd.store.packing import pack, unpack
from asr_kd.store.parsing import parse_json
from asr_kd.store.tensors import save_tensors

WEIGHTS, CARD, UTTS = "final.safetensors", "net.json", "transfer_utts.txt"


@dataclass
class TrainedNet:
    """A net with what it needs to be applied and to be recognised.

    front_end: attributes of the features it was trained on. training: seed, schedule, history, times.
    """

    net: FrameClassifier
    cmvn: Cmvn
    front_end: dict[str, Any]
    labels: dict[str, Any]
    training: dict[str, Any]

    @property
    def digest(self) -> str:
        return weights_digest(self.net)


def require_alike(nets: Sequence[TrainedNet]) -> None:
    """Raise AsrKdError unless all nets see the same windows of the same features and name the same states."""
    first = nets[0]
    for trained in nets:
        if trained.labels.get("model_digest") != first.labels.get("model_digest"):
            raise AsrKdError("the nets were trained on alignments of different HMMs; their states differ")
        same_cmvn = trained.cmvn.mode == first.cmvn.mode and (
            not first.cmvn.fixed or np.array_equal(trained.cmvn.mean, first.cmvn.mean)
        )
        if trained.front_end != first.front_end or not same_cmvn:
            raise AsrKdError("the nets differ in front end or CMVN, so that they cannot hear the same features")
        a, b = trained.net.architecture, first.net.architecture
        for key in ("left_context", "right_context", "feat_dim", "num_pdfs"):
            if getattr(a, key) != getattr(b, key):
                raise AsrKdError(f"the nets differ in {key}: {getattr(a, key)} and {getattr(b, key)}")


def weights_digest(net: torch.nn.Module) -> str:
    """SHA-256 over names and values of all weights: equal if and only if the nets are the same, bit for bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_net(path: str | Path, trained: TrainedNet) -> None:
    """Write final.safetensors, then net.json: the folder holds a complete net if and only if net.json is there."""
    path = Path(path)
    save_tensors(path / WEIGHTS, pack(trained.net.state_dict(), _int4_names(trained.net)))
    card = {
        "format": "asr_kd.net",
        "version": 1,
        "architecture": trained.net.architecture.as_dict(),
        "num_parameters": trained.net.num_parameters,
        "digest": trained.digest,
        "cmvn": {
            "mode": trained.cmvn.mode,
            "mean": [float(x) for x in trained.cmvn.mean],
            "istd": [float(x) for x in trained.cmvn.istd],
        },
        "front_end": trained.front_end,
        "labels": trained.labels,
        "training": trained.training,
    }
    if trained.net.quantization:
        card["quantization"] = dataclasses.asdict(trained.net.quantization)
    write_json(path / CARD, {**card, "seal": _seal(card)})


def _int4_names(net: FrameClassifier) -> set[str]:
    """Tensors whose values have 4 bits."""
    if net.quantization is None or net.quantization.bits != 4:
        return set()
    return {name for name in net.state_dict() if name.endswith(".integers")}


def _seal(card: dict[str, Any]) -> str:
    """SHA-256 over everything else in a net.json: statistics of normalisation are no less the net than its weights."""
    content = {key: value for key, value in card.items() if key != "seal"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_transfer_utts(path: str | Path, utt_ids: Iterable[str]) -> str:
    """Write which utterances a net in this folder is trained on, one a line; returns the SHA-256 for its net.json."""
    text = "".join(f"{utt_id}\n" for utt_id in utt_ids)
    write_text(Path(path) / UTTS, text)
    return hashlib.sha256(text.encode()).hexdigest()


def read_transfer_utts(path: str | Path) -> frozenset[str] | None:
    """The utterances that the net in a folder was trained on, or None where it was all labelled ones of its set.

    Raises AsrKdError where the list is missing, or is another net's.
    """
    digest = load_card(path)["training"].get("transfer", {}).get("utts_digest")
    if digest is None:
        return None
    try:
        text = (Path(path) / UTTS).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AsrKdError(f"{Path(path) / UTTS}: cannot be read ({error})") from error
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise AsrKdError(f"{Path(path) / UTTS}: does not list what {CARD} was trained on; it was changed")
    return frozenset(text.splitlines())


def load_card(path: str | Path) -> dict[str, Any]:
    """The contents of net.json; raises AsrKdError if the folder holds no complete net, or the card was changed."""
    card = Path(path) / CARD
    try:
        contents = parse_json(card.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AsrKdError(f"{path}: no trained net here ({CARD} is missing)") from error
    except (OSError, ValueError) as error:
        raise AsrKdError(f"{card}: cannot be read ({error})") from error
    if not isinstance(contents, dict) or contents.get("format") != "asr_kd.net":
        raise AsrKdError(f"{card}: not the description of a net")
    parts = {"architecture", "num_parameters", "digest", "cmvn", "front_end", "labels", "training"}
    if missing := parts - set(contents):
        raise AsrKdError(f"{card}: lacks {min(missing)}; train the net again")
    if "seal" in contents and contents["seal"] != _seal(contents):  # nets of before 0.2 have none
        raise AsrKdError(f"{card}: was changed after the net was trained; train it again")
    return contents


def best_epoch(path: str | Path) -> dict[str, Any]:
    """The epoch whose weights the net has, as net.json tells it: dev_frame_acc in percent, dev_xent in nats, ..."""
    training = load_card(path)["training"]
    return training["history"][training["best_epoch"] - 1]


def load_net(path: str | Path) -> TrainedNet:
    """Read what save_net wrote; raises AsrKdError if it is missing, damaged, or its weights are others."""
    card = load_card(path)
    try:
        fields = {field.name for field in dataclasses.fields(Architecture)}
        architecture = Architecture(**{k: v for k, v in card["architecture"].items() if k in fields})
        net = FrameClassifier(architecture, Quantization(**card["quantization"]) if "quantization" in card else None)
        net.load_state_dict(unpack(load_file(Path(path) / WEIGHTS), net.state_dict(), _int4_names(net)))
        cmvn = Cmvn(card["cmvn"]["mode"], *(np.array(card["cmvn"][key], np.float32) for key in ("mean", "istd")))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise AsrKdError(f"{path}: its net cannot be loaded ({error})") from error
    if weights_digest(net) != card["digest"]:
        raise AsrKdError(f"{path}: {WEIGHTS} does not hold the weights that {CARD} describes")
    return TrainedNet(net.eval(), cmvn, card["front_end"], card["labels"], card["training"])
