"""README.md of a model directory: what the model is, what it was trained on, how well it does, what it cannot do."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr_kd.errors import AsrKdError
from asr_kd.store.parsing import parse_json

if TYPE_CHECKING:
    from asr_kd.model_dir import Model

MAX_WORDS_SHOWN = 60


def scores_of(results: str | Path, system: str) -> dict[str, Any]:
    """What results.json (asr-kd report) says about one system: recipe, preset, split, and its entry.

    Raises AsrKdError if the file cannot be read or has no such system.
    """
    try:
        contents = parse_json(Path(results).read_text(encoding="utf-8"))
        entries = {entry["name"]: entry for entry in contents["systems"]}
        about = {key: contents[key] for key in ("recipe", "preset", "split", "num_utts", "num_words")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AsrKdError(f"{results}: not a results.json made by asr-kd report ({error!r})") from error
    if system not in entries:
        raise AsrKdError(f"{results}: has no system {system!r}; it has {', '.join(entries)}")
    entry = entries[system]
    metrics = {key: entry[key] for key in ("frame_accuracy", "wer") if entry.get(key)}
    return {**about, "system": system, "role": entry.get("role"), **metrics}


def card_text(model: "Model") -> str:
    """The card as Markdown."""
    parts = [
        f"# {model.record['name']}\n",
        _what_it_is(model),
        _how_to_use(model),
        _scores(model.record["scores"]),
        _training(model),
        _limits(model),
        f"## Licence\n\n{model.record['license'] or 'None was stated by who exported the model.'}\n",
    ]
    return "\n".join(parts)


def _what_it_is(model: "Model") -> str:
    first, many = model.nets[0], len(model.nets)
    a, front_end = first.net.architecture, first.front_end
    layers = f"{a.num_hidden_layers} hidden layer{'s' if a.num_hidden_layers != 1 else ''}"
    nets = "one net" if many == 1 else f"the {model.combination} mean of {many} nets"
    compress = first.training.get("compress", {})
    precision = f" in {compress['quantize']}" if "quantize" in compress else ""
    pruned = f", {100 * compress['sparsity']:.0f} % of its weights 0" if "prune_sparsity" in compress else ""
    return (
        f"A DNN-HMM speech recogniser: {nets} of {first.net.num_parameters:,} parameters{precision}{pruned} "
        f"({layers} of {a.hidden_dim}), which classify "
        f"{a.left_context + 1 + a.right_context} frames of {a.feat_dim} {front_end['kind']} features "
        f"(at {front_end['sample_rate']} Hz, every {front_end['frame_shift_ms']:g} ms, normalised by "
        f"{first.cmvn.mode}) into {a.num_pdfs} HMM states, decoded with a graph of {len(model.lang.words)} words.\n"
    )


def _how_to_use(model: "Model") -> str:
    rate = model.nets[0].front_end["sample_rate"]
    return f"""## Use

    asr-kd recognize --model THIS_DIRECTORY hello.wav

    from asr_kd.recognizer import Recognizer
    recognizer = Recognizer.load("THIS_DIRECTORY")
    print(recognizer.recognize("hello.wav").words)

Both need asr_kd, whose version stands under Training; none of its extras, but `audio` to resample.

Audio of one channel at {rate} Hz; other rates are resampled if that is asked for.
`sha256sum -c SHA256SUMS` checks the files.
"""


def _scores(scores: Mapping[str, Any] | None) -> str:
    if not scores:
        return "## Scores\n\nNone were given when the model was exported.\n"
    lines = [
        f"## Scores\n\nAs system `{scores['system']}` ({scores['role']}) of recipe {scores['recipe']}, preset "
        f"{scores['preset']}, on its {scores['split']} set of {scores['num_utts']} utterances, "
        f"{scores['num_words']} words. Of several seeds, the mean; this model is one of them.\n",
        "| | % | 95 % interval |",
        "|---|---|---|",
    ]
    for key, title in (("wer", "word error rate"), ("frame_accuracy", "frame accuracy")):
        if key in scores:
            low, high = scores[key]["ci95"]
            lines.append(f"| {title} | {scores[key]['value']:.2f} | {low:.2f} to {high:.2f} |")
    return "\n".join(lines) + "\n"


def _training(model: "Model") -> str:
    lines = ["## Training\n"]
    if model.record["trained_on"]:
        lines.append(f"- on {model.record['trained_on']}")
    seconds_a_frame = model.nets[0].front_end["frame_shift_ms"] / 1000.0
    for number, trained in enumerate(model.nets, 1):
        t = trained.training
        facts = {
            "hours of speech": _hours(t.get("num_train_frames"), seconds_a_frame),
            "seed": t.get("seed"),
            "best epoch": t.get("best_epoch"),
            "loss": _loss(t.get("loss")),
            "weights": trained.digest[:16],
        }
        lines.append(f"- net {number}: " + ", ".join(f"{k}: {v}" for k, v in facts.items() if v is not None))
    digests = model.record["digests"]
    lines.append(f"- HMM {digests['hmm'][:16]}, graph {digests['graph'][:16]}")
    lines.append(f"- exported {model.record['date']} by asr_kd {model.record['asr_kd']} ({model.record['git_commit']})")
    lines.append("- every setting is in model.json and in nets/*/net.json")
    return "\n".join(lines) + "\n"


def _hours(num_frames: int | None, seconds_a_frame: float) -> str | None:
    return None if num_frames is None else f"{num_frames * seconds_a_frame / 3600:.3g}"


def _loss(loss: Mapping[str, Any] | None) -> str | None:
    """Kind and weights; digests and the like are left to net.json."""
    if not loss:
        return None
    shown = {key: value for key, value in loss.items() if isinstance(value, (int, float)) and value is not True}
    return " ".join([str(loss.get("kind", "")), *(f"{key}={value:g}" for key, value in shown.items())]).strip()


def _limits(model: "Model") -> str:
    words = model.lang.words
    shown = " ".join(words[:MAX_WORDS_SHOWN]) + (" …" if len(words) > MAX_WORDS_SHOWN else "")
    return (
        f"## Limits\n\nIt knows {len(words)} words and hears everything as a sequence of them: {shown}. "
        "Words follow each other with the frequencies of the training transcripts, without a longer memory. Voices, "
        "rooms and languages that the training data lack were not tested. An utterance is held in memory as a whole: "
        "cut long recordings into segments (--data takes Kaldi's).\n"
    )
