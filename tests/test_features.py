"""The front end against values made by Kaldi itself, and what it refuses."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_kd.errors import AsrKdError
from asr_kd.features.deltas import add_deltas
from asr_kd.features.fbank import compute_fbank, compute_fbanks
from asr_kd.features.mel import vtln_warp
from asr_kd.features.mfcc import compute_mfcc, compute_mfccs
from asr_kd.features.options import OPTIONS_OF_KIND, FbankOptions, MfccOptions
from asr_kd.features.splice import splice
from asr_kd.features.window import num_frames

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-3
CASES = json.loads((GOLDEN / "kaldi_features.json").read_text())


@pytest.fixture(scope="module")
def kaldi() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "kaldi_features.npz") as arrays:
        return dict(arrays)


def options_of(arguments: list[str]) -> dict[str, object]:
    """Kaldi's command line to our option names; a later one wins, as in Kaldi."""
    given = {}
    for argument in arguments:
        name, value = argument.removeprefix("--").split("=")
        given[name.replace("-", "_")] = (
            {"true": True, "false": False}.get(value) if value in ("true", "false") else float(value)
        )
    assert given.pop("dither") == 0
    return given


def from_scratch(name: str, kaldi: dict[str, np.ndarray]) -> np.ndarray:
    """Our values for a golden, from the samples on; what Kaldi derives from features is derived from ours."""
    case = CASES[name]
    if name.endswith("_deltas"):
        return add_deltas(from_scratch(case["input"], kaldi))
    if name.startswith("splice"):
        return splice(from_scratch(case["input"], kaldi), *map(int, (o.split("=")[1] for o in case["options"])))
    kind = name.split("_")[0]
    compute = {"fbank": compute_fbank, "mfcc": compute_mfcc}[kind]
    return compute(kaldi[f"wave_{case['sample_rate']}"], OPTIONS_OF_KIND[kind](**options_of(case["options"])))


@pytest.mark.parametrize("name", CASES)
def test_equals_kaldi(name, kaldi):
    ours = from_scratch(name, kaldi)
    assert ours.dtype == np.float32
    assert ours.shape == kaldi[name].shape
    np.testing.assert_allclose(ours, kaldi[name], rtol=0, atol=TOLERANCE)


@settings(max_examples=10, deadline=None)
@given(
    lengths=st.lists(st.integers(400, 90000), min_size=1, max_size=4),
    kind=st.sampled_from(["fbank", "mfcc"]),
    snip_edges=st.booleans(),
    remove_dc_offset=st.booleans(),
    use_energy=st.booleans(),
    raw_energy=st.booleans(),
    vtln_warp=st.sampled_from([0.9, 1.0, 1.1]),
)
def test_tensors_give_what_arrays_give(lengths, kind, **given_options):
    """Two ways of computing, of which that of tensors is for accelerators."""
    options = OPTIONS_OF_KIND[kind](**given_options)
    many = {"fbank": compute_fbanks, "mfcc": compute_mfccs}[kind]
    rng = np.random.default_rng(len(lengths))
    arrays = [rng.normal(scale=2000, size=n).astype(np.float32) for n in lengths]
    of_tensors = many([torch.from_numpy(samples) for samples in arrays], options)
    for feats, expected in zip(of_tensors, many(arrays, options), strict=True):
        assert isinstance(feats, torch.Tensor)
        np.testing.assert_allclose(feats.numpy(), expected, rtol=0, atol=TOLERANCE)


def test_blocks_do_not_show():
    """A long utterance is worked off in blocks: each frame is what it is on its own."""
    samples = np.random.default_rng(1).normal(scale=1000, size=160 * 1200).astype(np.float32)
    feats = compute_fbank(samples)
    for frame in (0, 255, 256, 600, len(feats) - 1):
        alone = compute_fbank(samples[frame * 160 : frame * 160 + 400])
        np.testing.assert_array_equal(alone[0], feats[frame])


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(400, 40000), min_size=1, max_size=12),
    kind=st.sampled_from(["fbank", "mfcc"]),
    num_mel_bins=st.sampled_from([15, 23, 40, 80]),
    snip_edges=st.booleans(),
    use_energy=st.booleans(),
    seed=st.integers(0, 99),
)
def test_company_does_not_change_a_bit(lengths, kind, num_mel_bins, snip_edges, use_energy, seed):
    """Utterances computed together have the bits of each computed alone, so that portions of a corpus can be joined."""
    rng = np.random.default_rng(seed)
    options = OPTIONS_OF_KIND[kind](num_mel_bins=num_mel_bins, snip_edges=snip_edges, use_energy=use_energy)
    utterances = [rng.normal(scale=2000, size=n).astype(np.float32) for n in lengths]
    many, one = {"fbank": (compute_fbanks, compute_fbank), "mfcc": (compute_mfccs, compute_mfcc)}[kind]
    for feats, samples in zip(many(utterances, options), utterances, strict=True):
        np.testing.assert_array_equal(feats, one(samples, options))


def test_nothing_gives_nothing():
    assert compute_fbanks([], FbankOptions()) == []


def test_constant_signal_is_silence():
    """A DC offset leaves nothing once the mean is removed: the floor, not the rounding of pre-emphasis."""
    feats = compute_fbank(np.full(16000, 5000, dtype=np.float32))
    np.testing.assert_allclose(feats, np.log(np.finfo(np.float32).eps), atol=TOLERANCE)


def slow_fbank(samples: np.ndarray, options: FbankOptions) -> np.ndarray:
    """Kaldi's steps one by one, in float64 with a plain DFT: an oracle for options that no golden covers."""
    size, shift, n = options.window_size, options.window_shift, len(samples)
    i = np.arange(size)
    a = 2 * np.pi * i / (size - 1)
    window = {
        "povey": (0.5 - 0.5 * np.cos(a)) ** 0.85,
        "hamming": 0.54 - 0.46 * np.cos(a),
        "hanning": 0.5 - 0.5 * np.cos(a),
        "sine": np.sin(0.5 * a),
        "rectangular": np.ones(size),
        "blackman": 0.42 - 0.5 * np.cos(a) + 0.08 * np.cos(2 * a),
    }[options.window_type]
    rows = []
    for frame in range(num_frames(n, options)):
        start = frame * shift if options.snip_edges else frame * shift + shift // 2 - size // 2
        x = []
        for s in range(start, start + size):
            while not 0 <= s < n:
                s = -s - 1 if s < 0 else 2 * n - 1 - s
            x.append(float(samples[s]))
        x = np.array(x)
        if options.remove_dc_offset:
            x = x - x.mean()
        raw = x
        x = (x - options.preemphasis_coefficient * np.concatenate([x[:1], x[:-1]])) * window
        energy = np.square(raw if options.raw_energy else x).sum()
        energy = np.log(max(energy, np.finfo(np.float32).eps))
        if options.energy_floor > 0:
            energy = max(energy, np.log(options.energy_floor))
        spectrum = np.abs(np.fft.fft(x, options.fft_size))[: options.fft_size // 2]
        power = spectrum**2 if options.use_power else spectrum
        mel = 1127 * np.log1p(np.arange(options.fft_size // 2) * options.sample_frequency / options.fft_size / 700)
        edges = np.linspace(
            1127 * np.log1p(options.low_freq / 700), 1127 * np.log1p(options.upper_freq / 700), options.num_mel_bins + 2
        )
        bins = [power @ np.interp(mel, edges[k : k + 3], [0, 1, 0]) for k in range(options.num_mel_bins)]
        bins = np.array(bins)
        if options.use_log_fbank:
            bins = np.log(np.maximum(bins, np.finfo(np.float32).eps))
        rows.append([energy, *bins] if options.use_energy else bins)
    return np.array(rows)


@settings(max_examples=30, deadline=None)
@given(
    num_samples=st.integers(130, 900),
    window_type=st.sampled_from(["povey", "hamming", "hanning", "sine", "rectangular", "blackman"]),
    snip_edges=st.booleans(),
    remove_dc_offset=st.booleans(),
    round_to_power_of_two=st.booleans(),
    use_energy=st.booleans(),
    raw_energy=st.booleans(),
    energy_floor=st.sampled_from([0.0, 1e9]),
    use_power=st.booleans(),
    frame_length=st.sampled_from([16.0, 20.0]),
    frame_shift=st.sampled_from([5.0, 10.0, 12.5]),
)
def test_equals_kaldi_s_steps_for_any_options(num_samples, **given_options):
    options = FbankOptions(sample_frequency=6000, num_mel_bins=8, **given_options)
    samples = np.random.default_rng(num_samples).normal(loc=300, scale=1000, size=num_samples).astype(np.float32)
    expected = slow_fbank(samples, options)
    ours = compute_fbank(samples, options)
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE)


def test_without_logarithm():
    samples = np.random.default_rng(0).normal(scale=1000, size=4000).astype(np.float32)
    linear = compute_fbank(samples, FbankOptions(use_log_fbank=False))
    np.testing.assert_allclose(np.log(linear), compute_fbank(samples), atol=TOLERANCE)


@pytest.mark.parametrize(("snip_edges", "too_short"), [(True, 399), (False, 79)])
def test_too_short_for_a_frame(snip_edges, too_short):
    options = FbankOptions(snip_edges=snip_edges)
    with pytest.raises(AsrKdError, match=f"{too_short} samples are shorter"):
        compute_fbank(np.zeros(too_short, dtype=np.float32), options)
    assert len(compute_fbank(np.zeros(too_short + 1, dtype=np.float32), options)) == 1


@pytest.mark.parametrize("use_energy", [True, False])
def test_htk_puts_energy_last(kaldi, use_energy):
    """Kaldi's --htk-compat moves a column, and scales C0 by the square root of two."""
    for compute, kind in ((compute_fbank, "fbank"), (compute_mfcc, "mfcc")):
        options = OPTIONS_OF_KIND[kind](use_energy=use_energy)
        plain = compute(kaldi["wave_16000"], options)
        htk = compute(kaldi["wave_16000"], dataclasses.replace(options, htk_compat=True))
        if kind == "fbank" and not use_energy:
            np.testing.assert_array_equal(htk, plain)
            continue
        np.testing.assert_allclose(htk[:, :-1], plain[:, 1:], atol=TOLERANCE)
        scale = 1 if use_energy else np.sqrt(2)
        np.testing.assert_allclose(htk[:, -1], scale * plain[:, 0], rtol=1e-5, atol=TOLERANCE)


def test_mean_and_deltas_follow_each_other(kaldi):
    plain = compute_mfcc(kaldi["wave_8000"], MfccOptions(sample_frequency=8000))
    options = MfccOptions(sample_frequency=8000, subtract_mean=True, delta_order=1, delta_window=3)
    feats = compute_mfcc(kaldi["wave_8000"], options)
    assert feats.shape[1] == options.feat_dim == 26
    np.testing.assert_allclose(feats, add_deltas(plain - plain.mean(axis=0), 1, 3), atol=1e-4)


def test_a_warp_bends_the_axis_and_keeps_its_ends():
    """By its definition: in the middle a warp of w looks at f where f / w is looked at without; the ends stay."""
    options = FbankOptions(vtln_warp=1.1)
    freq = torch.tensor([20.0, 60.0, 1100.0, 3300.0, 8000.0], dtype=torch.float64)
    warped = vtln_warp(freq, options)
    np.testing.assert_allclose(warped[[0, 2, 3, 4]], [20, 1000, 3000, 8000])
    assert 20 < warped[1] < 60
    steps = vtln_warp(torch.linspace(20, 8000, 400, dtype=torch.float64), options).diff()
    assert (steps > 0).all()


@pytest.mark.parametrize("kind", ["fbank", "mfcc"])
@pytest.mark.parametrize(
    "options",
    [
        {"vtln_warp": 0.85},
        {"vtln_warp": 1.15, "vtln_low": 60.0, "vtln_high": 7200.0},
        {"htk_compat": True, "use_energy": True},
        {"subtract_mean": True, "window_type": "hamming", "preemphasis_coefficient": 0.9},
        {"round_to_power_of_two": False, "window_type": "blackman", "raw_energy": False, "use_energy": True},
        {"energy_floor": 1e9, "use_energy": True, "remove_dc_offset": False, "window_type": "rectangular"},
    ],
)
def test_options_are_torchaudios_where_it_is_installed(kaldi, kind, options):
    try:
        from torchaudio.compliance import kaldi as peer
    except (ImportError, OSError) as error:
        pytest.skip(f"torchaudio cannot be imported: {error}")
    ours = {"fbank": compute_fbank, "mfcc": compute_mfcc}[kind](
        kaldi["wave_16000"], OPTIONS_OF_KIND[kind](**{"num_mel_bins": 23, "use_energy": False, **options})
    )
    defaults = {"num_mel_bins": 23, "dither": 0.0, "energy_floor": 0.0}
    theirs = {"fbank": peer.fbank, "mfcc": peer.mfcc}[kind](
        torch.from_numpy(kaldi["wave_16000"]).float()[None], **{**defaults, **options}
    )
    np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-3)


def test_stereo_array_is_refused():
    with pytest.raises(AsrKdError, match="one channel"):
        compute_fbank(np.zeros((2, 1000), dtype=np.float32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low_freq": 5000, "high_freq": 4000}, "mel filters"),
        ({"sample_frequency": 8000, "high_freq": 4001}, "mel filters"),
        ({"window_type": "kaiser"}, "window_type"),
        ({"frame_length": 0.1}, "too few samples"),
        ({"num_mel_bins": 2}, "at least 3"),
        ({"preemphasis_coefficient": 1.5}, "preemphasis"),
        ({"energy_floor": -1}, "energy_floor"),
        ({"delta_order": -1}, "delta_order"),
        ({"vtln_warp": 0}, "vtln_warp"),
        ({"vtln_warp": 1.1, "vtln_high": 9000}, "knees"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(AsrKdError, match=message):
        FbankOptions(**options)


def test_more_cepstra_than_bins():
    with pytest.raises(AsrKdError, match="num_ceps is 24"):
        MfccOptions(num_ceps=24)


def test_more_filters_than_the_fft_resolves():
    with pytest.raises(AsrKdError, match="too many"):
        compute_fbank(np.zeros(4000, dtype=np.float32), FbankOptions(num_mel_bins=200))


def test_options_that_mean_the_same_are_the_same():
    assert FbankOptions(sample_frequency=8000).to_json() == FbankOptions(sample_frequency=8000.0).to_json()


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 12), dim=st.integers(1, 3), left=st.integers(0, 15), right=st.integers(0, 15))
def test_splice_takes_each_neighbour_or_the_edge(n, dim, left, right):
    feats = np.arange(n * dim, dtype=np.float32).reshape(n, dim)
    windows = splice(feats, left, right).reshape(n, left + 1 + right, dim)
    for t in range(n):
        for k in range(left + 1 + right):
            np.testing.assert_array_equal(windows[t, k], feats[min(max(t + k - left, 0), n - 1)])


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 30), order=st.integers(0, 3), window=st.integers(1, 3))
def test_deltas_of_a_line(n, order, window):
    """Away from the edges the first derivative of a line is its slope, and all others are zero."""
    feats = np.arange(n, dtype=np.float32)[:, None] * 3
    out = add_deltas(feats, order, window)
    assert out.shape == (n, order + 1)
    inner = slice(order * window, max(n - order * window, order * window))
    for k, slope in ((1, 3), (2, 0), (3, 0)):
        if k <= order:
            np.testing.assert_allclose(out[inner, k], slope, atol=1e-4)


def test_negative_context_and_orders_are_refused():
    feats = np.zeros((3, 2), dtype=np.float32)
    with pytest.raises(AsrKdError, match="negative"):
        splice(feats, -1, 0)
    with pytest.raises(AsrKdError, match="order"):
        add_deltas(feats, order=-1)
    for function in (lambda f: splice(f, 1, 1), add_deltas):
        with pytest.raises(AsrKdError, match="without frames"):
            function(feats[:0])


@pytest.mark.parametrize("option", ["frame_length", "low_freq", "energy_floor"])
def test_options_that_are_not_numbers_are_refused(option):
    with pytest.raises(AsrKdError, match=f"{option} nan"):
        FbankOptions(**{option: float("nan")})
