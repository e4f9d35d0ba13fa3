"""An ensemble of worlds: its outputs, the disagreement of its members, and the uncertainty penalty."""

import pytest
import torch
from factories import diffusion_world, genie, jepa_world

from vwm.core.states import select_worlds
from vwm.worlds.ensemble import EnsembleSimulator


def make_members(count: int = 3, **changes):
    """Worlds with the same networks and differently perturbed weights."""
    worlds = []
    for seed in range(count):
        world = diffusion_world(outcomes=True, **changes)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in world.dynamics.parameters():
                weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
        worlds.append(world)
    return worlds


def context(world, batch: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(256, (batch, 2, *world.spec.context.image_size, 3), generator=generator, dtype=torch.uint8)


def test_every_world_equals_the_member_that_it_follows() -> None:
    members = make_members()
    ensemble = EnsembleSimulator(members)
    frames = context(members[0], 8)
    state, first_frames = ensemble.reset(frames, seed=1)
    assert set(state.member_index.tolist()) == {0, 1, 2}
    action = torch.arange(8) % members[0].spec.actions.size
    after, output = ensemble.step(state, action)
    for i, member in enumerate(members):
        followed = state.member_index == i
        member_state, frame = member.reset(frames, seed=state.seed)
        _, expected = member.step(member_state, action)
        assert torch.equal(first_frames[followed], frame[followed]) and torch.equal(
            output.frame[followed], expected.frame[followed]
        )
        assert torch.equal(output.reward[followed], expected.reward[followed]) and torch.equal(
            output.latent[followed], expected.latent[followed]
        )
    assert torch.equal(ensemble.latent(after), output.latent)


def test_disagreement_is_the_deviation_of_frames_and_rewards() -> None:
    members = make_members()
    ensemble = EnsembleSimulator(members)
    frames, action = context(members[0], 2), torch.tensor([1, 0])
    state, _ = ensemble.reset(frames, seed=1)
    after, _ = ensemble.step(state, action)
    outputs = [m.step(m.reset(frames, seed=state.seed)[0], action)[1] for m in members]
    for world in range(2):
        pixels = torch.stack([s.frame[world].double().flatten() / 255 for s in outputs])
        rewards = torch.stack([s.reward[world].double() for s in outputs])
        expected = pixels.std(0).square().mean().sqrt() + rewards.std()
        assert after.uncertainty[world].item() == pytest.approx(expected.item(), rel=1e-4)


def test_following_the_first_member_shows_that_member_only() -> None:
    members = make_members(agent_tokens=1)
    frames, action = context(members[0]), torch.tensor([0, 1, 2, 3]) % members[0].spec.actions.size
    ensemble = EnsembleSimulator(members, followed_member="first")
    state, first = ensemble.reset(frames, seed=1)
    member_state, frame = members[0].reset(frames, seed=state.seed)
    assert not state.member_index.any() and torch.equal(first, frame)
    after, output = ensemble.step(state, action)
    next_member_state, member_output = members[0].step(member_state, action)
    assert torch.equal(output.frame, member_output.frame) and (after.uncertainty > 0).all()
    assert torch.equal(ensemble.features(after), members[0].features(next_member_state))
    with pytest.raises(ValueError, match="set followed_member='first'"):
        EnsembleSimulator(members).features(after)


def test_equal_members_do_not_disagree() -> None:
    ensemble = EnsembleSimulator([genie(), genie()], uncertainty_penalty=10.0, uncertainty_limit=1e-6)
    state, _ = ensemble.reset(context(ensemble), seed=0)
    after, output = ensemble.step(state, torch.zeros(4, dtype=torch.int64))
    assert (after.uncertainty == 0).all() and not output.terminated.any() and (output.reward == 0).all()


def test_the_uncertainty_penalty_lowers_rewards_and_its_limit_terminates() -> None:
    members = make_members()
    action = torch.zeros(4, dtype=torch.int64)
    plain, penalized = (
        EnsembleSimulator(members),
        EnsembleSimulator(members, uncertainty_penalty=2.0, uncertainty_limit=1e-9),
    )
    (state, _), (penalized_state, _) = (e.reset(context(members[0]), seed=1) for e in (plain, penalized))
    (after, plain_output), (_, penalized_output) = plain.step(state, action), penalized.step(penalized_state, action)
    assert torch.allclose(penalized_output.reward, plain_output.reward - 2 * after.uncertainty)
    assert penalized_output.terminated.all()


def test_worlds_in_a_batch_step_as_they_do_alone_and_states_are_values() -> None:
    ensemble = EnsembleSimulator(make_members())
    state, _ = ensemble.reset(context(ensemble), seed=1)
    action = torch.tensor([0, 1, 2, 3]) % ensemble.spec.actions.size
    _, together = ensemble.step(state, action)
    for world in range(4):
        _, alone = ensemble.step(select_worlds(state, torch.tensor([world])), action[world : world + 1])
        assert torch.equal(alone.frame[0], together.frame[world])
        assert torch.allclose(alone.reward[0], together.reward[world], atol=1e-5)
    _, undecoded = ensemble.step(state, action, decode=False)
    assert undecoded.frame is None and torch.equal(undecoded.reward, together.reward)


def test_rejects_members_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="two simulators or more, got 1"):
        EnsembleSimulator([genie()])
    with pytest.raises(ValueError, match="members differ in their observations"):
        EnsembleSimulator([genie(), diffusion_world()])
    with pytest.raises(ValueError, match="show nothing to compare"):
        EnsembleSimulator([jepa_world(decoder=False), jepa_world(decoder=False)])
    with pytest.raises(ValueError, match="uncertainty_penalty must be 0 or more"):
        EnsembleSimulator(make_members(2), uncertainty_penalty=-1)
