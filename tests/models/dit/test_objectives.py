"""What the losses measure."""

import pytest
import torch
from factories import dit

from vwm.models.dit.noise_schedule import prediction_target
from vwm.models.dit.objectives import DiffusionForcing, ShortcutForcing


def clean(clips: int = 8) -> torch.Tensor:
    return torch.randn(clips, 5, 4, 4, 3, generator=torch.Generator().manual_seed(0))


def silent(x, *_):
    return torch.zeros_like(x)


# Of data and noise of variance 1: a difference has 2, a turn of the two 1.
@pytest.mark.parametrize(("prediction", "variance"), [("velocity", 2.0), ("clean", 1.0), ("v", 1.0)])
@pytest.mark.parametrize("density", ["uniform", "logit_normal", "mode"])
def test_an_oracle_has_no_loss_and_a_silent_network_has_that_of_the_target(prediction, variance, density):
    torch.manual_seed(0)
    objective, data = DiffusionForcing(prediction, density), clean()

    def oracle(x, signal, step, clips):
        assert step is None and signal.shape == (8, 5) and 0 <= signal.min() and signal.max() <= 1
        alpha, sigma = (signal, 1 - signal) if prediction != "v" else ((signal * torch.pi / 2).sin(), None)
        sigma = (signal * torch.pi / 2).cos() if sigma is None else sigma
        noise = (x - alpha[..., None, None, None] * data) / sigma[..., None, None, None]
        return prediction_target(prediction, data, noise, signal)

    assert objective.loss(oracle, data)[0] < 1e-4
    assert abs(objective.loss(silent, clean(64))[0] - variance) < 0.15


def test_every_frame_has_its_own_level_and_a_shift_means_more_noise():
    torch.manual_seed(0)
    signal = DiffusionForcing(shift=1).sample_signal(64, 16, torch.device("cpu"))
    assert signal.std(dim=1).min() > 0.05 and abs(signal.mean() - 0.5) < 0.02
    assert DiffusionForcing(shift=3).sample_signal(64, 16, torch.device("cpu")).mean() < 0.35


def test_shortcut_steps_begin_at_multiples_of_their_size_and_the_oracle_needs_no_bootstrap():
    objective, data = ShortcutForcing(finest=8, bootstrap=0.5), clean()
    asked = []

    def oracle(x, signal, step, clips):
        asked.append((signal, step, clips))
        assert torch.equal((signal * 2.0**step).frac(), torch.zeros_like(signal)) and (signal < 1).all()
        return data[clips]

    loss, logs = objective.loss(oracle, data)
    assert loss < 1e-10 and set(logs) == {"flow_loss", "bootstrap_loss"}
    (first, halved, of), (_, again, _), (whole, steps, everything) = asked
    assert of == slice(0, 4) and everything == slice(None) and torch.equal(halved, again)
    assert torch.equal(steps[:4] + 1, halved) and (steps[4:] == 3).all() and torch.equal(first, whole[:4])


def test_a_frame_with_more_signal_counts_for_more():
    objective, data, asked = ShortcutForcing(finest=8, bootstrap=0), clean(), []

    def network(x, signal, step, clips):
        asked.append(signal)
        return silent(x)

    loss, logs = objective.loss(network, data)
    (signal,) = asked
    assert set(logs) == {"flow_loss"} and signal.unique().numel() == 8
    expected = ((0.9 * signal + 0.1)[..., None, None, None] * data.square()).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(logs["flow_loss"], data.square().mean(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("clips", "bootstrap"), [(1, 0.25), (3, 0.5), (8, 1.0)])
def test_a_batch_of_any_size_bootstraps_its_share(clips, bootstrap):
    objective, data, counts = ShortcutForcing(finest=4, bootstrap=bootstrap), clean(clips)[:, :1, :1, :1], []
    for seed in range(300):
        torch.manual_seed(seed)
        asked = []

        def network(x, signal, step, clips, asked=asked):
            asked.append(len(x))
            return silent(x)

        objective.loss(network, data)
        assert asked[-1] == clips and len(asked) in (1, 3)
        counts.append(asked[0] if len(asked) == 3 else 0)
    assert all(abs(count - bootstrap * clips) < 1 for count in counts)  # no batch is further off than it must be
    assert abs(sum(counts) / len(counts) - bootstrap * clips) < 0.08


def test_a_large_step_learns_where_two_half_steps_end():
    """A network that always says the same frame c makes the half steps meet at c, so that a large step should say c."""
    objective, data, says = ShortcutForcing(finest=4, bootstrap=1.0), clean(), torch.full((4, 4, 3), 0.3)
    loss, logs = objective.loss(lambda x, *_: says.expand_as(x), data)
    assert loss < 1e-10 and logs["bootstrap_loss"] < 1e-10 and "flow_loss" not in logs


def test_the_bootstrap_sends_no_gradient_through_its_target():
    objective, data = ShortcutForcing(finest=4, bootstrap=1.0), clean()
    weight = torch.tensor(0.5, requires_grad=True)
    passes = []

    def network(x, signal, step, clips):
        passes.append(torch.is_grad_enabled())
        return weight * x

    objective.loss(network, data)[0].backward()
    assert passes == [False, False, True] and weight.grad is not None


def test_rejects_objectives_that_do_not_fit_the_network():
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
