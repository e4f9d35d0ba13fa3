"""Contract 4, for every simulator; add new ones to simulator_kinds.py."""

import pytest
import torch
from factories import (
    action_predictor,
    diffusion_world,
    genie,
    jepa_parts,
    jepa_world,
)
from simulator_kinds import SIMULATORS, actions, contexts
from torch.utils._pytree import tree_leaves

from vwm.core.capabilities import ObservesFrames, ProvidesFeatures
from vwm.core.seeds import world_seeds
from vwm.core.states import concatenate_states, map_state, select_worlds, state_batch_size
from vwm.rl.algorithms.encoded_env import DynamicsObservationEncoder
from vwm.worlds.ensemble import EnsembleSimulator
from vwm.worlds.world_batch import select_observation


@pytest.fixture(params=list(SIMULATORS))
def world(request):
    return SIMULATORS[request.param]()


def roll_out(world, state, steps: int, decode: bool = True, batch: int = 3):
    outputs = []
    for i in range(steps):
        state, output = world.step(state, actions(world, batch, i), decode)
        outputs.append(output)
    return state, outputs


def inverted_context(world, context: torch.Tensor) -> torch.Tensor:
    """The inverted context, which differs from this one."""
    return 255 - context if world.spec.context.is_image else -context


def shown(world, out) -> torch.Tensor:
    """The observation of a step: the frame, or the latent in a world without frames."""
    assert (out.frame is not None) == (not world.spec.observation.is_latent)
    return out.latent if world.spec.observation.is_latent else out.frame


def test_outputs_have_the_shapes_and_dtypes_of_the_spec(world):
    state, frame = world.reset(contexts(world), seed=1)
    shape, dtype = (3, *world.spec.context.shape), world.spec.context.dtype
    assert frame.shape == shape and frame.dtype == dtype and state_batch_size(state) == 3
    state, out = world.step(state, actions(world, 3, 0))
    if not world.spec.observation.is_latent:
        frames = world.spec.frames_per_step
        assert out.frame.shape == (3, *([frames] if frames > 1 else []), *shape[1:]) and out.frame.dtype == dtype
        assert out.frames.shape == (3, frames, *shape[1:]) and torch.equal(out.last_frame, out.frames[:, -1])
    assert len(shown(world, out)) == 3 and out.latent.isfinite().all()
    assert out.reward.shape == (3,) and out.terminated.dtype == torch.bool
    assert len(world.spec.actions.names) == world.spec.actions.size


def test_equal_state_and_actions_give_equal_frames_and_a_branch_changes_no_other(world):
    state, _ = world.reset(contexts(world), seed=1)
    state, _ = roll_out(world, state, 2)
    copied = map_state(torch.clone, state)
    _, first = roll_out(world, state, 6)  # beyond the window of 4
    world.step(state, actions(world, 3, 3))  # a branch
    _, second = roll_out(world, copied, 6)
    assert all(torch.equal(shown(world, a), shown(world, b)) for a, b in zip(first, second, strict=True))


def test_the_state_contains_its_current_latent(world):
    state, _ = world.reset(contexts(world), seed=1)
    first = world.latent(state)
    state, (out,) = roll_out(world, state, 1)
    assert torch.equal(world.latent(state), out.latent)
    assert first.shape == out.latent.shape and first.dtype == out.latent.dtype
    # After a reset it is the latent of the context, for every seed.
    assert torch.equal(first, world.latent(world.reset(contexts(world), seed=2)[0]))
    assert not torch.equal(first, world.latent(world.reset(inverted_context(world, contexts(world)), seed=1)[0]))
    vectors = world.flatten_latents(out.latent)
    assert vectors.dtype == torch.float32 and vectors.ndim == 2 and len(vectors) == 3
    assert torch.equal(vectors[1:2], world.flatten_latents(out.latent[1:2]))
    assert not torch.equal(vectors, world.flatten_latents(first))


def test_seeds_change_frames_in_stochastic_worlds_only(world):
    context = contexts(world)
    _, first = roll_out(world, world.reset(context, seed=1)[0], 3)
    _, second = roll_out(world, world.reset(context, seed=2)[0], 3)
    assert torch.equal(shown(world, first[-1]), shown(world, second[-1])) != world.spec.stochastic


def test_actions_and_contexts_change_the_frames(world):
    context = contexts(world)
    state, _ = world.reset(context, seed=1)
    _, left = world.step(state, actions(world, 3, 0))
    _, right = world.step(state, actions(world, 3, 1))
    assert not torch.equal(left.latent, right.latent)
    # Tokens of a tiny random network may be equal after one step.
    outputs, other_outputs = (
        roll_out(world, world.reset(start, seed=1)[0], 6)[1] for start in (context, inverted_context(world, context))
    )
    assert not all(torch.equal(a.latent, b.latent) for a, b in zip(outputs, other_outputs, strict=True))


def test_worlds_in_a_batch_step_as_they_do_alone(world):
    context, seeds = contexts(world), world_seeds(7, 3)
    _, together = roll_out(world, world.reset(context, seeds)[0], 6)
    state, _ = world.reset(context[1:2], seeds[1:2])
    for i in range(6):
        state, out = world.step(state, actions(world, 3, i)[1:2])
        if out.latent.is_floating_point():
            torch.testing.assert_close(out.latent, together[i].latent[1:2], rtol=0, atol=1e-4)
        else:
            assert torch.equal(out.latent, together[i].latent[1:2])
        if not world.spec.observation.is_latent:
            step = 1 if world.spec.context.is_image else 1e-4  # float32 rounding at a half
            assert (out.frame.double() - together[i].frame[1:2].double()).abs().max() <= step


def test_skipping_the_decoding_does_not_change_later_frames(world):
    state, _ = world.reset(contexts(world), seed=1)
    undecoded_state, undecoded = roll_out(world, state, 5, decode=False)
    assert all(out.frame is None for out in undecoded)
    decoded_state, decoded = roll_out(world, state, 5)
    _, a = world.step(undecoded_state, actions(world, 3, 5))
    _, b = world.step(decoded_state, actions(world, 3, 5))
    assert torch.equal(shown(world, a), shown(world, b)) and torch.equal(undecoded[-1].latent, decoded[-1].latent)


def test_worlds_with_different_numbers_of_steps_share_a_batch(world):
    old, _ = world.reset(contexts(world, 1), seed=1)
    old, _ = roll_out(world, old, 5, batch=1)
    young, _ = world.reset(contexts(world, 1), seed=2)
    _, alone = world.step(young, actions(world, 1, 0))
    both = actions(world, 1, 0).repeat(2, *[1] * (actions(world, 1, 0).ndim - 1))
    _, both = world.step(concatenate_states([old, young]), both)
    torch.testing.assert_close(both.latent[1:], alone.latent, rtol=0, atol=1e-4)
    same = actions(world, 1, 0).repeat(4, *[1] * (actions(world, 1, 0).ndim - 1))
    _, copies = world.step(select_worlds(young, torch.zeros(4, dtype=torch.int64)), same)
    assert all(torch.allclose(copies.latent[i].float(), alone.latent[0].float(), atol=1e-4) for i in range(4))


def test_observing_a_frame_equals_a_reset_with_one_more_frame(world):
    """Observe frame by frame, beyond the window; worlds without this capability raise an error."""
    k = world.spec.frames_per_step
    context, seeds = contexts(world, frames=k + 1 + 5 * k), world_seeds(3, 3)
    past_actions = torch.stack([actions(world, 3, i) for i in range(6 * k)], dim=1)
    state, _ = world.reset(context[:, : k + 1], seeds, past_actions[:, :k])
    if not isinstance(world, ObservesFrames):
        with pytest.raises(ValueError, match="cannot observe frames"):
            DynamicsObservationEncoder(world, "latent")
        return
    expected, _ = world.reset(context, seeds, past_actions)
    copied = map_state(torch.clone, state)

    def step(i: int):
        """The actions and frames of a step."""
        taken, frames = past_actions[:, i * k : (i + 1) * k], context[:, i * k + 1 : (i + 1) * k + 1]
        return (taken[:, 0], frames[:, 0]) if k == 1 else (taken, frames)

    for i in range(1, 6):
        state = world.observe(state, *step(i))
    assert_states_close(state, expected)
    next_state, (out,) = roll_out(world, state, 1)
    assert_states_close(next_state, roll_out(world, expected, 1)[0])
    assert_states_close(
        world.observe(copied, *step(1)), world.reset(context[:, : 2 * k + 1], seeds, past_actions[:, : 2 * k])[0]
    )
    # A predicted frame does not enter the tokenizer's state; the real frame is observed in its place.
    taken, frames = step(1)
    assert not torch.equal(world.latent(world.observe(next_state, taken, frames)), out.latent)
    for action, frame, message in (
        (taken, frames.float(), r"uint8 \[b, t, \d+, \d+, 3\], got torch\.float32"),
        (taken, frames[:1], f"3 simulations observe {3 * k} frames"),
        (taken[:2], frames, r"action must be"),
    ):
        with pytest.raises(ValueError, match=message):
            world.observe(state, action, frame)


def assert_states_close(state, expected) -> None:
    """Equal states, to float32's rounding."""
    for a, b in zip(tree_leaves(state), tree_leaves(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_features_are_one_vector_per_world(world):
    """Features depend on a world's own state only; worlds without features raise an error."""
    state, _ = world.reset(contexts(world), seed=1)
    if not isinstance(world, ProvidesFeatures) or (
        isinstance(world, EnsembleSimulator) and world.followed_member == "random"
    ):
        with pytest.raises(ValueError, match="keeps no features"):
            select_observation(world, "features", state, None)
        return
    features = world.features(state)
    assert features.ndim == 2 and len(features) == 3 and features.dtype == torch.float32
    next_state, _ = roll_out(world, state, 1)
    assert world.features(next_state).shape == features.shape and not torch.equal(world.features(next_state), features)
    alone, _ = world.reset(contexts(world)[1:2], seed=world_seeds(1, 3)[1:2])
    torch.testing.assert_close(world.features(alone), features[1:2], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "make", [diffusion_world, lambda outcomes=False: genie(labeled=True, outcomes=outcomes)], ids=["dit", "genie"]
)
def test_rewards_and_terminations_come_from_the_heads_and_depend_on_the_action(make):
    without_heads, world = make(), make(outcomes=True)
    _, out = without_heads.step(without_heads.reset(contexts(without_heads))[0], actions(without_heads, 3, 0))
    assert not out.reward.any() and not out.terminated.any()
    state, _ = world.reset(contexts(world))
    (_, first), (_, second) = (world.step(state, torch.full((3,), a)) for a in (0, 1))
    assert first.reward.std() > 0 and not torch.equal(first.reward, second.reward)
    terminated = torch.cat(
        [roll_out(world, world.reset(contexts(world), seed)[0], 1)[1][0].terminated for seed in range(20)]
    )
    assert 0 < terminated.float().mean() < 1  # sampled: the random head's probability is neither 0 nor 1


def test_encoding_a_frame_gives_the_latent_of_a_reset_to_it():
    """The latent of a frame is that of a reset to it; frames of a clip are encoded independently."""
    world = jepa_world()
    clip = contexts(world)
    latents = world.encode(clip)
    assert latents.shape == (3, 4, 4, 8)
    torch.testing.assert_close(latents[1:2, 2:3], world.encode(clip[1:2, 2:3]), rtol=0, atol=1e-6)
    assert torch.equal(world.reset(clip)[0].latent, latents[:, -1])
    with pytest.raises(ValueError, match=r"got torch\.float32"):
        world.encode(clip.float())


def test_contexts_without_actions_are_used_if_the_predictor_allows_unknown_actions():
    context = contexts(jepa_world())
    context_actions = torch.randint(0, 4, (3, 3), generator=torch.Generator().manual_seed(0))
    for unknown in (False, True):
        world = jepa_world(allow_unknown_actions=unknown)

        def first_latent(context, context_actions=None, world=world):
            return world.step(world.reset(context, context_actions=context_actions)[0], actions(world, 3, 0))[1].latent

        assert torch.equal(first_latent(context), first_latent(context[:, -1:])) != unknown
        assert not torch.equal(first_latent(context), first_latent(context, context_actions))


def test_rejects_jepa_parts_that_do_not_fit():
    from vwm.core.spaces import ActionSpace
    from vwm.models.vjepa.simulator import VJEPAACSimulator

    for changes, message in (
        ({"latent_width": 5}, "dynamics.latent_width=5 but the projector's: 8"),
        ({"grid": (4, 1)}, r"dynamics.grid=\(4, 1\) but the projector's latents: \(2, 2\)"),
        ({"num_actions": 7}, "4 discrete actions named, but the dynamics takes 7 discrete ones"),
    ):
        parts = jepa_parts() | {"dynamics": action_predictor(**changes)}
        with pytest.raises(ValueError, match=message):
            VJEPAACSimulator(**parts, actions=ActionSpace("discrete", 4))


def composite_errors(space):
    """Wrong composite actions of 3 worlds, and what the error says about each."""
    size, key, pointer = space.size, space.slices["keys"].start, space.size - 1
    held_twice, missing = torch.zeros(3, size), torch.zeros(3, size)
    held_twice[:, key], missing[:, pointer] = 2, float("nan")
    first, names = space.parts[0], [name.replace(".", r"\.") for name in space.names]
    return (
        (torch.zeros(3, 3), rf"floats \[3, {size}\], got torch\.float32"),
        (
            torch.full((3, size), 0.5),
            rf"action column '{names[0]}' must be a whole number in 0\.\.{first.high}, got 0\.5",
        ),
        (held_twice, rf"'{names[key]}' must be a whole number in 0\.\.1, got 2"),
        (missing, rf"'{names[pointer]}' must be a number in -1\.\.1, got nan"),
    )


def test_rejects_invalid_contexts_and_actions(world):
    if world.spec.context.is_image:
        height, width = world.spec.context.image_size
        with pytest.raises(ValueError, match=rf"uint8 \[b, t, {height}, {width}, 3\], got torch.float32"):
            world.reset(contexts(world).float())
    else:
        with pytest.raises(ValueError, match=rf"float32 \[b, t, {world.spec.context.shape[0]}\], got torch.uint8"):
            world.reset(contexts(world).byte())
    with pytest.raises(ValueError, match="at least one frame"):
        world.reset(contexts(world)[:, :0])
    state, _ = world.reset(contexts(world))
    discrete = (
        (torch.zeros(2, dtype=torch.int64), r"integers \[3\]"),
        (torch.zeros(3), r"integers \[3\]"),
        (torch.full((3,), 4), r"0\.\.3, got 4\.\.4"),
        (torch.full((3,), -1), r"0\.\.3, got -1"),
    )
    continuous = (
        (torch.zeros(3, 2), r"floats \[3, 3\], got torch.float32 \[3, 2\]"),
        (torch.zeros(3, dtype=torch.int64), r"floats \[3, 3\]"),
        (torch.full((3, 3), 1.5), r"-1\.\.1, got 1\.5"),
        (torch.full((3, 3), float("nan")), r"-1\.\.1, got nan"),
    )
    if world.spec.actions.is_composite:
        continuous = composite_errors(world.spec.actions)
    for action, message in discrete if world.spec.actions.kind == "discrete" else continuous:
        with pytest.raises(ValueError, match=message):
            world.step(state, action)
    with pytest.raises(ValueError, match="context_actions must be"):
        world.reset(contexts(world), context_actions=torch.zeros(3, 4, dtype=torch.int64))
