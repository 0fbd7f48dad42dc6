"""The embedded corpus: digits and numbers spoken by espeak-ng, with true phone times, in simulated rooms with noise.

A corpus is made of units, all utterances of one voice in one set, first clean and then noisy. Each unit comes from one
process and a generator seeded by (seed, voice), so that it depends neither on the number of jobs nor on the order, and
appears as a whole; a killed run continues with the units that are missing.
"""

import importlib.metadata
import json
import math
import os
import shutil
import tempfile
import wave
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

from asr_kd.corpus import numbers, simulate
from asr_kd.corpus.datadir import Recording, Utterance, check_disjoint, read_data_dir, write_data_dir
from asr_kd.corpus.espeak import Espeak, voice_variants
from asr_kd.corpus.espeak_phones import Segment, label_speech, pronunciations
from asr_kd.corpus.lexicon import SILENCE_PHONE, Lexicon, write_lexicon
from asr_kd.corpus.processes import run_apart
from asr_kd.errors import AsrKdError, install_hint
from asr_kd.store.atomic import write_json, write_text
from asr_kd.store.places import place_of_folder

SAMPLE_RATE = 16000
SETS = ("train", "dev", "test")
UNLABELLED = "unlabelled"
FORMAT_VERSION = 2
_UP, _DOWN = 320, 441  # 22050 Hz to 16000 Hz
_SECONDS_PER_VOICE = 30.0  # with less to say, fewer voices speak
_HELD_OUT_SHARE = 0.15  # of the voices, for dev and for test each
_CLEAN_LEVEL_DBFS = -23.0
_FLOOR = 4.0  # RMS, int16: recordings are never digital zero, and log-mel features of zero are a spike
# Said in training whatever its size, so that no word and no phone of the lexicon is without data.
_EVERY_WORD = (
    *((10, 11), (12, 13), (14, 15), (16, 17), (18, 19), (20, 30), (40, 50), (60, 70), (80, 90)),
    *((2345, 6789), (1_000_000, 0)),
)
_WORDS_PER_MINUTE = (115, 160)  # faster, and d and flaps fall below 30 ms


@dataclass(frozen=True)
class MiniOptions:
    """What the corpus is made from; hours per set, SNR in dB, the longest reverberation time in seconds.

    Unlabelled speech is by the voices of training, who say something else, at other rates and pitches, in other rooms.
    """

    hours_train: float = 1.0
    hours_dev: float = 0.25
    hours_test: float = 0.25
    hours_unlabelled: float = 0.0
    seed: int = 0
    snr_min: float = 0.0
    snr_max: float = 20.0
    rt60_max: float = 0.6

    def check(self) -> None:
        """Raises AsrKdError for a value that makes no corpus."""
        for name in SETS:
            hours = getattr(self, f"hours_{name}")
            if not (math.isfinite(hours) and hours > 0):
                raise AsrKdError(f"--hours-{name} is {hours}, it must be above 0")
        if not (math.isfinite(self.hours_unlabelled) and self.hours_unlabelled >= 0):
            raise AsrKdError(f"--hours-unlabelled is {self.hours_unlabelled}, it must not be negative")
        if self.seed < 0:
            raise AsrKdError(f"--seed is {self.seed}, it must not be negative")
        if not -20 <= self.snr_min <= self.snr_max <= 100:
            raise AsrKdError(f"--snr-min {self.snr_min} to --snr-max {self.snr_max} is no range within -20 … 100 dB")
        if not 0.1 <= self.rt60_max <= 5:
            raise AsrKdError(f"--rt60-max is {self.rt60_max}, it must be from 0.1 to 5 seconds")


def build_mini(out_dir: str | Path, options: MiniOptions, nj: int, log: Callable[[str], None]) -> bool:
    """Make the corpus in `out_dir`, which appears when complete; False where it is there already, up to date.

    Writes {train,dev,test} (noisy) and {train,dev,test}_clean as Kaldi data directories with the same utterances,
    truth.ctm in the clean ones (`utt_id 1 start_s duration_s phone`, SIL included, contiguous over the utterance),
    lexicon.txt, mini.json and, under wav/, 16 kHz recordings. With hours_unlabelled there is unlabelled/ too, noisy and
    without text, and all else is to the byte what it is without. A corpus made with other options is replaced.

    Raises AsrKdError for bad options, a folder that holds something else, or a missing espeakng-loader.
    """
    options.check()
    out_dir = place_of_folder(out_dir)
    recipe = {**asdict(options), "format_version": FORMAT_VERSION, "espeakng_loader": _loader_version()}
    if not options.hours_unlabelled:
        del recipe["hours_unlabelled"]  # as corpora of 0.6.0 and before have it
    if _is_up_to_date(out_dir, recipe):
        return False
    plan = plan_voices(options)
    work = _open_work_dir(out_dir, recipe)
    clean = [
        (work, name, voice, seconds, covering_prompts(number, len(plan[name])) if name == "train" else [], options.seed)
        for name in plan
        for number, (voice, seconds) in enumerate(plan[name])
    ]
    noisy = [(work, name, voice, options) for name in plan for voice, _ in plan[name]]
    preload = [__name__]
    run_apart(_make_vocabulary, [(work, options.seed)], 1, preload, lambda _: log("vocabulary spoken"))
    run_apart(_make_clean_unit, clean, nj, preload, _every_tenth(log, "voices spoken", len(clean)))
    run_apart(_make_noisy_unit, noisy, nj, preload, _every_tenth(log, "voices in rooms with noise", len(noisy)))
    _finish(work, plan, recipe, log)
    try:
        shutil.rmtree(work / "tmp", ignore_errors=True)
        shutil.rmtree(out_dir, ignore_errors=True)
        os.replace(work, out_dir)
    except OSError as error:
        raise AsrKdError(f"{out_dir}: could not be written ({error.strerror})") from error
    return True


def plan_voices(options: MiniOptions) -> dict[str, list[tuple[str, float]]]:
    """For each set its voices and the seconds of speech that each says; those of two sets differ, but unlabelled's."""
    voices = voice_variants()
    np.random.default_rng([options.seed, 0]).shuffle(voices)
    num_held_out = max(2, round(_HELD_OUT_SHARE * len(voices)))
    pools = {"dev": voices[:num_held_out], "test": voices[num_held_out : 2 * num_held_out]}
    pools["train"] = voices[2 * num_held_out :]
    plan = {}
    for name in (*SETS, UNLABELLED) if options.hours_unlabelled else SETS:
        seconds = 3600.0 * getattr(options, f"hours_{name}")
        # Two voices at least, since babble is made of others.
        num_voices = min(len(pools[name]), max(2, math.ceil(seconds / _SECONDS_PER_VOICE)))
        speaking = pools[name][:num_voices]
        plan[name] = [(voice, seconds / num_voices) for voice in sorted(speaking)]
        if name == "train":
            pools[UNLABELLED] = speaking
    return plan


def random_prompt(rng: np.random.Generator) -> list[list[str]]:
    """Phrases, with a pause between them: digits in a row, a natural number, or two of these."""
    num_phrases = 2 if rng.random() < 0.25 else 1
    phrases = []
    for _ in range(num_phrases):
        if rng.random() < 0.5:
            low, high = (2, 4) if num_phrases == 2 else (3, 7)
            phrases.append(numbers.digit_words("".join(map(str, rng.integers(0, 10, rng.integers(low, high + 1))))))
        else:
            # Even over the number of digits, so that small numbers are as frequent as large ones.
            num_digits = int(rng.integers(2, 5 if num_phrases == 2 else 8))
            phrases.append(numbers.number_words(int(rng.integers(10 ** (num_digits - 1), 10**num_digits))))
    return phrases


def covering_prompts(number: int, num_voices: int) -> list[list[list[str]]]:
    """Voice `number`'s part, at least one, of the prompts that hold every word, dealt out to `num_voices`."""
    turns = range(len(_EVERY_WORD) * math.ceil(num_voices / len(_EVERY_WORD)))
    return [
        [numbers.number_words(n) for n in _EVERY_WORD[turn % len(_EVERY_WORD)]] for turn in turns[number::num_voices]
    ]


def _make_vocabulary(work: Path, seed: int) -> None:
    """Every word alone, so that the lexicon is whole whatever the corpus happens to say."""
    target = work / "vocabulary.json"
    if target.exists():
        return
    espeak = Espeak(seed)
    spoken = []
    for word in numbers.VOCABULARY:
        speech = espeak.speak(word, "en-us", _WORDS_PER_MINUTE[0], 50, 50)
        segments = label_speech(speech, [word], [0], espeak.sample_rate)
        if segments is not None:
            spoken.append([word, pronunciations(segments, 1)[0]])
    write_json(target, spoken)


def _make_clean_unit(work: Path, name: str, voice: str, seconds: float, prompts: list, seed: int) -> None:
    target = work / "wav" / f"{name}_clean" / voice
    if target.exists():
        return
    is_unlabelled = name == UNLABELLED  # another stream, and other ids, than the same voice has in training
    rng = np.random.default_rng([seed, 3 if is_unlabelled else 1, zlib.crc32(voice.encode())])
    espeak = Espeak(int(rng.integers(2**31)))
    manner = (rng.uniform(*_WORDS_PER_MINUTE), rng.uniform(35, 65))
    utts: list[dict] = []
    num_samples = num_refused = 0
    temporary = _temporary_unit(work)
    while num_samples < seconds * SAMPLE_RATE or len(utts) < len(prompts):
        prompt = prompts[len(utts)] if len(utts) < len(prompts) else random_prompt(rng)
        spoken = _speak_utterance(espeak, voice, prompt, manner, rng)
        if spoken is None:
            num_refused += 1
            if num_refused > 100 + len(utts):
                raise AsrKdError(f"espeak-ng's voice {voice} marks no phones that fit the words")
            continue
        samples, words, prons, phones = spoken
        utt_id = f"{voice}-{'u' if is_unlabelled else ''}{len(utts):04d}"
        _write_wav(temporary / f"{utt_id}.wav", samples)
        utts.append({"utt_id": utt_id, "words": words, "prons": prons, "phones": phones, "num_samples": len(samples)})
        num_samples += len(samples)
    write_json(temporary / "unit.json", {"utts": utts, "num_refused": num_refused})
    _publish_unit(temporary, target)


def _speak_utterance(espeak: Espeak, voice: str, phrases: list[list[str]], manner: tuple, rng: np.random.Generator):
    """One clean utterance: (samples, words, their pronunciations, [start, num_samples, phone] …), or None."""
    rate = round(np.clip(manner[0] + rng.normal(0, 10), *_WORDS_PER_MINUTE))
    pitch = round(np.clip(manner[1] + rng.normal(0, 8), 10, 90))
    pitch_range = round(rng.uniform(25, 75))
    lead, trail = (round(rng.uniform(0.1, 0.4) * SAMPLE_RATE) for _ in range(2))
    text = ", ".join(" ".join(phrase) for phrase in phrases)
    words = [word for phrase in phrases for word in phrase]
    offsets = np.cumsum([0] + [len(w) + 1 for w in text.split(" ")])[:-1].tolist()
    speech = espeak.speak(text, f"en-us+{voice}", rate, pitch, pitch_range)
    segments = label_speech(speech, words, offsets, espeak.sample_rate)
    if segments is None:
        return None
    resampled = resample_poly(speech.samples.astype(np.float64), _UP, _DOWN)
    samples = simulate.set_level(np.pad(resampled, (lead, trail)), _CLEAN_LEVEL_DBFS)
    samples = np.clip(samples + np.rint(rng.normal(0, _FLOOR, len(samples))), -32768, 32767).astype(np.int16)
    phones = _place_phones(segments, lead, len(resampled), len(samples))
    return samples, words, [list(p) for p in pronunciations(segments, len(words))], phones


def _place_phones(segments: list[Segment], lead: int, num_spoken: int, num_samples: int) -> list[list]:
    """[start, length, phone] at 16 kHz, contiguous over [0, num_samples)."""
    edges = [lead + min(num_spoken, round(segment.start * _UP / _DOWN)) for segment in segments]
    labels = [segment.phone for segment in segments]
    if labels[0] == SILENCE_PHONE:
        edges[0] = 0
    else:
        edges, labels = [0, *edges], [SILENCE_PHONE, *labels]
    if labels[-1] != SILENCE_PHONE:
        edges, labels = [*edges, lead + num_spoken], [*labels, SILENCE_PHONE]
    ends = [*edges[1:], num_samples]
    return [[start, end - start, phone] for start, end, phone in zip(edges, ends, labels, strict=True) if end > start]


def _make_noisy_unit(work: Path, name: str, voice: str, options: MiniOptions) -> None:
    target = work / "wav" / name / voice
    if target.exists():
        return
    rng = np.random.default_rng([options.seed, 4 if name == UNLABELLED else 2, zlib.crc32(voice.encode())])
    clean_dir = work / "wav" / f"{name}_clean"
    # Plainly sorted by name: a listing in the file system's order would make the noise depend on the machine.
    others = sorted(path for path in clean_dir.glob("*/*.wav") if path.parent.name != voice)
    temporary = _temporary_unit(work)
    for utt in _read_unit(clean_dir / voice):
        clean = _read_wav(clean_dir / voice / f"{utt['utt_id']}.wav")
        is_speech = np.zeros(len(clean), dtype=bool)
        for start, length, phone in utt["phones"]:
            is_speech[start : start + length] = phone != SILENCE_PHONE
        _write_wav(temporary / f"{utt['utt_id']}.wav", _disturb(clean, is_speech, others, options, rng))
    _publish_unit(temporary, target)


def _disturb(clean: np.ndarray, is_speech: np.ndarray, others: list[Path], options: MiniOptions, rng) -> np.ndarray:
    """A room, then noise, then a level; as many samples as before."""
    rt60, direct_to_reverberant_db = rng.uniform(0.1, options.rt60_max), rng.uniform(0.0, 12.0)
    response = simulate.room_impulse_response(rng, rt60, direct_to_reverberant_db, SAMPLE_RATE)
    kind = str(rng.choice(simulate.NOISE_KINDS))
    num_talkers, snr_db = int(rng.integers(3, 7)), rng.uniform(options.snr_min, options.snr_max)
    chosen = rng.choice(len(others), size=num_talkers) if kind == "babble" else []
    noise = simulate.make_noise(rng, kind, len(clean), SAMPLE_RATE, [_read_wav(others[i]) for i in chosen])
    mixture = simulate.add_noise(simulate.reverberate(clean, response), noise, snr_db, is_speech)
    return simulate.set_level(mixture, rng.uniform(-35.0, -18.0))


def _finish(work: Path, plan: dict, recipe: dict, log: Callable[[str], None]) -> None:
    """Lexicon, data directories and truth.ctm from the units; mini.json last."""
    counts = Counter((word, tuple(pron)) for word, pron in json.loads((work / "vocabulary.json").read_text()))
    dirs: dict[str, list[Utterance]] = {}
    for name in SETS:
        noisy, clean, truth = [], [], []
        for voice, _ in plan[name]:
            for utt in _read_unit(work / "wav" / f"{name}_clean" / voice):
                counts.update((w, tuple(p)) for w, p in zip(utt["words"], utt["prons"], strict=True))
                utt_id, words = utt["utt_id"], tuple(utt["words"])
                truth += [
                    f"{utt_id} 1 {start / SAMPLE_RATE:.7f} {length / SAMPLE_RATE:.7f} {phone}\n"
                    for start, length, phone in utt["phones"]
                ]
                for utts, folder in ((noisy, name), (clean, f"{name}_clean")):
                    wav = Recording(utt_id, str(work / "wav" / folder / voice / f"{utt_id}.wav"))
                    utts.append(Utterance(utt_id, voice, wav, words=words))
        dirs[name] = noisy
        write_data_dir(work / name, noisy)
        write_data_dir(work / f"{name}_clean", clean)
        write_text(work / f"{name}_clean" / "truth.ctm", "".join(truth))
        log(f"{name}: {len(noisy)} utterances by {len(plan[name])} voices")
    check_disjoint(dirs, by_speaker=True)
    if UNLABELLED in plan:
        utts = []
        for voice, _ in plan[UNLABELLED]:
            for utt in _read_unit(work / "wav" / f"{UNLABELLED}_clean" / voice):
                wav = Recording(utt["utt_id"], str(work / "wav" / UNLABELLED / voice / f"{utt['utt_id']}.wav"))
                utts.append(Utterance(utt["utt_id"], voice, wav))
        check_disjoint({"dev": dirs["dev"], "test": dirs["test"], UNLABELLED: utts}, by_speaker=True)
        write_data_dir(work / UNLABELLED, utts)
        log(f"{UNLABELLED}: {len(utts)} utterances by {len(plan[UNLABELLED])} voices")
    entries: dict[str, list[tuple[str, ...]]] = {}
    for word, pron in sorted(counts, key=lambda key: (key[0], -counts[key], key[1])):
        entries.setdefault(word, []).append(pron)
    write_lexicon(work / "lexicon.txt", Lexicon(entries))
    write_json(work / "mini.json", recipe)


def _is_up_to_date(out_dir: Path, recipe: dict) -> bool:
    if not out_dir.exists():
        return False
    try:
        made_from = json.loads((out_dir / "mini.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if out_dir.is_dir() and not any(out_dir.iterdir()):
            return False
        raise AsrKdError(f"{out_dir}: holds something else than the mini corpus, name another folder") from error
    if made_from != recipe:
        return False
    try:
        for name in SETS:
            read_data_dir(out_dir / name)
            read_data_dir(out_dir / f"{name}_clean")
        if "hours_unlabelled" in recipe:
            read_data_dir(out_dir / UNLABELLED, need_text=False)
    except AsrKdError:
        return False
    return (
        all((out_dir / f"{name}_clean" / "truth.ctm").is_file() for name in SETS)
        and (out_dir / "lexicon.txt").is_file()
    )


def _open_work_dir(out_dir: Path, recipe: dict) -> Path:
    """The folder beside `out_dir` in which it grows: as a killed run with the same options left it, or new."""
    work = out_dir.absolute().with_name(f".{out_dir.absolute().name}.partial")
    try:
        same = json.loads((work / "recipe.json").read_text(encoding="utf-8")) == recipe
    except (OSError, ValueError):
        same = False
    try:
        if not same:
            shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(work / "tmp", ignore_errors=True)
        (work / "tmp").mkdir(parents=True)
    except OSError as error:
        raise AsrKdError(f"{work}: could not be written ({error.strerror})") from error
    write_json(work / "recipe.json", recipe)
    return work


def _temporary_unit(work: Path) -> Path:
    # A name of its own: a process that a killed run left behind may still be writing the same unit.
    return Path(tempfile.mkdtemp(dir=work / "tmp"))


def _publish_unit(temporary: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary.chmod(0o755)
    try:
        os.replace(temporary, target)
    except OSError as error:
        if not target.is_dir():
            raise AsrKdError(f"{target}: could not be written ({error.strerror})") from error
        shutil.rmtree(temporary, ignore_errors=True)


def _read_unit(path: Path) -> list[dict]:
    return json.loads((path / "unit.json").read_text(encoding="utf-8"))["utts"]


def _write_wav(path: Path, samples: np.ndarray) -> None:
    try:
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
            file.writeframes(samples.astype("<i2").tobytes())
    except OSError as error:
        raise AsrKdError(f"{path}: could not be written ({error.strerror})") from error


def _read_wav(path: Path) -> np.ndarray:
    with wave.open(str(path), "rb") as file:
        return np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float64)


def _every_tenth(log: Callable[[str], None], what: str, total: int) -> Callable[[int], None]:
    def progress(num_done: int) -> None:
        if num_done % 10 == 0 or num_done == total:
            log(f"{num_done} of {total} {what}")

    return progress


def _loader_version() -> str:
    try:
        return importlib.metadata.version("espeakng-loader")
    except importlib.metadata.PackageNotFoundError as error:
        raise AsrKdError(f"the mini corpus is spoken by espeak-ng: {install_hint('mini')}") from error
