"""An ensemble of worlds: what it shows, what its members disagree on, and what that costs."""

import pytest
import torch
from factories import diffusion_world, genie, jepa_world

from vwm.core.states import select_worlds
from vwm.worlds.ensemble import EnsembleSimulator


def members(count: int = 3, **changes):
    """Worlds that learned otherwise: the same networks with other weights."""
    made = []
    for seed in range(count):
        world = diffusion_world(outcomes=True, **changes)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in world.dynamics.parameters():
                weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
        made.append(world)
    return made


def context(world, batch: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(256, (batch, 2, *world.spec.context.image_size, 3), generator=generator, dtype=torch.uint8)


def test_every_world_is_the_member_that_it_follows() -> None:
    own = members()
    ensemble = EnsembleSimulator(own)
    frames = context(own[0], 8)
    state, first = ensemble.reset(frames, seed=1)
    assert set(state.member_index.tolist()) == {0, 1, 2}
    action = torch.arange(8) % own[0].spec.actions.size
    after, shown = ensemble.step(state, action)
    for i, member in enumerate(own):
        mine = state.member_index == i
        begun, frame = member.reset(frames, seed=state.seed)
        _, said = member.step(begun, action)
        assert torch.equal(first[mine], frame[mine]) and torch.equal(shown.frame[mine], said.frame[mine])
        assert torch.equal(shown.reward[mine], said.reward[mine]) and torch.equal(shown.latent[mine], said.latent[mine])
    assert torch.equal(ensemble.latent(after), shown.latent)


def test_disagreement_is_the_deviation_of_frames_and_rewards() -> None:
    own = members()
    ensemble = EnsembleSimulator(own)
    frames, action = context(own[0], 2), torch.tensor([1, 0])
    state, _ = ensemble.reset(frames, seed=1)
    after, _ = ensemble.step(state, action)
    said = [m.step(m.reset(frames, seed=state.seed)[0], action)[1] for m in own]
    for world in range(2):
        pixels = torch.stack([s.frame[world].double().flatten() / 255 for s in said])
        rewards = torch.stack([s.reward[world].double() for s in said])
        expected = pixels.std(0).square().mean().sqrt() + rewards.std()
        assert after.uncertainty[world].item() == pytest.approx(expected.item(), rel=1e-4)


def test_who_follows_the_first_sees_it_alone() -> None:
    own = members(agent_tokens=1)
    frames, action = context(own[0]), torch.tensor([0, 1, 2, 3]) % own[0].spec.actions.size
    ensemble = EnsembleSimulator(own, followed_member="first")
    state, first = ensemble.reset(frames, seed=1)
    begun, frame = own[0].reset(frames, seed=state.seed)
    assert not state.member_index.any() and torch.equal(first, frame)
    after, shown = ensemble.step(state, action)
    alone, said = own[0].step(begun, action)
    assert torch.equal(shown.frame, said.frame) and (after.uncertainty > 0).all()
    assert torch.equal(ensemble.features(after), own[0].features(alone))
    with pytest.raises(ValueError, match="set followed_member='first'"):
        EnsembleSimulator(own).features(after)


def test_equal_members_do_not_disagree() -> None:
    ensemble = EnsembleSimulator([genie(), genie()], uncertainty_penalty=10.0, uncertainty_limit=1e-6)
    state, _ = ensemble.reset(context(ensemble), seed=0)
    after, shown = ensemble.step(state, torch.zeros(4, dtype=torch.int64))
    assert (after.uncertainty == 0).all() and not shown.terminated.any() and (shown.reward == 0).all()


def test_the_uncertainty_penalty_lowers_rewards_and_its_limit_terminates() -> None:
    own = members()
    action = torch.zeros(4, dtype=torch.int64)
    plain, dear = EnsembleSimulator(own), EnsembleSimulator(own, uncertainty_penalty=2.0, uncertainty_limit=1e-9)
    (state, _), (same, _) = (e.reset(context(own[0]), seed=1) for e in (plain, dear))
    (after, free), (_, paid) = plain.step(state, action), dear.step(same, action)
    assert torch.allclose(paid.reward, free.reward - 2 * after.uncertainty)
    assert paid.terminated.all()


def test_a_batch_steps_as_each_alone_and_states_are_values() -> None:
    ensemble = EnsembleSimulator(members())
    state, _ = ensemble.reset(context(ensemble), seed=1)
    action = torch.tensor([0, 1, 2, 3]) % ensemble.spec.actions.size
    _, together = ensemble.step(state, action)
    for world in range(4):
        _, alone = ensemble.step(select_worlds(state, torch.tensor([world])), action[world : world + 1])
        assert torch.equal(alone.frame[0], together.frame[world])
        assert torch.allclose(alone.reward[0], together.reward[world], atol=1e-5)
    _, blind = ensemble.step(state, action, decode=False)
    assert blind.frame is None and torch.equal(blind.reward, together.reward)


def test_rejects_members_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="two simulators or more, got 1"):
        EnsembleSimulator([genie()])
    with pytest.raises(ValueError, match="members differ in their observations"):
        EnsembleSimulator([genie(), diffusion_world()])
    with pytest.raises(ValueError, match="show nothing to compare"):
        EnsembleSimulator([jepa_world(decoder=False), jepa_world(decoder=False)])
    with pytest.raises(ValueError, match="uncertainty_penalty must be 0 or more"):
        EnsembleSimulator(members(2), uncertainty_penalty=-1)
