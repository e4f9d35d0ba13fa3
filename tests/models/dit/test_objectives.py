"""The losses of diffusion forcing and shortcut forcing."""

import pytest
import torch
from factories import dit

from vwm.models.dit.noise_schedule import prediction_target
from vwm.models.dit.objectives import DiffusionForcing, ShortcutForcing


def clean(clips: int = 8) -> torch.Tensor:
    return torch.randn(clips, 5, 4, 4, 3, generator=torch.Generator().manual_seed(0))


def zero_network(x, *_):
    return torch.zeros_like(x)


# With data and noise of variance 1, their difference has variance 2, and a rotation of the pair has variance 1.
@pytest.mark.parametrize(("prediction", "variance"), [("velocity", 2.0), ("clean", 1.0), ("v", 1.0)])
@pytest.mark.parametrize("density", ["uniform", "logit_normal", "mode"])
def test_an_oracle_has_no_loss_and_a_zero_network_the_variance_of_the_target(prediction, variance, density):
    torch.manual_seed(0)
    objective, data = DiffusionForcing(prediction, density), clean()

    def oracle(x, signal, step, clips):
        assert step is None and signal.shape == (8, 5) and 0 <= signal.min() and signal.max() <= 1
        alpha, sigma = (signal, 1 - signal) if prediction != "v" else ((signal * torch.pi / 2).sin(), None)
        sigma = (signal * torch.pi / 2).cos() if sigma is None else sigma
        noise = (x - alpha[..., None, None, None] * data) / sigma[..., None, None, None]
        return prediction_target(prediction, data, noise, signal)

    assert objective.loss(oracle, data)[0] < 1e-4
    assert abs(objective.loss(zero_network, clean(64))[0] - variance) < 0.15


def test_frames_have_independent_signal_levels_and_a_shift_adds_noise():
    torch.manual_seed(0)
    signal = DiffusionForcing(shift=1).sample_signal(64, 16, torch.device("cpu"))
    assert signal.std(dim=1).min() > 0.05 and abs(signal.mean() - 0.5) < 0.02
    assert DiffusionForcing(shift=3).sample_signal(64, 16, torch.device("cpu")).mean() < 0.35


def test_shortcut_steps_start_at_multiples_of_their_size_and_an_oracle_has_no_loss():
    objective, data = ShortcutForcing(finest=8, bootstrap=0.5), clean()
    calls = []

    def oracle(x, signal, step, clips):
        calls.append((signal, step, clips))
        assert torch.equal((signal * 2.0**step).frac(), torch.zeros_like(signal)) and (signal < 1).all()
        return data[clips]

    loss, logs = objective.loss(oracle, data)
    assert loss < 1e-10 and set(logs) == {"flow_loss", "bootstrap_loss"}
    (first, halved, of), (_, again, _), (whole, steps, everything) = calls
    others = torch.ones(8, dtype=torch.bool).index_fill(0, of, False)
    assert len(of.unique()) == 4 and everything == slice(None) and torch.equal(halved, again)
    assert torch.equal(steps[of] + 1, halved) and (steps[others] == 3).all() and torch.equal(first, whole[of])


def test_the_flow_loss_is_weighted_by_signal_level():
    objective, data, calls = ShortcutForcing(finest=8, bootstrap=0), clean(), []

    def network(x, signal, step, clips):
        calls.append(signal)
        return zero_network(x)

    loss, logs = objective.loss(network, data)
    (signal,) = calls
    assert set(logs) == {"flow_loss"} and signal.unique().numel() == 8
    expected = ((0.9 * signal + 0.1)[..., None, None, None] * data.square()).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(logs["flow_loss"], data.square().mean(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("clips", "bootstrap"), [(1, 0.25), (3, 0.5), (8, 1.0)])
def test_the_bootstrap_fraction_holds_on_average_for_every_batch_size(clips, bootstrap):
    objective, data, counts = ShortcutForcing(finest=4, bootstrap=bootstrap), clean(clips)[:, :1, :1, :1], []
    for seed in range(300):
        torch.manual_seed(seed)
        calls = []

        def network(x, signal, step, clips, calls=calls):
            calls.append(len(x))
            return zero_network(x)

        objective.loss(network, data)
        assert calls[-1] == clips and len(calls) in (1, 3)
        counts.append(calls[0] if len(calls) == 3 else 0)
    assert all(abs(count - bootstrap * clips) < 1 for count in counts)  # each count is rounded to a neighboring integer
    assert abs(sum(counts) / len(counts) - bootstrap * clips) < 0.08


def test_the_bootstrap_target_is_the_end_of_two_half_steps():
    """With a network that always predicts the frame c both half steps end at c, so the target of the step is c."""
    objective, data, constant = ShortcutForcing(finest=4, bootstrap=1.0), clean(), torch.full((4, 4, 3), 0.3)
    loss, logs = objective.loss(lambda x, *_: constant.expand_as(x), data)
    assert loss < 1e-10 and logs["bootstrap_loss"] < 1e-10 and "flow_loss" not in logs


def test_the_bootstrap_target_has_no_gradient():
    objective, data = ShortcutForcing(finest=4, bootstrap=1.0), clean()
    weight = torch.tensor(0.5, requires_grad=True)
    grad_enabled = []

    def network(x, signal, step, clips):
        grad_enabled.append(torch.is_grad_enabled())
        return weight * x

    objective.loss(network, data)[0].backward()
    assert grad_enabled == [False, False, True] and weight.grad is not None


def test_rejects_objectives_that_do_not_match_the_network():
    for objective, network, message in (
        (DiffusionForcing("v"), dit(), "dynamics.prediction='velocity', but the objective needs 'v'"),
        (DiffusionForcing("clean"), dit(prediction="clean", num_step_sizes=3), "set 0"),
        (ShortcutForcing(8), dit(prediction="clean", num_step_sizes=3), "num_step_sizes=4, got 3"),
        (ShortcutForcing(8), dit(), "needs 'clean'"),
    ):
        with pytest.raises(ValueError, match=message):
            objective.check(network)
    with pytest.raises(ValueError, match="power of two"):
        ShortcutForcing(finest=6)
