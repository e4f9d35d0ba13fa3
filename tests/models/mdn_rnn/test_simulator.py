"""The simulator of World Models beyond the contract: what controllers and evaluations use."""

import pytest
import torch
from factories import dream, genie

from vwm.core.states import merge_states, select_worlds
from vwm.models.mdn_rnn.simulator import MDNRNNSampling, MDNRNNSimulator
from vwm.worlds.bundle import load_simulator, save_simulator


def clip(frames: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, frames, 8, 8, 3), dtype=torch.uint8, generator=generator)


def actions_taken(frames: int = 4) -> torch.Tensor:
    return torch.randint(0, 4, (2, frames), generator=torch.Generator().manual_seed(1))


def test_observing_frame_by_frame_equals_a_reset_with_the_same_past():
    world, video, actions = dream(), clip(), actions_taken()
    state, _ = world.reset(video[:, :1])
    for i in range(4):
        state = world.observe(state, actions[:, i], video[:, i + 1])
    whole, _ = world.reset(video, context_actions=actions)
    torch.testing.assert_close(world.features(state), world.features(whole), rtol=0, atol=1e-6)
    assert torch.equal(state.position, whole.position)


def test_is_first_resets_the_state_of_its_own_environment_only():
    world, video, actions = dream(), clip(), actions_taken()
    past, _ = world.reset(video[:, :3], context_actions=actions[:, :2])
    continued = world.observe(past, actions[:, 2], video[:, 3])
    restarted = world.init_state(2)._replace(latent=continued.latent)
    mixed = merge_states(torch.tensor([True, False]), restarted, continued)
    fresh, _ = world.reset(video[:, 3:4])
    torch.testing.assert_close(world.features(mixed)[:1], world.features(fresh)[:1], rtol=0, atol=1e-6)
    torch.testing.assert_close(world.features(mixed)[1:], world.features(continued)[1:], rtol=0, atol=1e-6)


def test_features_are_the_latent_and_the_hidden_state():
    world = dream()
    state, _ = world.reset(clip(), context_actions=actions_taken())
    features = world.features(state)
    assert features.shape == (2, 4 + 16)
    assert torch.equal(features[:, :4], world.flatten_latents(world.latent(state)))
    assert torch.equal(features[:, 4:], state.memory.hidden)


def test_low_temperatures_make_rollouts_deterministic():
    """Near zero every sample is the mean of the most likely Gaussian, for every seed."""
    world = dream(sampling=MDNRNNSampling(temperature=1e-6))
    start, _ = world.reset(clip())
    worlds = select_worlds(start, torch.zeros(8).long())._replace(seed=torch.arange(8))
    _, out = world.step(worlds, torch.zeros(8).long())
    assert (out.latent - out.latent[0]).abs().max() < 0.02
    with pytest.raises(ValueError, match=r"temperature=0\.0 must be positive"):
        dream(sampling=MDNRNNSampling(temperature=0.0))


def test_the_transition_loss_is_the_likelihood_of_the_next_latent_under_the_given_actions():
    world, latents, actions = dream(), torch.randn(2, 5, 1, 1, 4), actions_taken()
    others = (actions + 1) % 4
    own, other = world.transition_loss(latents, actions, others)
    with torch.no_grad():
        output, _ = world.dynamics(
            world.dynamics.init_state(2), latents[:, :4].flatten(2), world.dynamics.embed_actions(actions)
        )
        expected = world.dynamics.predict(output).next_latent.negative_log_likelihood(latents[:, 1:].flatten(2)).sum()
    torch.testing.assert_close(own.float(), expected, rtol=1e-5, atol=1e-4)
    same, again = world.transition_loss(latents, actions, actions)
    assert same == again == own and other != own


def test_a_saved_simulator_loads_equal(tmp_path):
    world = dream(sampling=MDNRNNSampling(temperature=1.25), predict_reward=True)
    save_simulator(world, tmp_path / "bundle")
    again = load_simulator(tmp_path / "bundle", "cpu")
    assert again.sampling == world.sampling and torch.equal(again.starts, world.starts)
    (_, one), (_, two) = (w.step(w.reset(clip(), 3)[0], actions_taken()[:, 0]) for w in (world, again))
    torch.testing.assert_close(two.latent, one.latent, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(two.reward, one.reward, rtol=1e-4, atol=1e-5)


def test_require_rejects_other_simulators() -> None:
    assert MDNRNNSimulator.require(world := dream(), "bundle") is world
    with pytest.raises(ValueError, match="bundle holds a GenieSimulator, and an MDN-RNN's simulator is required"):
        MDNRNNSimulator.require(genie(), "bundle")
