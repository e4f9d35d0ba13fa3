"""Schedules: where the rate and the weight decay stand at every step."""

import math

import pytest
import torch
from torch import nn

from vwm.nn.optimizer import OptimizerConfig


def course(config: OptimizerConfig, steps: int) -> tuple[list[float], list[list[float]]]:
    """Rate, and weight decays of the groups, before each of the steps."""
    optimizer, schedule = config.build(nn.Linear(3, 3), steps)
    rates, decays = [], []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        decays.append(sorted(group["weight_decay"] for group in optimizer.param_groups))
        optimizer.step()
        schedule.step()
    return rates, decays


def test_a_warm_up_goes_in_a_line_from_its_start_to_the_peak():
    rates, _ = course(OptimizerConfig(lr=1.0, start_lr=0.2, warmup=4), 8)
    assert rates == pytest.approx([0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0, 1.0])


def test_a_stretched_cosine_is_broken_off_at_the_end_of_the_run():
    rates, _ = course(OptimizerConfig(lr=1.0, warmup=0, schedule="cosine", min_lr=0.1, stretch=1.25), 8)
    whole, _ = course(OptimizerConfig(lr=1.0, warmup=0, schedule="cosine", min_lr=0.1), 10)
    assert rates == pytest.approx(whole[:8])


def test_weight_decay_follows_a_cosine_where_there_is_any():
    """Biases keep none."""
    _, decays = course(OptimizerConfig(weight_decay=0.04, final_weight_decay=0.4, stretch=1.25), 8)
    for step, (of_bias, of_weight) in enumerate(decays):
        share = (1 - math.cos(math.pi * step / 10)) / 2
        assert of_bias == 0 and of_weight == pytest.approx(0.04 + 0.36 * share)


def test_a_schedule_of_both_goes_on_where_it_was_saved():
    config = OptimizerConfig(schedule="cosine", warmup=2, weight_decay=0.04, final_weight_decay=0.4)
    optimizer, schedule = config.build(nn.Linear(3, 3), 10)
    for _ in range(4):
        optimizer.step()
        schedule.step()
    again, taken_up = config.build(nn.Linear(3, 3), 10)
    again.load_state_dict(optimizer.state_dict())
    taken_up.load_state_dict(schedule.state_dict())
    for one, two in ((optimizer, schedule), (again, taken_up)):
        one.step()
        two.step()
    assert [g["lr"] for g in again.param_groups] == [g["lr"] for g in optimizer.param_groups]
    assert [g["weight_decay"] for g in again.param_groups] == [g["weight_decay"] for g in optimizer.param_groups]


@pytest.mark.parametrize(
    ("settings", "steps", "named"),
    [
        ({"schedule": "cosine"}, -1, "max_steps"),
        ({"final_weight_decay": 0.1}, -1, "max_steps"),
        ({"stretch": 0.5}, 10, r"stretch=0\.5"),
    ],
)
def test_what_cannot_be_is_named(settings, steps, named):
    with pytest.raises(ValueError, match=named):
        OptimizerConfig(**settings).build(nn.Linear(3, 3), steps)


def test_gradients_move_weights_and_not_what_is_frozen():
    model = nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    optimizer, _ = OptimizerConfig(lr=0.1, warmup=1).build(model, 5)
    before = model.bias.clone()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert torch.equal(model.bias, before) and len(optimizer.param_groups[0]["params"]) == 1
