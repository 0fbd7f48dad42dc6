"""Learning rates: shapes of the decays, and newbob against a run of Kaldi's script worked out by hand."""

import json
import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_kd.config import DnnConfig, resolve
from asr_kd.errors import AsrKdError
from asr_kd.training.schedule import DECAYS, Newbob, Verdict, make_schedule


def config(**values: object) -> DnnConfig:
    return resolve(DnnConfig, values)


def rates(num_steps: int, **values: object) -> list[float]:
    schedule = make_schedule(config(**values), num_steps)
    return [schedule.learning_rate(step) for step in range(num_steps)]


@pytest.mark.parametrize("name", ["linear", "cosine", "exponential"])
def test_the_learning_rate_warms_up_and_decays_to_its_final_ratio(name):
    got = rates(100, schedule=name, learning_rate=1.0, warmup_steps=10, final_learning_rate_ratio=0.1)
    assert got[0] == pytest.approx(0.1)
    assert max(got) == pytest.approx(1.0)
    assert got[-1] == pytest.approx(0.1)
    assert all(a < b for a, b in pairwise(got[:10]))
    assert all(a > b for a, b in pairwise(got[10:]))


def test_each_decay_has_its_own_middle():
    values = {"learning_rate": 1.0, "warmup_steps": 0, "final_learning_rate_ratio": 0.01}
    middle = {name: rates(101, schedule=name, **values)[50] for name in DECAYS}
    assert middle == pytest.approx({"linear": 0.505, "cosine": 0.505, "exponential": 0.1, "constant": 1.0})
    quarter = rates(101, schedule="cosine", **values)[25]
    assert quarter == pytest.approx(0.01 + 0.99 * (1 + math.cos(math.pi / 4)) / 2)


@given(st.sampled_from(sorted(DECAYS)), st.integers(1, 50), st.integers(0, 100), st.floats(0.001, 1.0))
@settings(max_examples=60, deadline=None)
def test_every_rate_lies_between_0_and_the_peak(name, num_steps, warmup, ratio):
    got = rates(num_steps, schedule=name, learning_rate=2.0, warmup_steps=warmup, final_learning_rate_ratio=ratio)
    assert all(0 < rate <= 2.0 * (1 + 1e-12) for rate in got)


def follow(newbob: Newbob, losses: list[float]) -> list[tuple[float, bool, bool]]:
    """(rate of the epoch, accepted, finished) for each loss on dev, until the end."""
    rows = []
    for epoch, loss in enumerate(losses, 1):
        rate = newbob.learning_rate(10 * epoch)
        verdict = newbob.after_epoch(epoch, loss)
        rows.append((rate, verdict.accepted, verdict.finished))
        if verdict.finished:
            break
    return rows


# What train_scheduler.sh does with these losses of the dev set at learn_rate 0.008, worked out line by line.
# 4.0 (untrained) → 2.0: better by 50 %. → 1.5: 25 %. → 1.49: 0.67 % < 1 %, halving begins. → 1.40: 6 %, halved again.
# → 1.42: worse, rejected, improvement 0 < 0.1 % while halving: the end.
LOSSES = [2.0, 1.5, 1.49, 1.40, 1.42, 1.0]
KALDI = [
    (0.008, True, False),
    (0.008, True, False),
    (0.008, True, False),
    (0.004, True, False),
    (0.002, False, True),
]


def newbob(**values: object) -> Newbob:
    schedule = make_schedule(config(schedule="newbob", learning_rate=0.008, warmup_steps=0, **values), 1000)
    schedule.begin(4.0)
    return schedule


def test_newbob_does_what_train_scheduler_does():
    assert follow(newbob(), LOSSES) == KALDI


def test_newbob_rejects_an_epoch_that_is_worse_and_halves():
    """Not halving yet, a worse epoch is improvement 0: rejected, halving begins; the next is measured against 2.0."""
    rows = follow(newbob(), [2.0, 2.1, 1.9, 1.8999])
    assert rows == [(0.008, True, False), (0.008, False, False), (0.004, True, False), (0.002, True, True)]


def test_keep_lr_iters_accepts_and_keeps_the_rate():
    rows = follow(newbob(keep_lr_iters=2), [2.0, 2.5, 2.49, 2.0, 2.0])
    # Epoch 2 is worse and accepted; epoch 3 improves on 2.5 by 0.4 %: halving; epoch 5 by 0: the end, rejected.
    assert rows == [
        (0.008, True, False),
        (0.008, True, False),
        (0.008, True, False),
        (0.004, True, False),
        (0.002, False, True),
    ]


def test_min_iters_trains_on_without_rejecting_and_leaves_the_rate_where_it_would_have_ended():
    rows = follow(newbob(min_iters=4), [2.0, 2.0, 2.0, 1.9, 1.9])
    # Epoch 2: improvement 0, halving. Epoch 3: 0 while halving ought to end, and goes on at the same rate.
    assert rows == [
        (0.008, True, False),
        (0.008, True, False),
        (0.004, True, False),
        (0.004, True, False),
        (0.002, False, True),
    ]


@given(st.lists(st.floats(0.5, 4.0), min_size=2, max_size=12), st.integers(0, 11))
@settings(max_examples=60, deadline=None)
def test_newbob_goes_on_from_its_saved_state(losses, cut):
    whole = follow(newbob(), losses)
    first = newbob()
    before = follow(first, losses[:cut])
    if before and before[-1][2]:
        assert before == whole
        return
    second = make_schedule(config(schedule="newbob", learning_rate=0.008, warmup_steps=0), 1000)
    second.restore(json.loads(json.dumps(first.state)))
    rest = []
    for epoch, loss in list(enumerate(losses, 1))[cut:]:
        rate = second.learning_rate(10 * epoch)
        verdict = second.after_epoch(epoch, loss)
        rest.append((rate, verdict.accepted, verdict.finished))
        if verdict.finished:
            break
    assert before + rest == whole


def test_newbob_warms_up_where_it_is_asked_to():
    schedule = make_schedule(config(schedule="newbob", learning_rate=1.0, warmup_steps=4), 100)
    assert [schedule.learning_rate(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_newbob_needs_the_untrained_nets_loss():
    schedule = make_schedule(config(schedule="newbob"), 100)
    with pytest.raises(AsrKdError, match="untrained net"):
        schedule.after_epoch(1, 2.0)


def test_the_other_schedules_accept_every_epoch():
    assert make_schedule(config(), 10).after_epoch(1, 9.9) == Verdict(accepted=True, finished=False)


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("schedule", "newbobb", "linear, cosine, exponential, constant or newbob"),
        ("dropout", 1, "from 0 to below 1"),
        ("dropout_schedule", "0.1,1.2", "rates from 0"),
        ("label_smoothing", -0.1, "from 0 to below 1"),
        ("learning_rate", 0, "above 0"),
        ("left_context", -1, "at least 0"),
        ("max_steps", 0, "at least 1, or null"),
        ("halving_factor", 1, "between 0 and 1"),
        ("keep_best", "wer", "frame_acc, xent or last"),
        ("checkpoint_minutes", 0, "above 0"),
    ],
)
def test_values_that_no_net_can_be_trained_with_are_named(key, value, what):
    verb = "should" if key in ("schedule", "keep_best") else "must"  # a word is refused by its type
    with pytest.raises(AsrKdError, match=f"{key}.*{verb} be .*{what}"):
        config(**{key: value})


def test_exponential_decay_to_nothing_is_refused():
    with pytest.raises(AsrKdError, match="final_learning_rate_ratio"):
        config(schedule="exponential", final_learning_rate_ratio=0)
