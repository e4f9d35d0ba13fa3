from types import SimpleNamespace
from typing import cast

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

from vwm.train.ema import EMACallback


class TwoNetworks(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trained, self.frozen = nn.Linear(3, 2).double(), nn.Linear(2, 2).double().requires_grad_(False)

    def networks(self):
        return {"trained": self.trained, "frozen": self.frozen}


def train_for(steps, callback, module, first_step=0):
    """Change the weights, and return the trained ones and the average, one row for each step."""
    trainer = cast(L.Trainer, SimpleNamespace(global_step=first_step))
    callback.on_train_start(trainer, module)
    trained, averages = [], []
    for step in range(first_step, first_step + steps):
        torch.manual_seed(step)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))
        trained.append(module.trained.weight.detach().clone().numpy())
        trainer.global_step = step + 1
        callback.on_train_batch_end(trainer, module, None, None, 0)
        averages.append(callback.state_dict()["average"]["shadow_params"])
        averages[-1] = [average.clone().numpy() for average in averages[-1]]
    return trained, averages


def test_the_decay_grows_to_its_setting():
    module = TwoNetworks()
    trained, averages = train_for(20, EMACallback(0.5), module)
    expected = trained[0]
    for n in range(1, 20):
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * trained[n]
        np.testing.assert_allclose(averages[n][0], expected, atol=1e-14)
    np.testing.assert_array_equal(averages[-1][2], module.frozen.weight.numpy())


def test_a_resumed_average_goes_on():
    whole, part = EMACallback(0.9), EMACallback(0.9)
    module = TwoNetworks()
    _, expected = train_for(6, whole, module)
    module = TwoNetworks()
    train_for(3, part, module)
    resumed = EMACallback(0.9)
    resumed.load_state_dict(part.state_dict())
    _, averages = train_for(3, resumed, module, first_step=3)
    np.testing.assert_array_equal(averages[-1][0], expected[-1][0])


def test_validation_sees_the_average_and_training_goes_on_with_the_weights():
    callback, module = EMACallback(0.9), TwoNetworks()
    trained, averages = train_for(3, callback, module)
    trainer = cast(L.Trainer, SimpleNamespace(global_step=3))
    callback.on_validation_start(trainer, module)
    np.testing.assert_array_equal(module.trained.weight.detach().numpy(), averages[-1][0])
    callback.on_validation_end(trainer, module)
    np.testing.assert_array_equal(module.trained.weight.detach().numpy(), trained[-1])


def test_no_average_is_kept_without_decay():
    callback, module = EMACallback(0), TwoNetworks()
    callback.on_train_start(cast(L.Trainer, SimpleNamespace(global_step=0)), module)
    assert callback.state_dict() == {}
    with pytest.raises(ValueError, match=r"ema\.decay must be at least 0 and below 1, got 1"):
        EMACallback(1)
