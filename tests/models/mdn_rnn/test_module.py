"""The training of the MDN-RNN."""

import pytest
import torch
from factories import dream

from vwm.data.clips import ClipBatch
from vwm.models.mdn_rnn.module import MDNRNNModule
from vwm.nn.optimizer import OptimizerConfig


def module(changes=None, **settings) -> MDNRNNModule:
    world = dream(**(changes or {}))
    return MDNRNNModule(world.tokenizer, world.dynamics, OptimizerConfig(), **settings)


def batch(**changes) -> ClipBatch:
    generator = torch.Generator().manual_seed(0)
    fields = {
        "frames": torch.randint(0, 256, (3, 6, 8, 8, 3), dtype=torch.uint8, generator=generator),
        "actions": torch.randint(0, 4, (3, 6), generator=generator),
        "rewards": torch.randn(3, 6, generator=generator),
        "terminated": torch.tensor([[False] * 5 + [end] for end in (True, False, True)]),
    }
    return ClipBatch(**{**fields, **changes})


def encoded(std: float) -> ClipBatch:
    latents = torch.randn(3, 6, 1, 1, 4, generator=torch.Generator().manual_seed(1))
    return batch(frames=None, latents=latents, latents_std=torch.full_like(latents, std))


@torch.no_grad()
def test_the_loss_is_the_next_latent_s_and_ends_count_ten_times():
    trained, clips = module(changes={"predict_reward": True}), encoded(0.0)
    loss, logs = trained(clips)
    model, latents = trained.dynamics, clips.latents.flatten(2)
    memory, nats, ends, rewards = model.init_state(3), [], [], []
    for i in range(6):
        said, memory = model(memory, latents[:, i : i + 1], model.embed_actions(clips.actions[:, i : i + 1]))
        predicted = model.predict(said[:, 0])
        if i < 5:
            nats.append(predicted.next_latent.negative_log_likelihood(latents[:, i + 1]))
        chance = predicted.termination_logits.sigmoid()
        ends.append(torch.where(clips.terminated[:, i], -10 * chance.log(), -(1 - chance).log()))
        rewards.append(model.two_hot.loss(predicted.reward_logits, clips.rewards[:, i]))
    expected = {"latent_loss": nats, "termination_loss": ends, "reward_loss": rewards}
    for name, values in expected.items():
        torch.testing.assert_close(logs[name], torch.stack(values).mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss, sum(logs.values()), rtol=1e-6, atol=0)


@torch.no_grad()
def test_latents_are_drawn_anew_in_every_batch_from_what_is_known_of_the_frames():
    trained, clips = module(), batch()
    posterior = trained.tokenizer.posterior(clips.frames.movedim(-1, 2).float() / 127.5 - 1)
    kept = batch(frames=None, latents=posterior.mean, latents_std=posterior.std)
    for source in (clips, kept):
        drawn = torch.stack([trained._sample_latents(source) for _ in range(1500)])
        torch.testing.assert_close(drawn.mean(0), posterior.mean.flatten(2), rtol=0, atol=0.15)
        torch.testing.assert_close(drawn.std(0), posterior.std.flatten(2), rtol=0.12, atol=0)
    bare = batch(frames=None, latents=posterior.mean)
    assert torch.equal(trained._sample_latents(bare), posterior.mean.flatten(2))


def test_only_the_dynamics_learns():
    trained = module().train()
    trained(batch())[0].backward()
    assert all(p.grad is None for p in trained.tokenizer.parameters()) and not trained.tokenizer.training
    assert all(p.grad is not None for p in trained.dynamics.parameters())


def test_hidden_actions_train_the_vector_that_stands_for_them():
    trained = module(changes={"allow_unknown_actions": True}, action_dropout=0.5).train()
    trained(batch())[0].backward()
    assert trained.dynamics.no_action.grad.abs().sum() > 0


def test_a_sample_starts_with_its_context_in_temporal_order():
    trained = module(context_frames=2)
    one, two = trained.sample(encoded(0.0)), trained.sample(encoded(0.0))
    shown = trained.tokenizer.decode(encoded(0.0).latents[:, :2])
    assert one.shape == (3, 6, 8, 8, 3) and torch.equal(one, two)
    assert (one[:, :2].float() / 127.5 - 1 - shown.movedim(2, -1)).abs().max() < 0.01


@pytest.mark.parametrize(
    ("changes", "settings", "clips", "message"),
    [
        ({}, {}, {"actions": None}, "hold no actions"),
        ({"predict_reward": True}, {}, {"rewards": None}, "requires rewards"),
        ({}, {}, {"actions": torch.full((3, 6), 9)}, "from 9 to 9"),
        ({}, {}, {"frames": torch.zeros(3, 1, 8, 8, 3, dtype=torch.uint8)}, "at least 2"),
        ({}, {"action_dropout": 0.1}, {}, "set both or neither"),
        ({}, {"termination_weight": 0.0}, {}, "termination_weight=0.0 positive"),
    ],
)
def test_wrong_settings_and_data_are_named(changes, settings, clips, message):
    with pytest.raises(ValueError, match=message):
        module(changes, **settings)(batch(**clips))
