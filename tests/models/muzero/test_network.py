"""MuZero's network: normalized latents, the value prefix, the consistency loss, saving and loading."""

from __future__ import annotations

import pytest
import torch
from factories import randomize

from vwm.models.muzero.network import MuZeroNetwork, min_max_normalize

SMALL = {"width": 12, "hidden": 10, "support_limit": 5, "prefix_hidden": 6, "projection_size": 8}


def make_network(**changes) -> MuZeroNetwork:
    torch.manual_seed(0)
    return randomize(MuZeroNetwork(**{**SMALL, "num_actions": 3, **changes}))


KINDS = {
    "vectors": {"observation_shape": [5]},
    "stacked": {"observation_shape": [5], "num_stacked_frames": 3},
    "images": {"observation_shape": [32, 48, 3], "num_stacked_frames": 2},
    "pooled images": {
        "observation_shape": [32, 48, 3],
        "image_network": "pooled",
        "prediction_blocks": 1,
        "projector_layers": 3,
        "predictor_hidden": 4,
    },
    "no value prefix": {"observation_shape": [5], "value_prefix_horizon": 0, "num_blocks": 2},
}


def make_observations(net: MuZeroNetwork, batch: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, net.num_stacked_frames, *net.observation_shape)
    if net.from_pixels:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return torch.randn(shape, generator=generator)


@pytest.mark.parametrize("kind", list(KINDS))
def test_shapes_and_results_that_do_not_depend_on_the_batch(kind):
    net = make_network(**KINDS[kind])
    state = net.represent(make_observations(net))
    for step in range(7):
        action = (torch.arange(4) + step) % 3
        state, reward, logits = net.step(state, action)
        assert (
            reward.shape == (4,)
            and logits.shape == (4, 11)
            and state.steps_since_observation.tolist() == [step + 1] * 4
        )
        flat = state.latent.flatten(1)
        assert (flat.amin(1) == 0).all() and (flat.amax(1) == 1).all()
    policy, value = net.predict(state.latent)
    assert policy.shape == (4, 3) and value.shape == (4, 11)
    assert state.latent.shape == ((4, 12, 2, 3) if net.from_pixels else (4, 12))
    alone = net.represent(make_observations(net)[1:2])
    for step in range(7):
        alone, reward_alone, _ = net.step(alone, (torch.arange(4) + step)[1:2] % 3)
    torch.testing.assert_close(alone.latent, state.latent[1:2], rtol=0, atol=1e-5)
    torch.testing.assert_close(reward_alone, reward[1:2], rtol=0, atol=1e-4)


def test_predictions_depend_on_every_observation_and_action():
    net = make_network(**KINDS["stacked"])
    x = make_observations(net)
    base = net.represent(x).latent
    for frame in range(3):
        other = x.clone()
        other[:, frame] += 1
        assert not torch.equal(net.represent(other).latent, base)
    state = net.represent(x)
    outcomes = [net.step(state, torch.full((4,), a)) for a in range(3)]
    assert not torch.equal(outcomes[0].state.latent, outcomes[1].state.latent)
    assert not torch.equal(outcomes[0].reward, outcomes[2].reward)


def test_rewards_are_differences_of_the_value_prefix_which_restarts_at_its_horizon():
    net = make_network(observation_shape=[5], value_prefix_horizon=3)
    state, total = net.represent(make_observations(net)), torch.zeros(4)
    for step in range(8):
        if step % 3 == 0:
            total = torch.zeros(4)
            # The LSTM and the prefix are reset here, so their old contents do not matter.
            changed_state = state._replace(lstm_state=state.lstm_state + 1, value_prefix=state.value_prefix + 1)
            torch.testing.assert_close(
                net.step(changed_state, torch.zeros(4).long()), net.step(state, torch.zeros(4).long())
            )
        elif step == 1:
            changed_state = state._replace(lstm_state=state.lstm_state + 1)
            logits = net.step(changed_state, torch.zeros(4).long()).reward_logits
            assert not torch.allclose(logits, net.step(state, torch.zeros(4).long()).reward_logits)
        state, reward, logits = net.step(state, torch.zeros(4).long())
        total = total + reward
        torch.testing.assert_close(total, net.value_support.mean(logits), rtol=1e-4, atol=1e-5)


def test_a_new_network_has_a_uniform_policy_and_zero_value():
    net = MuZeroNetwork(**SMALL, observation_shape=[5], num_actions=3)
    state = net.represent(make_observations(net))
    state, reward, _ = net.step(state, torch.zeros(4).long())
    policy, value = net.predict(state.latent)
    assert not policy.any() and not value.any() and reward.abs().max() < 1e-5


def test_consistency_loss_moves_predicted_latents_toward_observed_ones():
    net = make_network(**KINDS["vectors"])
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


def test_min_max_normalize_maps_to_0_1_and_equal_numbers_to_0():
    x = torch.tensor([[3.0, -1, 1], [2, 2, 2]])
    torch.testing.assert_close(min_max_normalize(x), torch.tensor([[1.0, 0, 0.5], [0, 0, 0]]))


def test_a_loaded_network_equals_the_saved_one(tmp_path):
    from vwm.core.components import load_component, save_component

    net = make_network(**KINDS["images"])
    save_component(net, tmp_path / "network")
    loaded = load_component(tmp_path / "network")
    assert torch.equal(loaded.represent(make_observations(net)).latent, net.represent(make_observations(net)).latent)


@pytest.mark.parametrize("downsampling", [2, 4, 8, 16])
def test_the_latent_grid_is_the_image_divided_by_the_downsampling(downsampling):
    net = make_network(observation_shape=[32, 16, 3], image_downsampling=downsampling)
    assert net.latent_shape == (12, 32 // downsampling, 16 // downsampling)
    assert net.represent(make_observations(net)).latent.shape == (4, *net.latent_shape)


def test_the_published_network_for_atari_has_its_grid_and_its_stages():
    """96 x 96 pixels and four frames, arXiv 2111.00210, appendix A.1: two convolutions and two poolings halve them."""
    with torch.device("meta"):
        net = MuZeroNetwork(
            [96, 96, 3], 6, 4, width=64, hidden=32, prefix_hidden=512, projection_size=1024, image_network="pooled",
            prediction_blocks=1, projector_layers=3, predictor_hidden=512,
        )  # fmt: skip
        x, shapes = torch.empty(2, 12, 96, 96), []
        for layer in net.representation:
            x = layer(x)
            shapes.append(tuple(x.shape[1:]))
    assert shapes[0] == (32, 48, 48) and shapes[4] == (64, 24, 24) and shapes[6] == (64, 12, 12)
    assert shapes[8:] == [(64, 6, 6), (64, 6, 6)] and net.latent_shape == (64, 6, 6)
    assert net.value_support.bins == 601 and net.projector[1].in_features == 64 * 36


def test_rejects_observations_of_other_shapes():
    with pytest.raises(ValueError, match=r"observation_shape=\[30, 32, 3\] must be"):
        MuZeroNetwork(observation_shape=[30, 32, 3])
    with pytest.raises(ValueError, match="image_network='pooled' with image_downsampling=8: it must be"):
        MuZeroNetwork(observation_shape=[32, 32, 3], image_network="pooled", image_downsampling=8)
    with pytest.raises(ValueError, match=r"observations must be \[b, 1, \[4\]\], got \[2, 3, 4\]"):
        MuZeroNetwork().represent(torch.zeros(2, 3, 4))
