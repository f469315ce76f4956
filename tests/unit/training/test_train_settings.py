from __future__ import annotations

from typing import Any

import pytest

from nullarm.errors import StudyError
from nullarm.training.settings import TrainSettings


def settings(**changes: Any) -> TrainSettings:
    return TrainSettings(**{"steps": 100, "batch_size": 4, "learning_rate": 1e-3, **changes})


@pytest.mark.parametrize(
    ("knob", "value", "valid"),
    [
        ("steps", 0, "a whole number from 1"),
        ("steps", 2.5, "a whole number from 1"),
        ("batch_size", -1, "a whole number from 1"),
        ("gradient_accumulation", 0, "a whole number from 1"),
        ("checkpoint_every", 0, "a whole number from 1"),
        ("keep_checkpoints", 0, "a whole number from 1"),
        ("learning_rate", 0.0, "a number above 0"),
        ("learning_rate", float("nan"), "a number above 0"),
        ("weight_decay", -0.1, "a number from 0"),
        ("clip_norm", float("inf"), "a number from 0"),
        ("warmup_ratio", 1.0, "from 0 to below 1"),
        ("schedule", "cosin", "linear, cosine, constant"),
        ("precision", "float32", "fp32, bf16, fp16"),
    ],
)
def test_a_knob_out_of_range_is_named_with_its_value_and_the_valid_ones(knob: str, value: object, valid: str) -> None:
    with pytest.raises(StudyError, match=rf"train\.{knob} is out of range") as caught:
        settings(**{knob: value})
    assert caught.value.valid == valid
    assert caught.value.value is value


def test_warm_up_rises_linearly_to_the_peak() -> None:
    rates = [settings(warmup_ratio=0.1).learning_rate_at(step) for step in range(11)]
    assert rates[:3] == pytest.approx([1e-4, 2e-4, 3e-4])
    assert rates[9] == rates[10] == 1e-3


@pytest.mark.parametrize(("schedule", "half", "last"), [("linear", 5e-4, 1e-5), ("constant", 1e-3, 1e-3)])
def test_schedules_without_warm_up(schedule: str, half: float, last: float) -> None:
    rates = settings(schedule=schedule)
    assert rates.learning_rate_at(0) == 1e-3
    assert rates.learning_rate_at(50) == pytest.approx(half)
    assert rates.learning_rate_at(99) == pytest.approx(last)


def test_cosine_is_flat_at_both_ends() -> None:
    rates = settings(schedule="cosine")
    assert rates.learning_rate_at(50) == pytest.approx(5e-4)
    assert 1e-3 - rates.learning_rate_at(1) < 1e-6
    assert 0 < rates.learning_rate_at(99) < 1e-6
