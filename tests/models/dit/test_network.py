"""Invariants of the diffusion transformer, for every layout, prediction type and action space."""

import pytest
import torch
from factories import dit

from vwm.core.states import concatenate_states
from vwm.models.dit.network import NoisyFrames
from vwm.nn.recomputation import recompute_blocks

FRAMES = 9
COMPOSITE_PARTS = [{"kind": "choice", "size": 3}, {"kind": "keys", "size": 4}, {"kind": "pointer"}]
KINDS = {
    "discrete": {},
    "continuous": {"num_actions": 0, "action_dims": 3},
    "composite": {"num_actions": 0, "action_parts": COMPOSITE_PARTS},
    "none": {"num_actions": 0},
    "shortcut": {"prediction": "clean", "num_step_sizes": 4},
    "patches": {"patch_size": 2},
    "full": {"attention": "full"},
    "time-every-4th-gqa-capped": {"time_every": 4, "kv_heads": 1, "soft_cap": 9.0},
    "sinks": {"sink_frames": 2},
    "memory": {"memory_frames": 2, "memory_every": 2},
    "sinks-memory-full": {"sink_frames": 1, "memory_frames": 1, "memory_every": 3, "attention": "full"},
    "sinks-memory-gqa-capped-agent": {"sink_frames": 2, "memory_frames": 1, "kv_heads": 1, "soft_cap": 9.0}
    | {"agent_tokens": 1},
    "agent": {"agent_tokens": 1},
    "agents-patches-gqa-capped": {"agent_tokens": 3, "patch_size": 2, "kv_heads": 1, "soft_cap": 9.0},
}


@pytest.fixture(params=list(KINDS))
def network(request):
    return dit(**KINDS[request.param]).double().eval()


def random(*shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def actions(network, frames: int = FRAMES - 1, batch: int = 2) -> torch.Tensor | None:
    embedding = network.embed_action
    if embedding is None:
        return None
    generator = torch.Generator().manual_seed(5)
    space = embedding.space
    if space.is_discrete:
        return torch.randint(space.size, (batch, frames), generator=generator)
    return space.from_flat(torch.rand(batch, frames, space.size, generator=generator) * 2 - 1)


def noisy(network, frames: int = FRAMES, seed: int = 0) -> NoisyFrames:
    signal = torch.rand(2, frames, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    step = torch.randint(network.num_step_sizes, (2, frames)) if network.num_step_sizes else None
    return NoisyFrames(
        random(2, frames, 4, 4, 3, seed=seed), signal, step, network.embed_previous_actions(actions(network), 2, FRAMES)
    )


def cut(frames: NoisyFrames, here: slice) -> NoisyFrames:
    return NoisyFrames(*(None if x is None else x[:, here] for x in frames))


@pytest.mark.parametrize("chunks", [[1] * FRAMES, [FRAMES], [5, 4], [1, 6, 2]])
def test_streaming_equals_parallel_past_the_window(network, chunks):
    frames, start = noisy(network), 0
    whole, state = network(frames), network.init_state(2)
    for length in chunks:
        here = slice(start, start + length)
        state, out = network.step(state, cut(frames, here))
        torch.testing.assert_close(out.prediction, whole.prediction[:, here], rtol=0, atol=1e-10)
        torch.testing.assert_close(out.features, whole.features[:, here], rtol=0, atol=1e-10)
        start += length


@pytest.mark.parametrize("seen", [FRAMES - 1, FRAMES])
def test_training_on_a_clean_context_equals_streaming(network, seen):
    """Every frame of the parallel pass attends to what a streaming state holds at that frame."""
    past, frames = noisy(network, seed=1), noisy(network, seed=2)
    out = network(cut(frames, slice(1, None)), cut(past, slice(0, seen)))
    state = network.init_state(2)
    for i in range(1, FRAMES):
        state, before = network.step(state, cut(past, slice(i - 1, i)))
        torch.testing.assert_close(out.features[:, i - 1], before.features[:, 0], rtol=0, atol=1e-10)
        prediction = network.denoise(state, cut(frames, slice(i, i + 1)))
        torch.testing.assert_close(out.prediction[:, i - 1 : i], prediction, rtol=0, atol=1e-10)


def test_states_of_different_length_step_in_one_batch(network):
    frames = noisy(network)
    alone, states = [], []
    for world, age in ((0, 6), (1, 1)):
        mine = NoisyFrames(*(None if x is None else x[world : world + 1] for x in frames))
        state, _ = network.step(network.init_state(1), cut(mine, slice(0, age)))
        states.append(state)
        alone.append((cut(mine, slice(age, age + 1)), network.step(state, cut(mine, slice(age, age + 1)))[1]))
    both = NoisyFrames(*(None if x[0] is None else torch.cat(x) for x in zip(*(a[0] for a in alone), strict=True)))
    _, out = network.step(concatenate_states(states), both)
    together = torch.cat([a[1].prediction for a in alone])
    torch.testing.assert_close(out.prediction, together, rtol=0, atol=1e-10)


def test_predictions_do_not_depend_on_later_frames(network):
    frames = noisy(network)
    other = noisy(network, seed=3)
    later = NoisyFrames(
        *(None if x is None else torch.cat((x[:, :5], y[:, 5:]), dim=1) for x, y in zip(frames, other, strict=True))
    )
    a, b = network(frames).prediction, network(later).prediction
    assert torch.equal(a[:, :5], b[:, :5]) and not torch.equal(a[:, 5:], b[:, 5:])


def test_an_action_changes_the_next_frame_and_no_earlier_one(network):
    given = actions(network)
    if given is None:
        with pytest.raises(ValueError, match="has no actions"):
            network.embed_actions(torch.zeros(2, 1, dtype=torch.int64))
        return
    changed = given.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 2
    frames = noisy(network)
    a, b = (
        network(frames._replace(action_embedding=network.embed_previous_actions(x, 2, FRAMES))).prediction
        for x in (given, changed)
    )
    assert torch.equal(a[:, :4], b[:, :4]) and not torch.equal(a[:, 4], b[:, 4])


def test_unknown_actions_have_no_effect(network):
    given = actions(network)
    if given is None:
        return
    known = torch.ones(2, FRAMES - 1, dtype=torch.bool)
    known[1] = False
    action_embedding = network.embed_previous_actions(given, 2, FRAMES, known)
    assert torch.equal(action_embedding[0], network.embed_previous_actions(given, 2, FRAMES)[0])
    assert torch.equal(action_embedding[1], network.embed_previous_actions(None, 2, FRAMES)[1])


@pytest.mark.parametrize("changes", [{}, {"num_step_sizes": 3, "prediction": "clean", "kv_heads": 1}])
def test_agent_tokens_do_not_change_other_predictions(changes):
    """Adding agent tokens of any value changes no prediction: parallel, over a past, and streaming."""
    plain = dit(**changes).double().eval()
    frames, past = noisy(plain), noisy(plain, seed=1)
    agents = dit(agent_tokens=2, **changes).double().eval()
    assert not (agents.load_state_dict(plain.state_dict(), strict=False).unexpected_keys)
    for value in (0.02, 30.0):
        torch.nn.init.normal_(agents.agents, std=value)
        for inputs in ((frames,), (cut(frames, slice(1, None)), past)):
            with_agents, without = agents(*inputs), plain(*inputs)
            torch.testing.assert_close(with_agents.prediction, without.prediction, rtol=0, atol=1e-10)
            assert not torch.allclose(with_agents.features, without.features, atol=1e-3)
        (state, _), (other, _) = (network.step(network.init_state(2), past) for network in (agents, plain))
        torch.testing.assert_close(agents.denoise(state, frames), plain.denoise(other, frames), rtol=0, atol=1e-10)
    assert agents(frames).features.shape == (2, FRAMES, 32)


def test_agent_tokens_attend_to_their_frame_and_their_past_within_the_window():
    """Two layers of time attention with a window of 4: at most 6 frames back."""
    network = dit(agent_tokens=1, registers=1).double().eval()
    frames = noisy(network)
    latents = frames.latents.requires_grad_(True)
    (gradient,) = torch.autograd.grad(network(frames).features[:, 7].square().sum(), latents)
    assert (gradient[:, 1:8] != 0).all() and not gradient[:, 0].any() and not gradient[:, 8:].any()
    # Past features affect later ones only through the agent tokens' own keys and values.
    state, _ = network.step(network.init_state(2), cut(noisy(network), slice(0, 3)))
    erased = state._replace(blocks=tuple(type(b)(b.keys, b.values.index_fill(1, AGENT_TOKEN, 0)) for b in state.blocks))
    (_, one), (_, two) = (network.step(s, cut(noisy(network), slice(3, 4))) for s in (state, erased))
    assert torch.equal(one.prediction, two.prediction) and not torch.equal(one.features, two.features)


AGENT_TOKEN = torch.tensor([17])
"""Index of the agent token in a frame of one register, 4 x 4 patches and one agent token."""


def test_sink_and_memory_frames_require_causal_attention():
    for changes, message in (
        ({"sink_frames": 1, "causal": False}, "require causal=True"),
        ({"memory_frames": 1, "causal": False}, "require causal=True"),
        ({"sink_frames": -1}, "sink_frames must be 0 or more, got -1"),
        ({"memory_frames": -2}, "memory_frames must be 0 or more, got -2"),
        ({"memory_every": 0}, "memory_every must be 1 or more, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            dit(**changes)


def test_agent_tokens_require_factored_causal_attention():
    for changes in ({"attention": "full"}, {"causal": False}):
        with pytest.raises(ValueError, match="agent_tokens=1 need attention='factored' and causal=True"):
            dit(agent_tokens=1, **changes)


@pytest.mark.parametrize("recomputation", ["selective", "full"])
def test_recomputation_does_not_change_gradients(recomputation):
    network, gradients = dit().train(), []
    for used in ("none", recomputation):
        recompute_blocks(network, used)
        network.zero_grad()
        frames = NoisyFrames(
            torch.ones(2, 5, 4, 4, 3), torch.full((2, 5), 0.5), None, network.embed_previous_actions(None, 2, 5)
        )
        network(frames).prediction.square().sum().backward()
        gradients.append([None if p.grad is None else p.grad.clone() for p in network.parameters()])
    assert all((a is b is None) or torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_rejects_invalid_inputs_and_settings():
    network = dit().double()
    frames = noisy(network)
    with pytest.raises(ValueError, match=r"\[b, t, 4, 4, 3\], got \[2, 9, 4, 4, 2\]"):
        network(frames._replace(latents=frames.latents[..., :2]))
    with pytest.raises(ValueError, match=r"integers \[b, t\], got torch.float32"):
        network.embed_previous_actions(torch.zeros(2, 8), 2, FRAMES)
    with pytest.raises(ValueError, match=r"actions must be \[b, t, 3\]"):
        dit(num_actions=0, action_dims=3).embed_previous_actions(torch.zeros(2, 8, 2), 2, FRAMES)
    with pytest.raises(ValueError, match=r"give noisy\.step_index"):
        dit(prediction="clean", num_step_sizes=3).double()(frames)
    with pytest.raises(ValueError, match="prediction='noise'"):
        dit(prediction="noise")
