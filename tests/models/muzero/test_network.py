"""MuZero's network: bounded latents, a value prefix that begins anew, and gradients where they belong."""

from __future__ import annotations

import pytest
import torch
from factories import randomize

from vwm.models.muzero.network import MuZeroNetwork, min_max_normalize

SMALL = {"width": 12, "hidden": 10, "support_limit": 5, "prefix_hidden": 6, "projection_size": 8}


def network(**changes) -> MuZeroNetwork:
    torch.manual_seed(0)
    return randomize(MuZeroNetwork(**{**SMALL, "num_actions": 3, **changes}))


KINDS = {
    "vectors": {"observation_shape": [5]},
    "stacked": {"observation_shape": [5], "num_stacked_frames": 3},
    "pictures": {"observation_shape": [32, 48, 3], "num_stacked_frames": 2},
    "rewards": {"observation_shape": [5], "value_prefix_horizon": 0, "num_blocks": 2},
}


def seen(net: MuZeroNetwork, batch: int = 4) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    shape = (batch, net.num_stacked_frames, *net.observation_shape)
    if net.from_pixels:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=g)
    return torch.randn(shape, generator=g)


@pytest.mark.parametrize("kind", list(KINDS))
def test_shapes_and_each_world_steps_as_it_would_alone(kind):
    net = network(**KINDS[kind])
    state = net.represent(seen(net))
    for step in range(7):
        action = (torch.arange(4) + step) % 3
        state, reward, logits = net.step(state, action)
        assert (
            reward.shape == (4,)
            and logits.shape == (4, 11)
            and state.steps_since_observation.tolist() == [step + 1] * 4
        )
        flat = state.latent.flatten(1)
        assert (flat.amin(1) == 0).all() and (flat.amax(1) == 1).all()  # stretched
    policy, value = net.predict(state.latent)
    assert policy.shape == (4, 3) and value.shape == (4, 11)
    assert state.latent.shape == ((4, 12, 2, 3) if net.from_pixels else (4, 12))
    alone = net.represent(seen(net)[1:2])
    for step in range(7):
        alone, reward_alone, _ = net.step(alone, (torch.arange(4) + step)[1:2] % 3)
    torch.testing.assert_close(alone.latent, state.latent[1:2], rtol=0, atol=1e-5)
    torch.testing.assert_close(reward_alone, reward[1:2], rtol=0, atol=1e-4)


def test_every_observation_and_action_counts():
    net = network(**KINDS["stacked"])
    x = seen(net)
    base = net.represent(x).latent
    for frame in range(3):
        other = x.clone()
        other[:, frame] += 1
        assert not torch.equal(net.represent(other).latent, base)
    state = net.represent(x)
    outcomes = [net.step(state, torch.full((4,), a)) for a in range(3)]
    assert not torch.equal(outcomes[0].state.latent, outcomes[1].state.latent)
    assert not torch.equal(outcomes[0].reward, outcomes[2].reward)


def test_rewards_are_differences_of_the_prefix_which_begins_anew_every_few_steps():
    net = network(observation_shape=[5], value_prefix_horizon=3)
    state, total = net.represent(seen(net)), torch.zeros(4)
    for step in range(8):
        if step % 3 == 0:
            total = torch.zeros(4)
            # What the memory holds no longer counts.
            scrambled = state._replace(lstm_state=state.lstm_state + 1, value_prefix=state.value_prefix + 1)
            torch.testing.assert_close(
                net.step(scrambled, torch.zeros(4).long()), net.step(state, torch.zeros(4).long())
            )
        elif step == 1:
            scrambled = state._replace(lstm_state=state.lstm_state + 1)
            changed = net.step(scrambled, torch.zeros(4).long()).reward_logits
            assert not torch.allclose(changed, net.step(state, torch.zeros(4).long()).reward_logits)
        state, reward, logits = net.step(state, torch.zeros(4).long())
        total = total + reward
        torch.testing.assert_close(total, net.value_support.mean(logits), rtol=1e-4, atol=1e-5)


def test_a_new_network_has_a_uniform_policy_and_zero_value():
    net = MuZeroNetwork(**SMALL, observation_shape=[5], num_actions=3)
    state = net.represent(seen(net))
    state, reward, _ = net.step(state, torch.zeros(4).long())
    policy, value = net.predict(state.latent)
    assert not policy.any() and not value.any() and reward.abs().max() < 1e-5


def test_consistency_moves_predictions_towards_observations():
    net = network(**KINDS["vectors"])
    predicted, observed = (torch.rand(4, 12, requires_grad=True) for _ in range(2))
    loss = net.consistency_loss(predicted, observed)
    assert loss.shape == (4,) and (loss.abs() <= 1 + 1e-6).all()
    loss.sum().backward()
    assert predicted.grad.abs().sum() > 0 and observed.grad is None
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        net.consistency_loss(predicted.detach(), observed.detach()).mean().backward()
        optimizer.step()
    assert net.consistency_loss(predicted, observed).mean() < loss.mean() - 0.2


def test_stretching_keeps_the_order_and_survives_equal_numbers():
    x = torch.tensor([[3.0, -1, 1], [2, 2, 2]])
    torch.testing.assert_close(min_max_normalize(x), torch.tensor([[1.0, 0, 0.5], [0, 0, 0]]))


def test_it_is_saved_and_loaded(tmp_path):
    from vwm.core.components import load_component, save_component

    net = network(**KINDS["pictures"])
    save_component(net, tmp_path / "part")
    again = load_component(tmp_path / "part")
    assert torch.equal(again.represent(seen(net)).latent, net.represent(seen(net)).latent)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"observation_shape=\[30, 32, 3\] must be"):
        MuZeroNetwork(observation_shape=[30, 32, 3])
    with pytest.raises(ValueError, match=r"observations must be \[b, 1, \[4\]\], got \[2, 3, 4\]"):
        MuZeroNetwork().represent(torch.zeros(2, 3, 4))
