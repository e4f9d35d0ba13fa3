"""Schedules of the learning rate and the weight decay."""

import math

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

from vwm.nn.fused_adam import fuse_adam_on_cuda
from vwm.nn.optimizer import OptimizerConfig


def run_schedule(config: OptimizerConfig, steps: int) -> tuple[list[float], list[list[float]]]:
    """Run a schedule; return the learning rate and the sorted weight decays of the groups before each step."""
    optimizer, schedule = config.build(nn.Linear(3, 3), steps)
    rates, decays = [], []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        decays.append(sorted(group["weight_decay"] for group in optimizer.param_groups))
        optimizer.step()
        schedule.step()
    return rates, decays


def test_warmup_is_linear_from_start_lr_to_lr():
    rates, _ = run_schedule(OptimizerConfig(lr=1.0, start_lr=0.2, warmup=4), 8)
    assert rates == pytest.approx([0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0, 1.0])


def test_a_stretched_cosine_is_truncated_at_the_end_of_the_run():
    rates, _ = run_schedule(OptimizerConfig(lr=1.0, warmup=0, schedule="cosine", min_lr=0.1, stretch=1.25), 8)
    longer, _ = run_schedule(OptimizerConfig(lr=1.0, warmup=0, schedule="cosine", min_lr=0.1), 10)
    assert rates == pytest.approx(longer[:8])


def test_weight_decay_follows_a_cosine_except_for_biases():
    """Biases have no weight decay."""
    _, decays = run_schedule(OptimizerConfig(weight_decay=0.04, final_weight_decay=0.4, stretch=1.25), 8)
    for step, (bias_decay, weight_decay) in enumerate(decays):
        fraction = (1 - math.cos(math.pi * step / 10)) / 2
        assert bias_decay == 0 and weight_decay == pytest.approx(0.04 + 0.36 * fraction)


@pytest.mark.parametrize("steps", [100, -1])
def test_the_schedule_ends_with_the_time_where_the_steps_do_not_suffice(steps):
    """Half of the time is spent after 4 of 100 steps: the learning rate is half of a linear schedule."""
    passed = 0.0
    config = OptimizerConfig(lr=1.0, warmup=1, schedule="linear", weight_decay=0.2, final_weight_decay=0.4)
    optimizer, schedule = config.build(nn.Linear(3, 3), steps, lambda: passed)
    rates, decays = [], []
    for _ in range(8):
        passed += 0.125
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
        decays.append(max(group["weight_decay"] for group in optimizer.param_groups))
    assert rates == pytest.approx([0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0])
    assert decays[3] == pytest.approx(0.3) and decays[-1] == pytest.approx(0.4)
    assert not any(callable(value) for value in schedule.state_dict().values())


def test_the_schedule_ends_with_the_steps_where_there_is_time_left():
    optimizer, schedule = OptimizerConfig(lr=1.0, warmup=0, schedule="linear").build(nn.Linear(3, 3), 4, lambda: 0.1)
    rates = []
    for _ in range(4):
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.75, 0.5, 0.25, 0.0])


def test_a_loaded_schedule_continues_equally():
    config = OptimizerConfig(schedule="cosine", warmup=2, weight_decay=0.04, final_weight_decay=0.4)
    optimizer, schedule = config.build(nn.Linear(3, 3), 10)
    for _ in range(4):
        optimizer.step()
        schedule.step()
    loaded_optimizer, loaded_schedule = config.build(nn.Linear(3, 3), 10)
    loaded_optimizer.load_state_dict(optimizer.state_dict())
    loaded_schedule.load_state_dict(schedule.state_dict())
    for one, two in ((optimizer, schedule), (loaded_optimizer, loaded_schedule)):
        one.step()
        two.step()
    assert [g["lr"] for g in loaded_optimizer.param_groups] == [g["lr"] for g in optimizer.param_groups]
    assert [g["weight_decay"] for g in loaded_optimizer.param_groups] == [
        g["weight_decay"] for g in optimizer.param_groups
    ]


@pytest.mark.parametrize(
    ("settings", "steps", "message"),
    [
        ({"schedule": "cosine"}, -1, "max_steps or trainer.max_time, and neither"),
        ({"final_weight_decay": 0.1}, -1, "max_steps"),
        ({"stretch": 0.5}, 10, r"stretch=0\.5"),
    ],
)
def test_rejects_invalid_settings(settings, steps, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**settings).build(nn.Linear(3, 3), steps)


def test_frozen_parameters_are_not_optimized():
    model = nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    optimizer, _ = OptimizerConfig(lr=0.1, warmup=1).build(model, 5)
    before = model.bias.clone()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert torch.equal(model.bias, before) and len(optimizer.param_groups[0]["params"]) == 1


def test_adam_is_fused_on_cuda_only():
    """The weights say that they are on CUDA; the fused kernel of the CPU stands in for CUDA's."""

    class CUDAParameter(nn.Parameter):
        is_cuda = True

    def train(kind: type[nn.Parameter]) -> tuple[torch.optim.Optimizer, nn.Parameter]:
        weight = kind(torch.arange(4.0))
        optimizer = torch.optim.AdamW([weight], lr=0.1)
        fuse_adam_on_cuda(optimizer, torch.optim.SGD([weight]))
        weight.grad = torch.ones(4)
        MixedPrecision("bf16-mixed", "cpu").clip_gradients(optimizer, 1.0)  # refuses AdamW(fused=True)
        optimizer.step()
        return optimizer, weight

    plain, fused = train(nn.Parameter), train(CUDAParameter)
    assert [one.param_groups[0]["fused"] for one, _ in (plain, fused)] == [None, True]
    torch.testing.assert_close(fused[1].data, plain[1].data)
    built, _ = OptimizerConfig().build(nn.Linear(2, 2), 1)
    assert built.param_groups[0]["fused"] is None
