"""Latents of k frames, each led to by k actions: alignment, streaming, and learning which action led to which frame."""

from __future__ import annotations

import math

import pytest
import torch
from factories import dit, latent_frames_world

from vwm.core.frames import frames_to_float
from vwm.data.clips import ClipBatch
from vwm.models.dit.finetuning import DiTFinetuning
from vwm.models.dit.module import DiTModule
from vwm.models.dit.network import NoisyFrames
from vwm.models.dit.objectives import DiffusionForcing
from vwm.models.dit.sampling import finest_step_index
from vwm.nn.optimizer import OptimizerConfig
from vwm.tokenizers.causal_vae import CausalVAE
from vwm.worlds.bundle import save_simulator

POOLINGS = ("learned", "mean", "concatenate")


def actions(frames: int, batch: int = 2, dims: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if dims:
        return torch.rand(batch, frames, dims, generator=generator) * 2 - 1
    return torch.randint(0, 4, (batch, frames), generator=generator)


def video(frames: int, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, frames, 8, 8, 3), dtype=torch.uint8, generator=generator)


def changed(a: torch.Tensor, b: torch.Tensor) -> list[int]:
    """The places in time, dimension 1, at which two tensors differ."""
    return [i for i in range(a.shape[1]) if not torch.equal(a[:, i], b[:, i])]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("k", [2, 4, 8])
def test_an_action_conditions_the_latent_that_holds_the_frame_it_leads_to(k, pooling):
    """Action j leads to frame j + 1; the tokenizer says which latent is the first to hold that frame."""
    network = dit(channels=4, frames_per_latent=k, action_pooling=pooling)
    tokenizer = CausalVAE((8, 8), None, 4, k, patch_size=2, widths=[8], depths=[1])
    latents, frames = 4, video(1 + 3 * k, batch=1)
    taken = actions(3 * k, batch=1)
    condition, code = network.embed_previous_actions(taken, 1, latents), tokenizer.encode(frames_to_float(frames))
    assert torch.equal(condition[:, 0], network.no_action[None])  # no action leads to the first frame
    for j in range(3 * k):
        other_actions, other_frames = taken.clone(), frames.clone()
        other_actions[:, j] = (other_actions[:, j] + 1) % 4
        other_frames[:, j + 1] = 255 - other_frames[:, j + 1]
        conditioned = changed(condition, network.embed_previous_actions(other_actions, 1, latents))
        holding = changed(code, tokenizer.encode(frames_to_float(other_frames)))
        assert conditioned == [1 + j // k] and holding[0] == conditioned[0]


def test_an_action_changes_its_latent_and_no_earlier_one():
    k, network = 4, dit(channels=4, frames_per_latent=4).double()
    latents = torch.randn(2, 4, 4, 4, 4, dtype=torch.float64)
    signal = torch.full((2, 4), 0.5, dtype=torch.float64)

    def predict(taken: torch.Tensor) -> torch.Tensor:
        embedding = network.embed_previous_actions(taken, 2, 4)
        return network(NoisyFrames(latents, signal, None, embedding)).prediction

    taken = actions(3 * k)
    for j in (0, 3, 4, 11):
        other = taken.clone()
        other[:, j] = (other[:, j] + 1) % 4
        assert changed(predict(taken), predict(other)) == list(range(1 + j // k, 4))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_unknown_actions_have_the_embedding_of_the_first_latent(pooling):
    network = dit(channels=4, frames_per_latent=2, action_pooling=pooling)
    hidden = network.embed_previous_actions(actions(4), 2, 3, torch.zeros(2, 4, dtype=torch.bool))
    torch.testing.assert_close(hidden, network.no_action.expand_as(hidden))
    half = torch.tensor([True, False, True, True]).expand(2, 4)
    assert changed(network.embed_previous_actions(actions(4), 2, 3, half), hidden) == [1, 2]


def test_the_order_of_the_actions_is_lost_by_the_mean_only():
    first, second = torch.tensor([[0, 1]]), torch.tensor([[1, 0]])
    for pooling in POOLINGS:
        network = dit(channels=4, frames_per_latent=2, action_pooling=pooling)
        same = torch.allclose(network.embed_actions(first), network.embed_actions(second), atol=1e-6)
        assert same == (pooling == "mean")


def test_one_frame_per_latent_has_the_weights_it_always_had():
    plain, network = dit(), dit(frames_per_latent=1, action_pooling="concatenate")
    assert network.pool_actions is None and list(network.state_dict()) == list(plain.state_dict())
    assert not any("pool" in name for name in network.state_dict())


@pytest.mark.parametrize(("k", "dims"), [(2, 0), (4, 3), (8, 0)])
def test_streaming_equals_parallel_in_float64_past_the_window(k, dims):
    """Encoder, dynamics and decoder, in chunks of single steps, against whole clips."""
    world = latent_frames_world(k, dims=dims, window=3)
    tokenizer, network = world.tokenizer.double(), world.dynamics.double()
    steps = 5
    clip, taken = frames_to_float(video(1 + steps * k)).double(), actions(steps * k, dims=dims)
    taken = taken.double() if dims else taken
    with torch.no_grad():
        latents = tokenizer.encode(clip)
        shown = tokenizer.decode(latents)
        embedding = network.embed_previous_actions(taken, 2, 1 + steps)
        signal = latents.new_full((2, 1 + steps), 0.9)
        noisy = NoisyFrames(latents, signal, finest_step_index(network, signal), embedding)
        predictions = network(noisy).prediction
        encoder, decoder = tokenizer.init_encoder(2), tokenizer.init_decoder(2)
        state = network.init_state(2)
        for i in range(1 + steps):
            frames = slice(0, 1) if i == 0 else slice(1 + (i - 1) * k, 1 + i * k)
            encoder, latent = tokenizer.encode_step(encoder, clip[:, frames])
            led = embedding[:, :1] if i == 0 else network.embed_actions(taken[:, (i - 1) * k : i * k])
            state, out = network.step(state, NoisyFrames(latent, signal[:, :1], None, led))
            decoder, decoded = tokenizer.decode_step(decoder, latent)
            for found, expected in (
                (latent, latents[:, i : i + 1]),
                (led, embedding[:, i : i + 1]),
                (out.prediction, predictions[:, i : i + 1]),
                (decoded, shown[:, frames]),
            ):
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_a_held_action_is_one_for_every_frame_of_the_step():
    world = latent_frames_world(4)
    state, _ = world.reset(video(5), seed=1)
    _, held = world.step(state, torch.tensor([1, 2]))
    _, each = world.step(state, torch.tensor([[1] * 4, [2] * 4]))
    _, mixed = world.step(state, torch.tensor([[1, 1, 1, 0], [2, 2, 2, 2]]))
    assert torch.equal(held.frame, each.frame)
    assert not torch.equal(mixed.latent[0], held.latent[0])
    torch.testing.assert_close(mixed.latent[1], held.latent[1])
    with pytest.raises(ValueError, match=r"integers \[2\] or \[2, 4\], got torch\.int64 \[2, 3\]"):
        world.step(state, torch.zeros(2, 3, dtype=torch.int64))


def test_a_reset_uses_the_last_frames_that_fill_whole_latents():
    world, context, taken = latent_frames_world(4), video(8), actions(7)
    state, frame = world.reset(context, 3, taken)
    trimmed, last = world.reset(context[:, 3:], 3, taken[:, 3:])
    assert torch.equal(frame, last) and torch.equal(state.latent, trimmed.latent)
    assert int(state.dynamics.position[0]) == 2
    _, out = world.step(state, torch.tensor([0, 1]))
    assert torch.equal(out.frame, world.step(trimmed, torch.tensor([0, 1]))[1].frame)
    assert int(world.reset(context[:, :4], 3, taken[:, :3])[0].dynamics.position[0]) == 1


def test_learns_which_action_leads_to_which_frame():
    """In this game an action paints the next frame black or white: frames show the actions of a latent in order."""
    torch.manual_seed(0)
    k = 4
    tokenizer = CausalVAE((1, 1), None, 3 * k, k, patch_size=1, widths=[8], depths=[1])  # a cosine transform
    network = dit(grid=(1, 1), channels=3 * k, num_actions=2, frames_per_latent=k, width=48, depth=2, registers=0)
    learner = DiTModule(
        tokenizer=tokenizer,
        dynamics=network,
        objective=DiffusionForcing(),
        optimizer=OptimizerConfig(),
        context="noisy",
        context_frames=1,
        sampling_steps=4,
    ).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0)

    def clips(count: int, latents: int = 3) -> ClipBatch:
        taken = torch.randint(0, 2, (count, 1 + k * (latents - 1)))
        painted = torch.cat((torch.randint(0, 2, (count, 1)), taken[:, :-1]), dim=1) * 255
        frames = painted[..., None, None, None].expand(-1, -1, 1, 1, 3).to(torch.uint8)
        return ClipBatch(frames=frames, actions=taken)

    for _ in range(150):
        loss, _ = learner(clips(32))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    batch = clips(32)
    sampled = learner.eval().sample(batch)[:, 1:].float().mean(dim=(2, 3, 4)) > 127
    correct = (sampled == batch.actions[:, :-1].bool()).float().mean(dim=0)
    assert correct.min() > 0.95, correct


def test_outcomes_are_learned_from_the_sum_and_the_end_of_the_frames_of_a_step():
    k, world = 4, latent_frames_world(4, outcomes=True)
    learner = DiTModule(
        tokenizer=world.tokenizer,
        dynamics=world.dynamics.requires_grad_(True),
        objective=DiffusionForcing(),
        optimizer=OptimizerConfig(),
        outcomes=world.outcomes,
    ).train()

    def losses(rewards: torch.Tensor, terminated: torch.Tensor) -> list[float]:
        torch.manual_seed(0)
        batch = ClipBatch(frames=video(9), actions=actions(12), rewards=rewards, terminated=terminated)
        logs = learner(batch)[1]
        return [float(logs[name]) for name in ("reward_loss", "end_loss")]

    rewards, never = torch.zeros(2, 12), torch.zeros(2, 12, dtype=torch.bool)
    first, last, other_step, both = (rewards.clone() for _ in range(4))
    first[0, 0] = last[0, 3] = other_step[0, k] = 1
    both[0, :2] = 0.5
    assert losses(first, never) == losses(last, never) == losses(both, never) != losses(other_step, never)
    ended, ended_later = never.clone(), never.clone()
    ended[1, 8], ended_later[1, 11] = True, True
    assert losses(rewards, ended) == losses(rewards, ended_later) != losses(rewards, never)
    cut, complete = rewards.clone(), rewards.clone()
    complete[1, 8] = cut[1, 8] = 1
    cut[1, 10:] = torch.nan  # an episode that ended two frames after the last latent
    cut_ended = never.clone()
    cut_ended[1, 9] = True
    assert losses(cut, cut_ended) == losses(complete, cut_ended)  # by a termination: the sum is known
    truncated, other = losses(cut, never), losses(5 * cut, never)  # by a truncation: the sum is unknown
    assert truncated == other and all(map(math.isfinite, truncated)) and truncated != losses(complete, never)
    with pytest.raises(ValueError, match=r"need 4 actions after each, got 9: set data\.frames_per_latent=4"):
        learner(ClipBatch(frames=video(9), actions=actions(9), rewards=rewards[:, :9]))


def test_finetuning_starts_with_actions_without_effect_and_learns_their_pooling(tmp_path):
    save_simulator(latent_frames_world(4, num_actions=0), tmp_path / "world")
    tuned = DiTFinetuning(
        world=str(tmp_path / "world"),
        num_actions=3,
        adapt="frozen",
        objective=DiffusionForcing(),
        optimizer=OptimizerConfig(),
    )
    embedding = tuned.dynamics.embed_actions(actions(8) % 3)
    torch.testing.assert_close(embedding, tuned.dynamics.no_action.expand_as(embedding))
    trained = {name.split(".")[0] for name, p in tuned.dynamics.named_parameters() if p.requires_grad}
    assert trained == {"embed_action", "pool_actions"}
