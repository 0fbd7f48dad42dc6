"""Digit images as frames: IDX files, the keys that regularise the teacher, and the recipe's steps on a made-up set."""

import dataclasses
import gzip
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_kd.cli import main
from asr_kd.cli_common import run_main
from asr_kd.config import DnnConfig, resolve
from asr_kd.corpus import mnist
from asr_kd.errors import AsrKdError
from asr_kd.nnet.model import Architecture, new_net
from asr_kd.nnet.net_dir import load_card, load_net
from asr_kd.store.ali import AliReader
from asr_kd.store.feats import FeatsReader
from asr_kd.training.augment import Augmentation
from asr_kd.training.optimizer import bound_norms

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data" / "mnist"
SIDE = 8


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()


def made_up_images(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ten patterns, each with noise and at one of nine places."""
    rng = np.random.default_rng(seed)
    patterns = 220 * np.kron(np.random.default_rng(3).integers(0, 2, size=(10, 3, 3)), np.ones((2, 2)))
    digits = rng.integers(0, 10, size=num).astype(np.uint8)
    pixels = np.zeros((num, SIDE, SIDE))
    for image, digit, (row, column) in zip(pixels, digits, rng.integers(0, 3, size=(num, 2)), strict=True):
        image[row : row + SIDE - 2, column : column + SIDE - 2] = patterns[digit]
    return np.clip(pixels + rng.normal(scale=25, size=pixels.shape), 0, 255).astype(np.uint8), digits


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """IDX files of 900 training and 300 test images, one of them not packed."""
    folder = tmp_path_factory.mktemp("idx")
    for prefix, num, seed in (("train", 900, 1), ("t10k", 300, 2)):
        pixels, digits = made_up_images(num, seed)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(digits))
    return folder


@pytest.fixture(scope="module")
def data(corpus, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made") / "data"
    sets, _ = mnist.read_corpus(corpus, any_version=True)
    mnist.write_sets(out, mnist.split(sets, 150, None), lambda text: None)
    return out


def test_every_image_is_a_frame_and_its_digit_the_state(corpus, data):
    pixels, digits = made_up_images(900, 1)
    for name, rows in (("train", slice(0, 750)), ("dev", slice(750, 900))):
        with FeatsReader(data / f"{name}.feats.h5") as reader:
            assert np.array_equal(np.rint(reader.read_all() * 255), pixels[rows].reshape(-1, SIDE * SIDE))
            assert reader.attrs["kind"] == "image"
            ali = AliReader(data / f"{name}.ali.h5")
            assert ali.layout.digest == reader.layout.digest
        assert np.array_equal(ali.pdf, digits[rows])
        assert [ali.phones[phone] for phone in ali.phone] == [str(digit) for digit in digits[rows]]
    assert not set(FeatsReader(data / "train.feats.h5").layout.utt_ids) & set(ali.layout.utt_ids)
    assert AliReader(data / "test.ali.h5").layout.num_frames == 300


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_idx_files_come_back_and_a_byte_more_or_less_is_refused(shape, seed):
    values = np.random.default_rng(seed).integers(0, 256, size=shape).astype(np.uint8)
    contents = idx(values)
    assert np.array_equal(mnist.read_idx(contents, len(shape), "x"), values)
    for damaged in (contents + b"\0", contents[:-1], b"\1" + contents[1:]):
        with pytest.raises(AsrKdError, match=r"^x: "):
            mnist.read_idx(damaged, len(shape), "x")
    with pytest.raises(AsrKdError, match="not with 00000805"):
        mnist.read_idx(contents, 5, "x")


def test_files_that_are_not_mnists_are_refused(corpus, tmp_path):
    with pytest.raises(AsrKdError, match=r"train-images-idx3-ubyte: is not MNIST's .*--any-version"):
        mnist.read_corpus(corpus)
    with pytest.raises(AsrKdError, match=r"lacks train-images-idx3-ubyte\.gz"):
        mnist.read_corpus(tmp_path)
    for path in corpus.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(299, np.uint8)))
    with pytest.raises(AsrKdError, match="300 test images do not fit 299 labels"):
        mnist.read_corpus(tmp_path, any_version=True)
    packed = (corpus / "train-images-idx3-ubyte.gz").read_bytes()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(AsrKdError, match=r"train-images-idx3-ubyte\.gz: cannot be read"):
        mnist.read_corpus(tmp_path, any_version=True)


@pytest.mark.parametrize("dev_images", [0, 900, 1000])
def test_dev_leaves_something_to_train_on(corpus, dev_images):
    sets, _ = mnist.read_corpus(corpus, any_version=True)
    with pytest.raises(AsrKdError, match=f"--dev-images {dev_images}: of 900"):
        mnist.split(sets, dev_images, None)


def test_a_download_is_checked_and_tried_from_the_next_mirror(corpus, tmp_path, monkeypatch):
    served = tmp_path / "served"
    served.mkdir()
    sets = {name: mnist._unpacked(corpus, name) for name in mnist.FILES}
    for name, contents in sets.items():
        (served / f"{name}.gz").write_bytes(gzip.compress(contents))
    mirrors = [(tmp_path / "nowhere").as_uri(), served.as_uri()]
    told: list[str] = []
    with pytest.raises(AsrKdError, match="what was fetched is not MNIST's"):
        mnist.download(tmp_path / "a", mirrors, told.append)
    assert not list((tmp_path / "a").rglob("*ubyte*"))
    assert any("another mirror" in line for line in told)
    monkeypatch.setattr(mnist, "FILES", {name: mnist.hashlib.sha256(data).hexdigest() for name, data in sets.items()})
    folder = mnist.download(tmp_path / "a", mirrors, told.append)
    assert len(mnist.read_corpus(folder)[0]["train"].digits) == 900


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real MNIST is not in ../shared/data/mnist")
def test_the_real_files_have_the_pinned_contents():
    sets, _ = mnist.read_corpus(SHARED)
    assert [len(sets[name].digits) for name in ("train", "test")] == [60000, 10000]
    assert np.bincount(sets["test"].digits)[3] == 1010  # as the paper says


def augmentation(jitter: int = 0, seed: int = 1, feat_dim: int = SIDE * SIDE, window: int = 1, **keys) -> Augmentation:
    config = resolve(DnnConfig, {"image_jitter": jitter, **keys})
    return Augmentation(config, window, feat_dim, seed, torch.device("cpu"))


def test_jitter_shifts_whole_images_by_every_distance_alike():
    images = torch.zeros(5000, SIDE, SIDE)
    images[:, 3, 4] = 1
    shifted = augmentation(2)(images.flatten(1), 7).view(-1, SIDE, SIDE)
    assert torch.equal(shifted.flatten(1).sum(dim=1), torch.ones(5000))
    place = shifted.flatten(1).argmax(dim=1)
    rows, columns = place // SIDE - 3, place % SIDE - 4
    counts = torch.bincount((rows + 2) * 5 + columns + 2, minlength=25)
    assert counts.min() > 140  # of 200 expected
    assert counts.max() < 260


@given(st.integers(1, 9), st.integers(1, 3), st.integers(0, 2**40), st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_jitter_moves_in_nothing_but_background_and_is_the_same_for_all_frames_of_a_window(most, window, seed, step):
    images = torch.rand(6, 1, SIDE, SIDE).expand(-1, window, -1, -1) + 1
    shifted = augmentation(most, seed, window=window)(images.flatten(1), step).view(6, window, SIDE, SIDE)
    assert torch.equal(shifted, shifted[:, :1].expand_as(shifted))
    for before, after in zip(images[:, 0], shifted[:, 0], strict=True):
        candidates = [
            torch.nn.functional.pad(before, (most,) * 4)[r : r + SIDE, c : c + SIDE]
            for r in range(2 * most + 1)
            for c in range(2 * most + 1)
        ]
        assert any(torch.equal(after, candidate) for candidate in candidates)
    again = augmentation(most, seed, window=window)(images.flatten(1), step)
    assert torch.equal(again, shifted.flatten(1))


@pytest.mark.parametrize("key", ["image_affine", "image_elastic", "image_jitter"])
def test_what_moves_pixels_wants_square_images(key):
    with pytest.raises(AsrKdError, match=f"{key} 0.5: frames of 40 values are no square images"):
        Augmentation(
            dataclasses.replace(resolve(DnnConfig, {}), **{key: 0.5}), 1, 40, seed=1, device=torch.device("cpu")
        )


def ramps() -> torch.Tensor:
    """Images (2, 28, 28) of each pixel's row and column about the centre: moved, they tell from where."""
    axis = torch.arange(28) - 13.5
    return torch.stack(torch.meshgrid(axis, axis, indexing="ij"))


def sources(count: int, **keys: float) -> torch.Tensor:
    """From where `count` deformed images have each pixel, (count, 2, 28, 28)."""
    images = ramps().flatten().expand(count, -1)
    return augmentation(window=2, feat_dim=28 * 28, **keys)(images, 3).view(count, 2, 28, 28)


def test_an_affine_image_is_moved_by_a_matrix_about_its_centre():
    inner = slice(7, -7)  # which does not come from beyond the edge
    place, found = ramps()[:, inner, inner].flatten(1), sources(2000, image_affine=0.2)[..., inner, inner].flatten(2)
    matrix = found @ torch.linalg.pinv(place)
    assert torch.allclose(matrix @ place, found, atol=1e-4)
    entries = matrix - torch.eye(2)
    assert entries.abs().max() <= 0.2 + 1e-4
    assert torch.allclose(entries.std(dim=0), torch.full((2, 2), 0.2 / 3**0.5), rtol=0.05)
    assert torch.allclose(entries.mean(dim=0), torch.zeros(2, 2), atol=0.01)


def test_an_elastic_image_is_moved_by_so_many_pixels_and_neighbours_alike():
    moved = (sources(2000, image_elastic=0.5) - ramps())[..., 4:-4, 4:-4]
    assert torch.allclose(moved.std(dim=0), torch.full(moved.shape[1:], 0.5), rtol=0.15)
    step = (moved[..., 1:] - moved[..., :-1]).std()
    assert 0.05 < step < 0.15  # 0.5 / (4 sqrt 2) from one pixel to the next


@given(st.floats(0, 0.3), st.floats(0, 3), st.integers(1, 3), st.integers(0, 2**40), st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_deformations_are_alike_for_all_frames_of_a_window_and_within_the_range(affine, elastic, window, seed, step):
    images = torch.rand(6, 1, SIDE, SIDE).expand(-1, window, -1, -1)
    bend = augmentation(seed=seed, window=window, image_affine=affine, image_elastic=elastic)
    views = bend(images.flatten(1), step).view(6, window, SIDE, SIDE)
    assert torch.allclose(views, views[:, :1].expand_as(views), atol=1e-6)
    assert views.min() >= 0
    assert views.max() <= 1 + 1e-5
    assert torch.equal(bend(images.flatten(1), step), views.flatten(1))
    assert bend(images.flatten(1).bfloat16(), step).dtype == torch.bfloat16


def test_max_norm_bounds_hidden_units_and_leaves_small_weights_and_outputs_alone():
    net = new_net(Architecture(0, 0, 20, 2, 30, 10), seed=1)
    before = [layer.weight.clone() for layer in net.linear]
    bound_norms(net, 1.2)
    for layer, weight in zip(net.linear[:-1], before, strict=False):
        norms = weight.norm(dim=1)
        wanted = weight * (1.2 / norms).clamp(max=1)[:, None]
        assert torch.allclose(layer.weight, wanted, rtol=1e-6)
        assert norms.min() < 1.2 < norms.max()
    assert torch.equal(net.linear[-1].weight, before[-1])


def test_input_dropout_drops_pixels_in_training_alone():
    net = new_net(Architecture(0, 0, 1000, 1, 8, 10, dropout=0.5, input_dropout=0.2), seed=1)
    assert torch.equal(net.linear[0].weight, new_net(Architecture(0, 0, 1000, 1, 8, 10), seed=1).linear[0].weight)
    pixels = torch.ones(50, 1000)
    dropped = net.layers[0](pixels)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.2, abs=0.01)
    assert torch.equal(net.eval().layers[0](pixels), pixels)


SMALL = ["--left-context", 0, "--right-context", 0, "--cmvn", "none", "--num-hidden-layers", 2, "--batch-size", 50]
SMALL += ["--device", "cpu", "--precision", "float32", "--weight-decay", 0, "--keep-best", "last", "--hidden-dim", 40]
SMALL += ["--warmup-steps", 10]


def run(*argv: object) -> None:
    assert main([str(arg) for arg in argv]) == 0


def sets(data: Path) -> list[object]:
    files = [data / f"{name}.{kind}.h5" for name in ("train", "dev") for kind in ("feats", "ali")]
    return [x for pair in zip(("--feats", "--ali", "--dev-feats", "--dev-ali"), files, strict=True) for x in pair]


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("teacher")
    regularised = ["--dropout", 0.2, "--input-dropout", 0.1, "--max-norm", 2, "--image-jitter", 1]
    run("train", *sets(data), *SMALL, *regularised, "--num-epochs", 12, "--learning-rate", 0.01, "--out", out)
    return out / "seed1"


def test_a_net_is_trained_on_shifted_images_within_the_norm_and_its_last_epoch_is_kept(data, teacher):
    trained = load_net(teacher)
    assert trained.training["best_epoch"] == 12
    assert trained.training["history"][-1]["dev_frame_acc"] > 90
    norms = torch.cat([layer.weight.detach().norm(dim=1) for layer in trained.net.linear[:-1]])
    assert float(norms.max()) == pytest.approx(2.0, abs=1e-4)
    assert (trained.cmvn.mode, trained.cmvn.mean.any(), trained.cmvn.istd.min()) == ("none", False, 1.0)
    assert load_card(teacher)["architecture"]["input_dropout"] == 0.1


def test_errors_are_counted_by_digit(data, teacher, tmp_path):
    options = ["--feats", data / "test.feats.h5", "--ali", data / "test.ali.h5", "--device", "cpu"]
    run("count-errors", "--nets", teacher, *options, "--precision", "float32", "--out", tmp_path / "test.json")
    (row,) = json.loads((tmp_path / "test.json").read_text())
    with FeatsReader(data / "test.feats.h5") as reader, torch.inference_mode():
        logits = load_net(teacher).net.eval()(torch.from_numpy(reader.read_all()))
    digits = torch.from_numpy(AliReader(data / "test.ali.h5").pdf)
    wrong = logits.argmax(dim=1) != digits
    assert row["errors"] == int(wrong.sum()) == sum(row["errors_by_pdf"])
    assert row["errors_by_pdf"] == [int(wrong[digits == digit].sum()) for digit in range(10)]
    assert row["frames_by_pdf"] == torch.bincount(digits).tolist()
    assert row["xent"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, digits)), rel=1e-5)


def table(*argv: object) -> None:
    spec = importlib.util.spec_from_file_location("table", ROOT / "recipes" / "mnist" / "table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert run_main(module.main, module.build_parser(), [str(arg) for arg in argv]) == 0


def test_a_digit_that_was_never_seen_is_known_once_its_bias_is_right(data, teacher, tmp_path, capsys):
    """Section 3 of the paper on a set of 900 images: the steps of recipes/mnist and its table."""
    nets, train = tmp_path / "nnet", ["--feats", data / "train.feats.h5", "--device", "cpu"]
    test = ["--feats", data / "test.feats.h5", "--ali", data / "test.ali.h5", "--device", "cpu"]
    for temperature in (4, 1):
        out = tmp_path / f"T{temperature}.h5"
        run("soft-targets", "--teachers", teacher, *train, "--temperature", temperature, "--out", out)
    options = [*sets(data), *SMALL, "--targets", tmp_path / "T4.h5", "--soft-weight", 0.9]
    options += ["--student-epochs", 30, "--student-learning-rate", 0.01]
    run("distill", *options, "--seeds", "1-2", "--out", nets / "distilled")
    run("distill", *options, "--omit-phones", 3, "--out", nets / "without3")
    correct = ["correct-bias", "--net", nets / "without3" / "seed1", "--classes", 3]
    run(*correct, *train, "--targets", tmp_path / "T1.h5", "--out", nets / "without3-corrected" / "seed1")
    run(*correct, *test, "--test-tuned", "--out", nets / "without3-test-tuned" / "seed1")
    for name in ("dev", "test"):
        files = ["--feats", data / f"{name}.feats.h5", "--ali", data / f"{name}.ali.h5", "--device", "cpu"]
        folders = sorted(path.parent for path in nets.rglob("net.json"))
        run("count-errors", "--nets", *folders, *files, "--out", tmp_path / "errors" / f"{name}.json")
    capsys.readouterr()
    table("--errors", tmp_path / "errors", "--nets", nets, "--preset", "quick", "--out", tmp_path / "report")
    rows = {row["name"]: row for row in json.loads((tmp_path / "report" / "results.json").read_text())["rows"]}
    counted = {Path(row["net"]): row for row in json.loads((tmp_path / "errors" / "test.json").read_text())}
    assert rows["distilled"]["test_errors"]["per_seed"] == [
        counted[nets / "distilled" / f"seed{seed}"]["errors"] for seed in (1, 2)
    ]
    errors = {name: row["test_errors"]["mean"] for name, row in rows.items()}
    threes = {name: row["test_errors_on_3"]["mean"] for name, row in rows.items()}
    assert threes["without3"] > 2 * threes["without3-corrected"]
    assert errors["without3"] > errors["without3-corrected"] >= errors["without3-test-tuned"]
    assert rows["without3-corrected"]["biases"][0][0] > 0
    assert rows["without3"]["published"] == {"errors": 206, "errors_on_3": 133}
    shown = capsys.readouterr().out
    assert shown == (tmp_path / "report" / "table.md").read_text()
    assert len(shown.splitlines()) == 2 + len(rows)


IMAGES = ("", "-shifted", "-deformed")


def test_the_recipe_runs_to_its_table(corpus, tmp_path):
    options = "--any-version true --dev-images 150 --student-dim 16 --small-dims 8 --hidden-dim 24 --num-epochs 4"
    options += (
        " --student-epochs 4 --sweep-epochs 2 --sweep-temperatures 2.5 --num-seeds 1 --image-jitter 1 --device cpu"
    )
    command_line = [
        "bash",
        ROOT / "recipes/mnist/run.sh",
        "--corpus",
        corpus,
        "--exp",
        tmp_path / "exp",
        *options.split(),
    ]
    environment = {**os.environ, "ASR_KD_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command_line, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {row["name"]: row for row in json.loads((tmp_path / "exp/report/results.json").read_text())["rows"]}
    assert rows.keys() == {
        *(f"{name}{images}" for name in ("plain", "distilled") for images in IMAGES),
        *("teacher", "distilled-of-deformed", "small/dim8/T2.5"),
        *(f"{name}{bias}" for name in ("without3", "only78") for bias in ("", "-corrected", "-test-tuned")),
    }
    assert (rows["small/dim8/T2.5"]["shape"], rows["small/dim8/T2.5"]["temperature"]) == ("2×8", 2.5)
    moved = {}
    for name in ("teacher", *(f"{n}{i}" for n in ("plain", "distilled") for i in IMAGES)):
        config = load_card(tmp_path / "exp/nnet" / name / "seed1")["training"]["config"]
        moved[name] = [config[key] for key in ("image_jitter", "image_affine", "image_elastic")]
    still, shifted, deformed = [0, 0, 0], [1, 0, 0], [0, 0.15, 1.4]
    assert moved == {
        "teacher": shifted,
        **{"plain": still, "plain-shifted": shifted, "plain-deformed": deformed},
        **{"distilled": still, "distilled-shifted": shifted, "distilled-deformed": deformed},
    }
