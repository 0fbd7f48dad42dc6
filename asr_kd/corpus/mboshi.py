"""Mboshi (Bantu C25): continuous speech recorded in the field, three speakers, 16 kHz, as Kaldi data directories.

Source: github.com/besacier/mboshi-french-parallel-corpus (Godard et al. 2018, arXiv:1710.03501), the folder
full_corpus_newsplit: `train` and `dev` with `{speaker}_{date}_{device}_mdw_elicit_{part}_{number}` as wav (or flac) and
`.mb.cleaned`, a transcript in an orthography close to the language's phonology. Its dev set is test here; dev is cut
from its training set by sentence, and so is what is taken without its transcripts.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import soundfile

from asr_kd.corpus.archive import fetch_archive
from asr_kd.corpus.datadir import Recording, Utterance, check_disjoint, write_data_dir
from asr_kd.corpus.letters import letters_of
from asr_kd.corpus.lexicon import Lexicon, write_lexicon
from asr_kd.errors import AsrKdError
from asr_kd.features.audio import INT16_SCALE, read_audio
from asr_kd.features.audio_headers import check_is_whole
from asr_kd.store.atomic import atomic_dir

SAMPLE_RATE = 16000
COMMIT = "83c5b428a8251881711fa45e4ea5bb5ea6bcdc9b"
URL = f"https://github.com/besacier/mboshi-french-parallel-corpus/archive/{COMMIT}.tar.gz"
FOLDER = "full_corpus_newsplit"
UNLABELLED = "unlabelled"
OFFICIAL = {"train": "train", "test": "dev"}  # our name of a set → the corpus's
NUM_RECORDINGS = {"train": 4616, "test": 514}
# Over transcripts and samples, not files: any faithful copy is welcome, in FLAC too.
DIGESTS = {
    "train": "74b1f8778494093673f381dc53c64f14287511e6f80c229b0051c56fa2a5c7db",
    "test": "e183bce8bab281aead8709d1106876b2b048a4b891bae392b6bb87b9950226ed",
}
SPEAKERS = ("abiayi", "kouarata", "martial")
_NAME = re.compile(r"([a-z]+)_\d{4}(?:-\d\d){5}_[^_]+_mdw_elicit_[A-Za-z]+\d+_\d+")
_TRANSCRIPT = ".mb.cleaned"
_AUDIO = (".wav", ".flac")
# Some headers declare more than the file holds: up to 68 ms, in the pause at the end. More is a broken copy.
_LARGEST_GAP_S = 0.1


@dataclass(frozen=True)
class Spoken:
    """One recording of the corpus; num_missing: samples that its header declares beyond those that it holds."""

    utt_id: str
    spk_id: str
    audio: Path
    words: tuple[str, ...]
    num_missing: int

    @property
    def sentence(self) -> str:
        """Its words, joined by blanks."""
        return " ".join(self.words)


@dataclass(frozen=True)
class Corpus:
    """The official sets as `train` and `test`, by utt_id; what was left out and why; a digest of the sets."""

    sets: dict[str, list[Spoken]]
    left_out: dict[str, str]
    digest: str


def read_corpus(corpus: str | Path, any_version: bool, log: Callable[[str], None]) -> Corpus:
    """Read the corpus in `corpus` (the repository, its full_corpus_newsplit, or a part of that), wav or flac.

    A recording without transcript or with unreadable audio, or a transcript without audio, is left out. Of the training
    set a part will do, which is said through `log`.

    Raises AsrKdError where there is no corpus, a name is not of it, or, unless `any_version`, a speaker is not, or the
    contents are not those of the pinned commit.
    """
    folder = Path(corpus) / FOLDER if (Path(corpus) / FOLDER).is_dir() else Path(corpus)
    sets: dict[str, list[Spoken]] = {}
    left_out: dict[str, str] = {}
    digests = {}
    for name, official in OFFICIAL.items():
        if not (folder / official).is_dir():
            raise AsrKdError(f"{folder / official}: there is no such folder; give the corpus, or its {FOLDER}")
        names = _names(folder / official, any_version)
        log(f"{folder / official}: reading {len(names)} recordings")
        sets[name], lines = [], []
        for utt_id in names:
            try:
                spoken, samples = _read(folder / official, utt_id)
            except AsrKdError as error:
                left_out[utt_id] = str(error)
                continue
            sets[name].append(spoken)
            content = hashlib.sha256(samples.astype("<i2").tobytes()).hexdigest()
            lines.append(f"{utt_id} {content} {spoken.sentence}\n")
        if not sets[name]:
            first = f"; the first, {names[0]}: {left_out[names[0]]}" if names else ""
            raise AsrKdError(f"{folder / official}: has no recording that can be used{first}")
        digests[name] = hashlib.sha256("".join(lines).encode()).hexdigest()
        if not any_version:
            _check_version(folder / official, name, len(sets[name]), digests[name], log)
    for utt_id, why in left_out.items():
        log(f"left out {utt_id}: {why}")
    return Corpus(sets, left_out, hashlib.sha256("".join(digests.values()).encode()).hexdigest())


def _names(folder: Path, any_version: bool) -> list[str]:
    """Names of the recordings and transcripts in a folder, sorted; raises AsrKdError for a name not of the corpus."""
    names = set()
    for path in folder.iterdir():
        for suffix in (*_AUDIO, _TRANSCRIPT):
            if path.name.endswith(suffix):
                names.add(path.name.removesuffix(suffix))
    for name in sorted(names):
        match = _NAME.fullmatch(name)
        if match is None:
            raise AsrKdError(
                f"{folder / name}: is not named {{speaker}}_{{date}}_{{device}}_mdw_elicit_{{part}}_{{number}}"
            )
        if match[1] not in SPEAKERS and not any_version:
            raise AsrKdError(
                f"{folder / name}: {match[1]} is not a speaker of the corpus ({', '.join(SPEAKERS)}); "
                "--any-version takes it all the same"
            )
    return sorted(names)


def _read(folder: Path, utt_id: str) -> tuple[Spoken, np.ndarray]:
    """A recording and its samples (num_samples,); raises AsrKdError where it cannot be used."""
    audio = next((path for suffix in _AUDIO if (path := folder / f"{utt_id}{suffix}").is_file()), None)
    if audio is None:
        raise AsrKdError("it has a transcript, but no audio")
    words = _read_words(folder / f"{utt_id}{_TRANSCRIPT}")
    samples = read_audio(audio, SAMPLE_RATE, accept_truncated=True)
    num_missing = _num_missing(audio)
    if num_missing > _LARGEST_GAP_S * SAMPLE_RATE:
        raise AsrKdError(f"{audio.name} is truncated, {num_missing / SAMPLE_RATE:.2f} s are missing")
    return Spoken(utt_id, utt_id.split("_")[0], audio, words, num_missing), samples


def _num_missing(audio: Path) -> int:
    with open(audio, "rb") as file:
        header = check_is_whole(file, str(audio), accept_truncated=True)
    return 0 if header is None else header.num_declared - header.num_held


def _read_words(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise AsrKdError("it has no transcript") from None
    except (OSError, UnicodeDecodeError) as error:
        raise AsrKdError(f"{path.name} cannot be read ({error})") from error
    words = tuple("".join(letters_of(word)) for word in text.split())
    if not words:
        raise AsrKdError("its transcript is empty")
    for letter in letters_of(text):
        if not letter[0].isalpha():
            raise AsrKdError(f"its transcript holds {letter!r}, which is no letter")
    return words


def _check_version(folder: Path, name: str, num: int, digest: str, log: Callable[[str], None]) -> None:
    if digest == DIGESTS[name]:
        return
    if name == "train" and num < NUM_RECORDINGS[name]:
        log(f"{folder}: {num} of {NUM_RECORDINGS[name]} training recordings; results are not the whole corpus's")
        return
    raise AsrKdError(
        f"{folder}: {num} recordings that are not the {NUM_RECORDINGS[name]} of commit {COMMIT[:12]} of the corpus; "
        "--any-version takes them all the same"
    )


def divide(spoken: Sequence[Spoken], dev_share: float, unlabelled_share: float = 0.0) -> dict[str, list[Spoken]]:
    """train, dev and, where a share is named, unlabelled: each has about that share of the sentences, all recordings.

    Which ones depends on their text alone, so that dev is the same for every seed and share of unlabelled, and a part
    of it where there is a part of the corpus. Raises AsrKdError where a set stays empty.
    """
    ends = {"dev": dev_share, UNLABELLED: dev_share + unlabelled_share, "train": 1.0}
    sets: dict[str, list[Spoken]] = {name: [] for name in ("train", "dev", UNLABELLED)}
    for each in spoken:
        place = _place(each.sentence)
        sets[next(name for name, end in ends.items() if place < end)].append(each)
    if unlabelled_share == 0:
        del sets[UNLABELLED]
    for name, chosen in sets.items():
        if not chosen:
            shares = f"--dev-share {dev_share:g}, --unlabelled-share {unlabelled_share:g}"
            raise AsrKdError(f"{shares}: of {len(spoken)} recordings nothing is left for {name}")
    return sets


def _place(sentence: str) -> float:
    """A number in [0, 1) that is a sentence's own."""
    return int.from_bytes(hashlib.sha256(sentence.encode()).digest()[:6], "big") / 2**48


def make_lexicon(words: Iterable[str]) -> Lexicon:
    """Every word spelled: a letter with its tone mark is a phone."""
    return Lexicon({word: [letters_of(word)] for word in sorted(set(words))})


def write_sets(
    corpus: Corpus, out_dir: str | Path, dev_share: float, log: Callable[[str], None], unlabelled_share: float = 0.0
) -> None:
    """Write data directories {train,dev,test} and lexicons in `out_dir`, which appears complete.

    unlabelled_share: of all sentences but those of test (dev_share, too), whose recordings make a set `unlabelled`,
    without their transcripts.
    lexicon.txt has the words of the training transcripts alone; lexicon_align.txt, for forced alignment, those of dev
    and test too. {train,dev,test}_letters have the letters as words, and lexicon_letters.txt those.
    Recordings whose header declares more than they hold are written anew in wav/, with a true one.
    Raises AsrKdError as divide does.
    """
    sets = divide(corpus.sets["train"], dev_share, unlabelled_share) | {"test": corpus.sets["test"]}
    unlabelled = sets.pop(UNLABELLED, [])
    known = {word for each in sets["train"] for word in each.words}
    with atomic_dir(out_dir, "lexicon_letters.txt") as work:
        utterances = {name: [_utterance(each, work) for each in spoken] for name, spoken in sets.items()}
        untold = [replace(_utterance(each, work), words=None) for each in unlabelled]
        check_disjoint({**utterances, UNLABELLED: untold}, by_speaker=False)
        for name, spoken in sets.items():
            write_data_dir(work / name, utterances[name])
            write_data_dir(work / f"{name}_letters", [_in_letters(each) for each in utterances[name]])
            log(f"{name}: {_summary(spoken, known, {each.sentence for each in sets['train']})}")
        if untold:
            write_data_dir(work / UNLABELLED, untold)
            log(f"{UNLABELLED}: {len(untold)} utterances, whose transcripts are left out")
        write_lexicon(work / "lexicon.txt", make_lexicon(known))
        every = {word for spoken in sets.values() for each in spoken for word in each.words}
        write_lexicon(work / "lexicon_align.txt", make_lexicon(every))
        write_lexicon(work / "lexicon_letters.txt", make_lexicon(letters_of("".join(known))))


def _utterance(spoken: Spoken, work: Path) -> Utterance:
    source = spoken.audio.absolute()
    if spoken.num_missing:
        source = work / "wav" / f"{spoken.utt_id}.wav"
        source.parent.mkdir(exist_ok=True)
        samples = read_audio(spoken.audio, SAMPLE_RATE, accept_truncated=True)
        soundfile.write(source, samples / INT16_SCALE, SAMPLE_RATE, subtype="PCM_16")
    return Utterance(spoken.utt_id, spoken.spk_id, Recording(spoken.utt_id, str(source)), words=spoken.words)


def _in_letters(utterance: Utterance) -> Utterance:
    return replace(utterance, words=letters_of("".join(utterance.words or ())))


def _summary(spoken: Sequence[Spoken], known: Collection[str], trained: Collection[str]) -> str:
    words = [word for each in spoken for word in each.words]
    oov = sum(word not in known for word in words)
    repeated = sum(each.sentence in trained for each in spoken)
    speakers = ", ".join(
        f"{sum(each.spk_id == spk for each in spoken)} of {spk}" for spk in sorted({e.spk_id for e in spoken})
    )
    mended = sum(each.num_missing > 0 for each in spoken)
    return (
        f"{len(spoken)} utterances ({speakers}), {len(words)} words, {100 * oov / len(words):.1f} % of them not in "
        f"training; {repeated} utterances whose sentence is in training; {mended} headers mended"
    )


def download(downloads: str | Path, url: str, any_version: bool, log: Callable[[str], None]) -> Path:
    """The folder of the corpus under `downloads`, fetched from `url` (a .tar.gz) unless it is there already.

    Raises AsrKdError as fetch_archive does, and where the contents are not those of the pinned commit.
    """
    key = COMMIT[:12] if url == URL else hashlib.sha256(url.encode()).hexdigest()[:12]

    def place(path: PurePosixPath) -> PurePosixPath | None:
        wanted = path.parent.parent.name == FOLDER and path.parent.name in OFFICIAL.values()
        wanted = wanted and path.name.endswith((*_AUDIO, _TRANSCRIPT))
        return PurePosixPath(FOLDER, path.parent.name, path.name) if wanted else None

    return fetch_archive(
        Path(downloads) / f"mboshi-{key}", url, place, lambda folder: read_corpus(folder, any_version, log), log
    )
