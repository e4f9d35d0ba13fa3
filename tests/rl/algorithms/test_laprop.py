"""LaProp equals its update equations in float64."""

import pytest
import torch

from vwm.rl.algorithms.laprop import LaProp


def reference(weights: list[float], gradients: list[list[float]], lr: float, warmup: int) -> list[float]:
    w = torch.tensor(weights, dtype=torch.float64)
    square, momentum = torch.zeros_like(w), torch.zeros_like(w)
    for step, g in enumerate(gradients, 1):
        g = torch.tensor(g, dtype=torch.float64)
        g = g / max(1.0, float(g.norm()) / (0.3 * max(1e-3, float(w.norm()))))
        square = 0.999 * square + 0.001 * g**2
        momentum = 0.9 * momentum + 0.1 * g / (square / (1 - 0.999**step)).sqrt()
        w = w - lr * min(1.0, (step - 1) / warmup) * momentum / (1 - 0.9**step)
    return w.tolist()


def test_steps_equal_the_reference() -> None:
    start, gradients = [0.5, -1.0], [[0.1, 3.0], [0.2, -0.1], [5.0, 0.3], [0.01, 0.2]]
    weight = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    without_gradient = torch.nn.Parameter(torch.ones(1))
    optimizer = LaProp([weight, without_gradient], lr=0.1, warmup=2)
    for gradient in gradients:
        weight.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    assert weight.tolist() == pytest.approx(reference(start, gradients, 0.1, 2), abs=1e-12)
    assert without_gradient.item() == 1


def test_a_loaded_state_continues_equally() -> None:
    def run(reload: bool) -> list[float]:
        weight = torch.nn.Parameter(torch.tensor([0.5, -1.0]))
        optimizer = LaProp([weight], lr=0.1, warmup=3)
        for step in range(6):
            if reload and step == 3:
                fresh = LaProp([weight], lr=0.1, warmup=3)
                fresh.load_state_dict(optimizer.state_dict())
                optimizer = fresh
            weight.grad = torch.tensor([0.1 * step, -0.3])
            optimizer.step()
        return weight.tolist()

    assert run(True) == run(False)


def test_zero_weights_are_updated_and_zero_gradients_change_nothing() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = LaProp([weight], lr=0.1, warmup=0)
    weight.grad = torch.tensor([1e-12, 0.0])
    optimizer.step()
    assert weight[0].item() == pytest.approx(-0.1) and weight[1].item() == 0


def test_rejects_negative_settings() -> None:
    with pytest.raises(ValueError, match="must be 0 or more, got -1"):
        LaProp([torch.nn.Parameter(torch.ones(1))], lr=-1)
