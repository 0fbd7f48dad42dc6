import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_kd.training import random_order as module
from asr_kd.training.random_order import random_order

CPU = torch.device("cpu")


@given(st.integers(1, 3000), st.integers(0, 10**9))
@settings(max_examples=60, deadline=None)
def test_every_number_comes_once(number, seed):
    order = random_order(number, seed, CPU)
    assert order.dtype == torch.int32
    assert torch.equal(order.sort().values, torch.arange(number, dtype=torch.int32))


def test_no_place_is_fond_of_a_number():
    """Means of places over 2000 seeds lie as those of evenly drawn numbers, as do those of neighbours' products."""
    orders = torch.stack([random_order(500, seed, CPU) for seed in range(2000)]).double()
    deviations = (orders - 249.5) / orders.std()
    for values in (deviations, deviations[:, 1:] * deviations[:, :-1]):
        z = values.mean(dim=0) * 2000**0.5
        assert z.abs().max() < 5
        assert 0.85 < float(z.std()) < 1.15


def test_blocks_do_not_show(monkeypatch):
    whole = random_order(1000, 7, CPU)
    monkeypatch.setattr(module, "_AT_ONCE", 64)
    assert torch.equal(random_order(1000, 7, CPU), whole)
    assert not torch.equal(random_order(1000, 8, CPU), whole)
