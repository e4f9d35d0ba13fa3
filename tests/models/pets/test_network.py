"""Probabilistic ensembles: their loss against its formula, bootstrap weights, normalization."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pets_worlds import make_ensemble


def draw_transitions(count: int = 6):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 9, generator=generator)
    change, reward = torch.randn(count, 5, generator=generator), torch.randn(count, generator=generator)
    return inputs, change, reward, torch.arange(count) % 3 == 0


def reference_loss(ensemble, inputs, change, reward, terminal, weights) -> float:
    """The loss in NumPy, transition by transition: Chua et al., section 4, and their bounds of the variances."""
    state = {name: value.double().numpy() for name, value in ensemble.state_dict().items()}
    low, high = state["min_log_variance"], state["max_log_variance"]
    std = np.sqrt(state["input_square"] - state["input_mean"] ** 2)
    softplus = lambda x: np.logaddexp(0, x)  # noqa: E731
    total = 0.01 * (high - low).sum()
    for member in range(2):
        for row in range(len(inputs)):
            hidden = (inputs[row].double().numpy() - state["input_mean"]) / std
            for layer in range(2):
                hidden = hidden @ state[f"linear_layers.{layer}.weight"][member]
                hidden = hidden + state[f"linear_layers.{layer}.bias"][member, 0]
                hidden = hidden / (1 + np.exp(-hidden)) if layer == 0 else hidden
            variance = low + softplus(high - softplus(high - hidden[6:12]) - low)
            error = hidden[:6] - np.append(change[row].numpy(), reward[row].item())
            loss = (error**2 / np.exp(variance) + variance).mean()
            loss += softplus(hidden[12]) - hidden[12] * bool(terminal[row])
            total += loss * weights[member, row].item() / weights[member].sum().item()
    return float(total)


def test_the_loss_is_that_of_the_paper() -> None:
    ensemble = make_ensemble().double()
    inputs, change, reward, terminal = draw_transitions()
    weights = torch.tensor([[1.0, 0, 2, 1, 0, 3], [0, 1, 1, 0, 1, 0]])
    loss, logs = ensemble.loss(inputs.double(), change.double(), reward.double(), terminal, weights.double())
    expected = reference_loss(ensemble, inputs, change, reward, terminal, weights)
    assert loss.item() == pytest.approx(expected, abs=5e-8)  # torch's softplus is linear above 20
    assert set(logs) == {"likelihood_loss", "squared_error", "termination_loss"}


def test_a_member_learns_from_its_bootstrap_sample_alone() -> None:
    ensemble = make_ensemble()
    inputs, change, reward, terminal = draw_transitions()
    weights = torch.tensor([[1.0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    gradients = []
    for changed in (change, change + torch.tensor([0.0, 0, 0, 1, 1, 1])[:, None]):
        ensemble.zero_grad()
        ensemble.loss(inputs, changed, reward, terminal, weights)[0].backward()
        gradients.append(ensemble.linear_layers[0].weight.grad.clone())
    assert torch.equal(*gradients)
    assert gradients[0][0].any() and not gradients[0][1].any()


def test_inputs_are_normalized_by_all_that_were_seen() -> None:
    ensemble = make_ensemble()
    ensemble.inputs_seen.zero_()
    values = torch.randn(50, 9, generator=torch.Generator().manual_seed(2)) * 3 + 1
    for part in values.split(7):
        ensemble.count_inputs(part)
    torch.testing.assert_close(ensemble.input_mean, values.mean(0))
    torch.testing.assert_close(ensemble.input_square, values.square().mean(0))


def test_impossible_settings_are_named() -> None:
    with pytest.raises(ValueError, match="members=1 must be 2 or more"):
        make_ensemble(members=1)
    with pytest.raises(ValueError, match="give num_actions=4 or action_dims=2"):
        make_ensemble(4, 2)
    ensemble = make_ensemble(predict_termination=False)
    assert (ensemble(torch.randn(2, 3, 9)).termination_logit == -math.inf).all()
