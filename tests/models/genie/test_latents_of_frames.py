"""Genie over latents of k frames, each led to by k actions: alignment, streaming, training with its own actions."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from factories import dynamics, genie_of_latent_frames

from vwm.core.components import save_component
from vwm.core.family import ExportSettings
from vwm.core.frames import frames_to_float
from vwm.data.clips import ClipBatch
from vwm.models.genie.family import GenieFamily
from vwm.models.genie.module import GenieModule
from vwm.nn.optimizer import OptimizerConfig

POOLINGS = ("learned", "mean", "concatenate")


def clip(frames: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (batch, frames, 16, 16, 3), dtype=torch.uint8, generator=generator)
    return video, torch.randint(0, 4, (batch, frames - 1), generator=generator)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("k", [2, 4, 8])
def test_an_action_changes_the_latent_that_holds_its_frame_and_later_ones_only(k, pooling):
    model = dynamics(frames_per_latent=k, action_pooling=pooling).double().eval()
    tokens = torch.randint(0, 36, (1, 4, 16), generator=torch.Generator().manual_seed(1))
    masked = torch.ones(1, 3, 16, dtype=torch.bool)
    _, actions = clip(1 + 3 * k, batch=1)
    logits = model(tokens, actions, masked)
    for j in (0, k - 1, k, 3 * k - 1):
        other = actions.clone()
        other[:, j] = (other[:, j] + 1) % 4
        different = (model(tokens, other, masked) != logits).flatten(2).any(2)[0].nonzero().flatten().tolist()
        assert different == list(range(j // k, 3))  # of latents 1 to 3


@pytest.mark.parametrize("k", [2, 4])
def test_streaming_equals_parallel_in_float64_past_the_window(k):
    world, steps = genie_of_latent_frames(k, labeled=True), 5
    tokenizer, model = world.tokenizer.double(), world.dynamics.double()
    frames, actions = clip(1 + steps * k)
    video = frames_to_float(frames).double()
    with torch.no_grad():
        codes = tokenizer.encode(video)
        shown, tokens = tokenizer.decode(codes), codes.flatten(2)
        masked = torch.ones(2, steps, 16, dtype=torch.bool)
        logits = model(tokens, actions, masked)
        encoder, decoder = tokenizer.init_encoder(2), tokenizer.init_decoder(2)
        state, hidden = model.init_state(2), torch.full_like(tokens[:, :1], model.mask_token)
        for i in range(1 + steps):
            place = slice(0, 1) if i == 0 else slice(1 + (i - 1) * k, 1 + i * k)
            taken = None if i == 0 else actions[:, (i - 1) * k : i * k]
            encoder, code = tokenizer.encode_step(encoder, video[:, place])
            assert torch.equal(code, codes[:, i : i + 1])
            if i:
                torch.testing.assert_close(
                    model.predict_logits(state, hidden, taken)[:, 0], logits[:, i - 1], rtol=0, atol=1e-10
                )
            state = model.observe(state, code.flatten(2), taken)
            decoder, decoded = tokenizer.decode_step(decoder, code)
            torch.testing.assert_close(decoded, shown[:, place], rtol=0, atol=1e-10)


@pytest.mark.parametrize("labeled", [False, True])
def test_trains_and_samples_with_one_action_per_frame(labeled, tmp_path):
    k, world = 2, genie_of_latent_frames(2, labeled=labeled, outcomes=labeled)
    save_component(world.tokenizer, tmp_path / "tokenizer")
    module = GenieModule(
        tokenizer=tmp_path,
        dynamics=world.dynamics.requires_grad_(True),
        optimizer=OptimizerConfig(),
        latent_action=None if labeled else world.latent_action.requires_grad_(True),
        context_frames=1,
        sampling_steps=2,
        outcomes=world.outcomes,
    ).train()
    frames, actions = clip(1 + 3 * k)
    steps = 4 * k if labeled else 1 + 3 * k  # rewards need the actions after the last latent, too
    taken = torch.cat((actions, actions[:, : steps - 3 * k]), dim=1)
    batch = ClipBatch(frames=frames, actions=taken, rewards=taken.float(), terminated=taken == 3)
    found, _, _ = module._actions(batch)
    assert found.shape == (2, 3 * k) and (not labeled or torch.equal(found, actions))
    loss, _ = module(batch)
    loss.backward()
    assert module.dynamics.pool_actions.weight.grad.any()
    assert module.eval().sample(batch).shape == frames.shape
    settings = ExportSettings("x", 15.0, 1 + k, None, {})
    simulator = GenieFamily().make_simulator(module, settings)
    assert simulator.spec.frames_per_step == k


def test_rejects_a_tokenizer_with_other_latents(tmp_path):
    world = genie_of_latent_frames(2, labeled=True)
    save_component(world.tokenizer, tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=r"dynamics\.frames_per_latent=4 but the tokenizer's: 2"):
        GenieModule(tmp_path, dynamics(frames_per_latent=4), OptimizerConfig())
    assert GenieFamily().compare_cache(SimpleNamespace(tokenizer=world.tokenizer), None, None) is None
