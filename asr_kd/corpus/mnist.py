"""MNIST as frames of a frame classifier: a digit image is a frame of 784 values, its digit is the state.

Source: LeCun, Cortes and Burges, yann.lecun.com/exdb/mnist, in IDX files: big-endian, a magic number of 0, 0, 8
(unsigned bytes) and the number of dimensions, the dimensions, the values.
"""

import dataclasses
import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asr_kd.corpus.fetch import fetch_from_any
from asr_kd.errors import AsrKdError
from asr_kd.store.ali import write_ali
from asr_kd.store.atomic import atomic_dir
from asr_kd.store.feats import FeatsReader
from asr_kd.store.feats_writer import FeatsWriter

MIRRORS = ("https://storage.googleapis.com/cvdf-datasets/mnist", "https://ossci-datasets.s3.amazonaws.com/mnist")
# SHA-256 of the unpacked files: a .gz differs with who packed it, and any faithful copy is welcome.
FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
NUM_DIGITS = 10
# Images have no utterances. So many neighbours of a file are called one, since the tables grow with utterances.
IMAGES_TOGETHER = 100
_LARGEST_FILE = 1 << 30  # bytes; what an archive of a few may make us hold


@dataclass(frozen=True)
class ImageOptions:
    """What feats.h5 tells of images: no time, no filterbanks. side: pixels along each edge."""

    side: int
    sample_frequency: float = 0.0
    frame_length: float = 0.0
    frame_shift: float = 0.0
    snip_edges: bool = True
    num_mel_bins: int = 0

    @property
    def feat_dim(self) -> int:
        """Pixels of an image."""
        return self.side**2

    def to_json(self) -> str:
        """In a canonical form, as stored in feats.h5 and digested."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


@dataclass(frozen=True)
class Images:
    """Images in the order of their file: pixels (n, side, side) uint8, digits (n,) uint8."""

    pixels: np.ndarray
    digits: np.ndarray


def read_idx(contents: bytes, num_dims: int, where: str) -> np.ndarray:
    """The array (uint8, num_dims dimensions) of an unpacked IDX file.

    Raises AsrKdError naming `where` for another magic number, or more or fewer values than the header says.
    """
    if contents[:4] != bytes([0, 0, 8, num_dims]):
        raise AsrKdError(
            f"{where}: begins with {contents[:4].hex() or 'nothing'}, not with 000008{num_dims:02x} as IDX"
        )
    header = 4 + 4 * num_dims
    if len(contents) < header:
        raise AsrKdError(f"{where}: ends within its header")
    shape = tuple(int(n) for n in np.frombuffer(contents[4:header], ">u4"))
    expected = int(np.prod([*map(int, shape)], dtype=object))
    if len(contents) - header != expected:
        raise AsrKdError(
            f"{where}: its header says {'x'.join(map(str, shape))}, but {len(contents) - header} values follow"
        )
    return np.frombuffer(contents, np.uint8, offset=header).reshape(shape)


def read_corpus(corpus: str | Path, any_version: bool = False) -> tuple[dict[str, Images], str]:
    """The official sets `train` and `test` in the folder `corpus`, and a digest of them; files may be packed (.gz).

    Raises AsrKdError where a file is missing, is not what its name says, or, unless `any_version`, is not MNIST's.
    """
    contents = {name: _unpacked(Path(corpus), name) for name in FILES}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    for name, digest in digests.items():
        if not any_version and digest != FILES[name]:
            raise AsrKdError(
                f"{corpus}/{name}: is not MNIST's (SHA-256 {digest[:12]}…); --any-version takes it all the same"
            )
    sets = {}
    for name, prefix in (("train", "train"), ("test", "t10k")):
        pixels = read_idx(contents[f"{prefix}-images-idx3-ubyte"], 3, f"{corpus}/{prefix}-images-idx3-ubyte")
        digits = read_idx(contents[f"{prefix}-labels-idx1-ubyte"], 1, f"{corpus}/{prefix}-labels-idx1-ubyte")
        if pixels.shape[1] != pixels.shape[2]:
            raise AsrKdError(f"{corpus}: images of {pixels.shape[1]}x{pixels.shape[2]} pixels are not square")
        if len(pixels) != len(digits) or not len(digits) or digits.max() >= NUM_DIGITS:
            raise AsrKdError(f"{corpus}: {len(pixels)} {name} images do not fit {len(digits)} labels of 0 to 9")
        sets[name] = Images(pixels, digits)
    if sets["train"].pixels.shape[1:] != sets["test"].pixels.shape[1:]:
        raise AsrKdError(f"{corpus}: training and test images differ in size")
    return sets, hashlib.sha256("".join(digests.values()).encode()).hexdigest()


def _unpacked(corpus: Path, name: str) -> bytes:
    packed, plain = corpus / f"{name}.gz", corpus / name
    path = packed if packed.is_file() else plain
    try:
        with gzip.open(packed) if path is packed else open(plain, "rb") as file:
            data = file.read(_LARGEST_FILE + 1)
    except FileNotFoundError as error:
        raise AsrKdError(f"{corpus}: lacks {name}.gz; --corpus wants the folder of MNIST's four IDX files") from error
    except (OSError, EOFError, zlib.error) as error:
        raise AsrKdError(f"{path}: cannot be read ({error}); fetch it again") from error
    if len(data) > _LARGEST_FILE:
        raise AsrKdError(f"{path}: unpacks to more than {_LARGEST_FILE} bytes, too many for images of digits")
    return data


def download(downloads: str | Path, mirrors: Sequence[str], log: Callable[[str], None]) -> Path:
    """The folder of the four files under `downloads`, fetched from the first of `mirrors` that has them, and checked.

    Raises AsrKdError where none can be reached or one sends something else.
    """
    folder = Path(downloads) / "mnist"
    for name, digest in FILES.items():
        path = folder / f"{name}.gz"
        if not path.exists():
            fetch_from_any([f"{mirror}/{name}.gz" for mirror in mirrors], path, log)
        if hashlib.sha256(_unpacked(folder, name)).hexdigest() != digest:
            path.unlink()
            raise AsrKdError(f"{path}: what was fetched is not MNIST's; run again, or give the files by --corpus")
    return folder


def split(sets: Mapping[str, Images], dev_images: int, num_images: int | None) -> dict[str, tuple[int, Images]]:
    """train, dev and test with the number that their first image has in its file.

    dev takes the last dev_images of the official training set, of which num_images takes only the first so many (as of
    test). Raises AsrKdError where a set would stay empty.
    """
    train, test = (Images(s.pixels[:num_images], s.digits[:num_images]) for s in (sets["train"], sets["test"]))
    begin = len(train.digits) - dev_images
    if dev_images < 1 or begin < 1 or not len(test.digits):
        raise AsrKdError(f"--dev-images {dev_images}: of {len(train.digits)} images some must remain for training")
    return {
        "train": (0, Images(train.pixels[:begin], train.digits[:begin])),
        "dev": (begin, Images(train.pixels[begin:], train.digits[begin:])),
        "test": (0, test),
    }


def write_sets(out: str | Path, sets: Mapping[str, tuple[int, Images]], log: Callable[[str], None]) -> None:
    """Make the folder `out` with SET.feats.h5 (pixels divided by 255) and SET.ali.h5 (digits as states and phones)."""
    with atomic_dir(out, "train.feats.h5") as work:
        for name, (first, images) in sets.items():
            feats = work / f"{name}.feats.h5"
            _write_feats(feats, "test" if name == "test" else "train", first, images)
            layout = FeatsReader(feats).layout
            digits = images.digits.astype(np.int32)
            names = [str(digit) for digit in range(NUM_DIGITS)]
            write_ali(
                work / f"{name}.ali.h5",
                layout,
                digits,
                num_pdfs=NUM_DIGITS,
                model_digest="digits",
                sil_pdfs=[],
                phone=digits,
                phones=names,
            )
            log(f"{name}: {len(digits)} images")


def _write_feats(path: Path, file: str, first: int, images: Images) -> None:
    values = (images.pixels.reshape(len(images.pixels), -1) / np.float32(255)).astype(np.float32)
    options = ImageOptions(images.pixels.shape[1])
    with FeatsWriter(path, kind="image", options=options, sample_rate=0) as writer:
        for begin in range(0, len(values), IMAGES_TOGETHER):
            writer.append(f"{file}-{first + begin:05d}", file, values[begin : begin + IMAGES_TOGETHER])
