"""Connected digits from the Free Spoken Digit Dataset: isolated recordings, 8 kHz, joined with pauses.

Source: github.com/Jakobovski/free-spoken-digit-dataset (CC BY-SA 4.0), `{digit}_{speaker}_{index}.wav`. Its
documentation puts the indexes 0–4 of each digit and speaker in test; dev takes 5–9, training the rest. That is fold 0
of ten: in fold k test has 5k to 5k + 4, dev the five after those, and over all folds each recording is tested once.
"""

import hashlib
import json
import re
import wave
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from asr_kd.corpus import datadir
from asr_kd.corpus.archive import fetch_archive
from asr_kd.corpus.datadir import Utterance, check_disjoint, read_data_dir, write_data_dir
from asr_kd.corpus.lexicon import Lexicon, write_lexicon
from asr_kd.corpus.numbers import DIGITS
from asr_kd.errors import AsrKdError
from asr_kd.store.atomic import atomic_dir, write_json, write_text

SAMPLE_RATE = 8000
COMMIT = "26eb9aaf76e81b692f806f9140c2d2777410d7a1"
URL = f"https://github.com/Jakobovski/free-spoken-digit-dataset/archive/{COMMIT}.tar.gz"
# Over the recordings, not the archive: an archive's bytes depend on who packs it, and any faithful copy is welcome.
CONTENT_DIGEST = "dbd573d7cafe79c4b49f65718115e1304e24e067fa39eff18a660dc6cb9c360f"
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
SETS = ("train", "dev", "test")
FORMAT_VERSION = 1
NUM_FOLDS = 10
_OF_FOLD = 5  # indexes in test, and in dev
_NAME = re.compile(r"([0-9])_([A-Za-z0-9]+)_([0-9]+)\.wav")
_SHORTEST, _LONGEST = 3, 7  # digits in an utterance

LEXICON = Lexicon(
    {
        "zero": [("Z", "IH", "R", "OW"), ("Z", "IY", "R", "OW")],
        "one": [("W", "AH", "N")],
        "two": [("T", "UW")],
        "three": [("TH", "R", "IY")],
        "four": [("F", "AO", "R")],
        "five": [("F", "AY", "V")],
        "six": [("S", "IH", "K", "S")],
        "seven": [("S", "EH", "V", "AH", "N")],
        "eight": [("EY", "T")],
        "nine": [("N", "AY", "N")],
    }
)


@dataclass(frozen=True)
class Recording:
    """One isolated digit of the corpus."""

    digit: int
    speaker: str
    index: int
    path: Path


def find_recordings(corpus: str | Path, any_version: bool = False) -> tuple[list[Recording], str]:
    """The recordings in `corpus` or `corpus`/recordings, sorted by name, and their content digest.

    Raises AsrKdError where there are none, a name is not of the corpus, or, unless `any_version`, one is missing or
    the contents are not those of the pinned commit.
    """
    corpus = Path(corpus)
    folder = corpus / "recordings" if (corpus / "recordings").is_dir() else corpus
    if not folder.is_dir():
        raise AsrKdError(f"{corpus}: there is no such folder")
    recordings, unknown = [], []
    for path in sorted(folder.glob("*.wav")):
        match = _NAME.fullmatch(path.name)
        if match:
            recordings.append(Recording(int(match[1]), match[2], int(match[3]), path))
        else:
            unknown.append(path.name)
    if unknown:
        raise AsrKdError(f"{folder}: {_some(unknown)} not named {{digit}}_{{speaker}}_{{index}}.wav")
    if not recordings:
        raise AsrKdError(f"{folder}: there are no recordings {{digit}}_{{speaker}}_{{index}}.wav")
    digest = content_digest(recording.path for recording in recordings)
    if not any_version and digest != CONTENT_DIGEST:
        raise AsrKdError(f"{folder}: {_difference(recordings)}; --any-version takes it all the same")
    return recordings, digest


def content_digest(paths: Iterable[Path]) -> str:
    """SHA-256 over the lines `name sha256`, sorted: the same for every copy of the same recordings."""
    lines = sorted(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in paths)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def split_recordings(
    recordings: Sequence[Recording], holdout_speaker: str | None, fold: int = 0
) -> dict[str, list[Recording]]:
    """Train, dev and test: by index (in fold 0 test 0–4, dev 5–9), or test all of one speaker and dev of the others.

    Raises AsrKdError for an unknown speaker or fold, or a set that stays empty.
    """
    if not 0 <= fold < NUM_FOLDS:
        raise AsrKdError(f"--fold {fold} is not one of 0 to {NUM_FOLDS - 1}")
    speakers = sorted({recording.speaker for recording in recordings})
    if holdout_speaker is not None and holdout_speaker not in speakers:
        raise AsrKdError(f"--holdout-speaker {holdout_speaker} is not one of {', '.join(speakers)}")
    sets: dict[str, list[Recording]] = {name: [] for name in SETS}
    for recording in recordings:
        if holdout_speaker is not None:
            in_test = recording.speaker == holdout_speaker
        else:
            in_test = recording.index // _OF_FOLD == fold
        in_dev = recording.index // _OF_FOLD == (fold + 1) % NUM_FOLDS
        sets["test" if in_test else "dev" if in_dev else "train"].append(recording)
    for name in SETS:
        if not sets[name]:
            raise AsrKdError(f"no recording is left for {name} of the {len(recordings)} there are")
    return sets


def group_recordings(recordings: Sequence[Recording], rng: np.random.Generator) -> list[list[Recording]]:
    """Shuffle each speaker's recordings into utterances of 3–7 digits, each recording in exactly one.

    A speaker with fewer than three recordings gets one shorter utterance.
    """
    groups = []
    for speaker in sorted({recording.speaker for recording in recordings}):
        pool = [recording for recording in recordings if recording.speaker == speaker]
        pool = [pool[index] for index in rng.permutation(len(pool))]
        while pool:
            # Sizes that leave nothing, or enough for another utterance.
            sizes = [s for s in range(_SHORTEST, _LONGEST + 1) if len(pool) == s or len(pool) - s >= _SHORTEST]
            size = int(rng.choice(sizes)) if sizes else len(pool)
            groups.append(pool[:size])
            pool = pool[size:]
    return groups


def join_samples(parts: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Join int16 recordings with pauses of 50–350 ms between them and 100–300 ms at the edges.

    Pauses hold noise at the level of the recordings' quietest 10 ms, never digital zero. Returns int16.
    """
    floors = [_noise_level(part) for part in parts]
    pieces = [_pause(rng, rng.uniform(0.1, 0.3), floors[0])]
    for index, part in enumerate(parts):
        pieces.append(part)
        last = index + 1 == len(parts)
        seconds = rng.uniform(0.1, 0.3) if last else rng.uniform(0.05, 0.35)
        pieces.append(_pause(rng, seconds, floors[index] if last else (floors[index] + floors[index + 1]) / 2))
    return np.concatenate(pieces)


def build_fsdd(
    corpus: str | Path,
    out_dir: str | Path,
    seed: int,
    holdout_speaker: str | None,
    any_version: bool,
    log: Callable[[str], None],
    fold: int = 0,
) -> bool:
    """Make data directories {train,dev,test}, lexicon.txt and wav/ in `out_dir`; False where they are up to date.

    Each data directory has a file utt2recordings with the sources of each utterance. `out_dir` appears when complete.

    Raises AsrKdError as the functions above do, and for a recording that is not 16-bit mono at 8 kHz.
    """
    if seed < 0:
        raise AsrKdError(f"--seed is {seed}, it must not be negative")
    out_dir = Path(out_dir)
    recordings, digest = find_recordings(corpus, any_version)
    recipe = {
        "format_version": FORMAT_VERSION,
        "content_digest": digest,
        "seed": seed,
        "holdout_speaker": holdout_speaker,
        **({"fold": fold} if fold else {}),
    }
    if _is_up_to_date(out_dir, recipe):
        return False
    sets = split_recordings(recordings, holdout_speaker, fold)
    dirs: dict[str, list[Utterance]] = {}
    with atomic_dir(out_dir) as work:
        for number, name in enumerate(SETS):
            rng = np.random.default_rng([seed, number])
            dirs[name] = _write_set(work, name, group_recordings(sets[name], rng), rng)
            log(f"{name}: {len(dirs[name])} utterances of {len(sets[name])} recordings")
        check_disjoint(dirs, by_speaker=False)
        write_lexicon(work / "lexicon.txt", LEXICON)
        write_json(work / "fsdd.json", recipe)
    return True


def download(downloads: str | Path, url: str, any_version: bool, log: Callable[[str], None]) -> Path:
    """The folder of the recordings under `downloads`, fetched from `url` (a .tar.gz) unless it is there already.

    Only the recordings are unpacked, and only a corpus whose contents are those of the pinned commit is kept, unless
    `any_version`. Raises AsrKdError as fetch_archive does.
    """
    key = COMMIT[:12] if url == URL else hashlib.sha256(url.encode()).hexdigest()[:12]

    def place(path: PurePosixPath) -> PurePosixPath | None:
        wanted = path.suffix == ".wav" and path.parent.name == "recordings"
        return PurePosixPath("recordings", path.name) if wanted else None

    return fetch_archive(
        Path(downloads) / f"fsdd-{key}", url, place, lambda folder: find_recordings(folder, any_version), log
    )


def _write_set(work: Path, name: str, groups: list[list[Recording]], rng: np.random.Generator) -> list[Utterance]:
    utterances, sources = [], []
    for number, group in enumerate(groups):
        utt_id = f"{group[0].speaker}-{name}-{number:04d}"
        wav = work / "wav" / name / f"{utt_id}.wav"
        wav.parent.mkdir(parents=True, exist_ok=True)
        _write_wav(wav, join_samples([_read_wav(recording.path) for recording in group], rng))
        source = datadir.Recording(utt_id, str(wav))
        utterances.append(Utterance(utt_id, group[0].speaker, source, words=tuple(DIGITS[r.digit] for r in group)))
        sources.append(f"{utt_id} {' '.join(recording.path.stem for recording in group)}\n")
    write_data_dir(work / name, utterances)
    write_text(work / name / "utt2recordings", "".join(sorted(sources)))
    return utterances


def _is_up_to_date(out_dir: Path, recipe: dict) -> bool:
    if not out_dir.exists() or (out_dir.is_dir() and not any(out_dir.iterdir())):
        return False
    try:
        made_from = json.loads((out_dir / "fsdd.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AsrKdError(f"{out_dir}: holds something else than joined digits, name another folder") from error
    if made_from != recipe or not (out_dir / "lexicon.txt").is_file():
        return False
    try:
        for name in SETS:
            read_data_dir(out_dir / name)
    except AsrKdError:
        return False
    return True


def _difference(recordings: Sequence[Recording]) -> str:
    names = {recording.path.name for recording in recordings}
    expected = {f"{d}_{s}_{i}.wav" for d in range(10) for s in SPEAKERS for i in range(50)}
    problems = []
    if missing := sorted(expected - names):
        problems.append(f"{_some(missing)} missing")
    if unknown := sorted(names - expected):
        problems.append(f"{_some(unknown)} not in the version that is pinned")
    if not problems:
        problems.append("the recordings' names are right, but their contents are not")
    return f"differs from commit {COMMIT[:12]} of the corpus: " + " and ".join(problems)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{shown} {'is' if len(names) == 1 else 'are'}"


def _noise_level(samples: np.ndarray) -> float:
    frame = SAMPLE_RATE // 100
    num_frames = len(samples) // frame
    if num_frames == 0:
        return 1.0
    frames = samples[: num_frames * frame].reshape(num_frames, frame).astype(np.float64)
    return max(1.0, float(np.min(np.std(frames, axis=1))))


def _pause(rng: np.random.Generator, seconds: float, level: float) -> np.ndarray:
    noise = rng.normal(0.0, level, round(seconds * SAMPLE_RATE))
    return np.clip(np.rint(noise), -32768, 32767).astype(np.int16)


def _read_wav(path: Path) -> np.ndarray:
    try:
        with wave.open(str(path), "rb") as file:
            layout = (file.getnchannels(), file.getsampwidth(), file.getframerate())
            samples = file.readframes(file.getnframes())
            expected = file.getnframes() * file.getnchannels() * file.getsampwidth()
    except (OSError, EOFError, wave.Error) as error:
        raise AsrKdError(f"{path}: is no readable wav file ({error})") from error
    if layout != (1, 2, SAMPLE_RATE):
        raise AsrKdError(f"{path}: 16-bit mono at {SAMPLE_RATE} Hz was expected")
    if not samples or len(samples) != expected:
        raise AsrKdError(f"{path}: holds {len(samples)} bytes of samples, its header says {expected}")
    return np.frombuffer(samples, dtype="<i2")


def _write_wav(path: Path, samples: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())
