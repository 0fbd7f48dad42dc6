"""LibriSpeech and mini_librispeech: read English of LibriVox, in the layout in which OpenSLR distributes it.

Source: Panayotov, Chen, Povey & Khudanpur, *LibriSpeech: an ASR corpus based on public domain audio books*, 2015;
openslr.org/12 and openslr.org/31 (CC BY 4.0): LibriSpeech/SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac, beside
them SPEAKER-CHAPTER.trans.txt with a line `utterance WORD WORD …` each, and LibriSpeech/SPEAKERS.TXT.
"""

import hashlib
import re
import shutil
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from asr_kd.corpus.datadir import Recording, Utterance, check_disjoint, write_data_dir
from asr_kd.corpus.fetch import fetch_checked
from asr_kd.corpus.tables import to_text
from asr_kd.errors import AsrKdError
from asr_kd.store.atomic import atomic_dir, write_text

SAMPLE_RATE = 16000
SETS = ("train", "dev", "test")
MIRRORS = (
    *("https://www.openslr.org/resources", "https://us.openslr.org/resources"),
    "https://openslr.elda.org/resources",
)
# Where it lies below a mirror, and the MD5 sum that OpenSLR publishes beside it.
ARCHIVES = {
    "train-clean-5": (31, "5df7d4e78065366204ca6845bb08f490"),
    "dev-clean-2": (31, "6d7ab67ac6a1d2c993d050e16d61080d"),
    "train-clean-100": (12, "2a93770f6d5c6c964bc36631d331a522"),
    "train-clean-360": (12, "c0e676e450a7ff2f54aeade5171606fa"),
    "train-other-500": (12, "d1a0fd59409feb2c614ce4d30c387708"),
    "dev-clean": (12, "42e2234ba48799c1f50f24a7926300a1"),
    "dev-other": (12, "c8d0bcc9cca99d4f8b62fcc847357931"),
    "test-clean": (12, "32fa31d27d2e1cad72775fee3f4849a9"),
    "test-other": (12, "fb5a50374b501bb3bac4815ee91d3135"),
}
LANGUAGE_MODELS = {
    "3-gram.pruned.3e-7.arpa.gz": (11, "8f67ec741827742eee05799ab7605b50"),
    "3-gram.pruned.1e-7.arpa.gz": (11, "9a0f1325bcaf3a0f7b7be4be10823c2a"),
    "3-gram.arpa.gz": (11, "74cbb837e582378c26c602e1c8cbcb9c"),
    "4-gram.arpa.gz": (11, "6abdcd5b055bd482e4f9defe91d40408"),
}
_LARGEST_FILE = 100_000_000  # bytes; what an archive may make us write, for each of its files
_CHAPTER_FILE = re.compile(r"[0-9]+-[0-9]+(-[0-9]+\.flac|\.trans\.txt)")


def find_subset(corpus: str | Path, name: str) -> Path:
    """The folder of a subset in a copy of the corpus, which may be LibriSpeech or what it lies in.

    Raises AsrKdError where it is not there.
    """
    for folder in (Path(corpus) / "LibriSpeech" / name, Path(corpus) / name):
        if folder.is_dir():
            return folder
    raise AsrKdError(f"{corpus}: has neither {name} nor LibriSpeech/{name}; unpack {name}.tar.gz there")


def read_subset(folder: Path) -> list[Utterance]:
    """The utterances of a subset, by speaker, chapter and number; a reader is a speaker, whatever the chapter.

    Raises AsrKdError, naming file and line, where the layout is another, or recordings and transcripts do not fit.
    """
    utterances = []
    for chapter in sorted(path for path in folder.glob("*/*") if path.is_dir()):
        spk_id = chapter.parent.name
        flacs = {path.stem for path in chapter.glob("*.flac")}
        text = chapter / f"{spk_id}-{chapter.name}.trans.txt"
        for number, (utt_id, words) in enumerate(_read_lines(text), 1):
            if not utt_id.startswith(f"{spk_id}-{chapter.name}-"):
                raise AsrKdError(f"{text}:{number}: the utterance {utt_id!r} is not of this speaker and chapter")
            if utt_id not in flacs:
                raise AsrKdError(f"{text}:{number}: {utt_id}.flac is not there, or {utt_id} is there twice")
            flacs.remove(utt_id)
            utterances.append(
                Utterance(utt_id, spk_id, Recording(utt_id, str(chapter / f"{utt_id}.flac")), words=words)
            )
        if flacs:
            raise AsrKdError(f"{text}: lacks a transcript of {min(flacs)}.flac")
    if not utterances:
        raise AsrKdError(f"{folder}: has no recordings SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac")
    return utterances


def _read_lines(text: Path) -> list[tuple[str, tuple[str, ...]]]:
    try:
        lines = text.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AsrKdError(f"{text}: the transcripts of the chapter cannot be read ({error})") from error
    rows = []
    for number, line in enumerate(lines, 1):
        utt_id, *words = line.split() or [""]
        if not words:
            raise AsrKdError(f"{text}:{number}: expected an utterance and its words, found {line!r}")
        rows.append((utt_id, tuple(words)))
    return rows


def read_genders(folder: Path) -> dict[str, str]:
    """spk_id → m or f, from the SPEAKERS.TXT (`ID | SEX | SUBSET | MINUTES | NAME`) beside a subset's folder.

    Raises AsrKdError, naming file and line, where it cannot be read.
    """
    path = folder.parent / "SPEAKERS.TXT"
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise AsrKdError(
            f"{path}: cannot be read ({error.strerror}); it comes with every archive of the corpus"
        ) from error
    genders = {}
    for number, line in enumerate(lines, 1):
        if line.startswith(";") or not line.strip():
            continue
        fields = [field.strip() for field in line.split("|")]
        if len(fields) < 2 or not fields[0].isdigit() or fields[1] not in ("F", "M"):
            raise AsrKdError(f"{path}:{number}: expected `ID | F or M | SUBSET | MINUTES | NAME`, found {line!r}")
        genders[fields[0]] = fields[1].lower()
    return genders


def share_speakers(
    utterances: Sequence[Utterance], genders: Mapping[str, str]
) -> tuple[list[Utterance], list[Utterance]]:
    """Two halves without a common speaker: every other speaker of each gender, by id.

    Raises AsrKdError where there is only one speaker.
    """
    speakers = sorted({utt.spk_id for utt in utterances}, key=lambda spk_id: (genders[spk_id], spk_id))
    if len(speakers) < 2:
        raise AsrKdError("dev and test cannot share the one speaker that their subset has; name one subset for each")
    first = set(speakers[::2])
    return [u for u in utterances if u.spk_id in first], [u for u in utterances if u.spk_id not in first]


def read_sets(
    folders: Mapping[str, Path], names: Mapping[str, Sequence[str]]
) -> tuple[dict[str, list[Utterance]], dict[str, str]]:
    """train, dev and test, and the gender of each of their speakers.

    folders: of each subset; names: the subsets of each set. Where dev and test name the same, as mini_librispeech has
    only one, each gets half of the speakers. Raises AsrKdError as the functions above do, for a speaker who is not in
    SPEAKERS.TXT, and where two sets have a speaker in common.
    """
    subsets = {name: read_subset(folder) for name, folder in folders.items()}
    genders = {}
    for name, folder in folders.items():
        known = read_genders(folder)
        for spk_id in {utt.spk_id for utt in subsets[name]}:
            if spk_id not in known:
                raise AsrKdError(f"{folder.parent / 'SPEAKERS.TXT'}: lacks the speaker {spk_id} of {name}")
            genders[spk_id] = known[spk_id]
    sets = {key: [utt for name in names[key] for utt in subsets[name]] for key in SETS}
    if sorted(names["dev"]) == sorted(names["test"]):
        sets["dev"], sets["test"] = share_speakers(sets["dev"], genders)
    check_disjoint(sets, by_speaker=True)
    return sets, genders


def write_sets(
    out: Path, sets: Mapping[str, Sequence[Utterance]], genders: Mapping[str, str], log: Callable[[str], None]
) -> None:
    """Write the data directories {train,dev,test} with spk2gender into the folder `out`."""
    for name, utterances in sets.items():
        speakers = {utt.spk_id for utt in utterances}
        write_data_dir(out / name, utterances)
        write_text(out / name / "spk2gender", to_text({spk_id: genders[spk_id] for spk_id in speakers}))
        log(f"{name}: {len(utterances)} utterances by {len(speakers)} speakers")


def sets_digest(sets: Mapping[str, Sequence[Utterance]], genders: Mapping[str, str]) -> str:
    """SHA-256 over what stands in the data directories, and the sizes of the recordings."""
    digest = hashlib.sha256()
    for name, utterances in sets.items():
        for utt in utterances:
            source = Path(utt.recording.source)
            digest.update(f"{name} {utt.utt_id} {genders[utt.spk_id]} {source} {source.stat().st_size} ".encode())
            digest.update(f"{' '.join(utt.words or ())}\n".encode())
    return digest.hexdigest()


def download(downloads: str | Path, name: str, mirrors: Sequence[str], log: Callable[[str], None]) -> Path:
    """The folder of subset `name` under `downloads`, fetched and unpacked unless it is there.

    Raises AsrKdError for an unknown name, where no mirror can be reached, or for what is not the published archive.
    """
    if name not in ARCHIVES:
        raise AsrKdError(f"{name}: is no subset of LibriSpeech; choose of {', '.join(ARCHIVES)}")
    target = Path(downloads) / f"librispeech-{name}"
    if not target.is_dir():
        resource, md5 = ARCHIVES[name]
        archive = target.with_name(f"{name}.tar.gz")
        fetch_checked([f"{mirror}/{resource}/{name}.tar.gz" for mirror in mirrors], archive, md5, log)
        log(f"unpacking {archive}")
        try:
            with atomic_dir(target) as work:
                _unpack(archive, name, work / "LibriSpeech")
        except (tarfile.TarError, EOFError) as error:
            archive.unlink(missing_ok=True)
            raise AsrKdError(f"{archive}: is no complete archive ({error}), run again to fetch it anew") from error
        archive.unlink()
    return find_subset(target, name)


def _unpack(archive: Path, name: str, folder: Path) -> None:
    """Write SPEAKERS.TXT and the recordings and transcripts of `name` into `folder`, at places of our own making."""
    folder.mkdir(parents=True)
    with tarfile.open(archive, "r:*") as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            is_speakers = parts[-1:] == ("SPEAKERS.TXT",)
            is_chapters = len(parts) >= 4 and parts[-4] == name and _CHAPTER_FILE.fullmatch(parts[-1])
            if not member.isfile() or not (is_speakers or is_chapters):
                continue
            if member.size > _LARGEST_FILE:
                raise AsrKdError(f"{archive}: {member.name} has {member.size} bytes, too many for a read sentence")
            place = folder / "SPEAKERS.TXT" if is_speakers else _chapter_folder(folder / name, parts[-1]) / parts[-1]
            place.parent.mkdir(parents=True, exist_ok=True)
            with open(place, "wb") as file:
                shutil.copyfileobj(tar.extractfile(member), file)


def _chapter_folder(subset: Path, file: str) -> Path:
    spk_id, chapter = re.split(r"[-.]", file)[:2]
    return subset / spk_id / chapter


def language_model(downloads: str | Path, name: str, mirrors: Sequence[str], log: Callable[[str], None]) -> Path:
    """The file of one of LibriSpeech's public language models (openslr.org/11), fetched unless it is there."""
    resource, md5 = LANGUAGE_MODELS[name]
    path = Path(downloads) / name
    if not path.exists():
        fetch_checked([f"{mirror}/{resource}/{name}" for mirror in mirrors], path, md5, log)
    return path


def all_words(sets: Iterable[Sequence[Utterance]]) -> set[str]:
    """Every word of the transcripts."""
    return {word for utterances in sets for utt in utterances for word in utt.words or ()}
