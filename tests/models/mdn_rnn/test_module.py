"""The training of the MDN-RNN."""

from dataclasses import replace

import pytest
import torch
from factories import composite_parts, composite_space, dream
from torch import Tensor

from vwm.data.clips import ClipBatch
from vwm.models.mdn_rnn.module import MDNRNNModule
from vwm.models.mdn_rnn.network import MDNRNN
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
def test_losses_are_those_of_the_definition_with_termination_weight_10():
    learner, clips = module(changes={"predict_reward": True}), encoded(0.0)
    loss, logs = learner(clips)
    model, latents = learner.dynamics, clips.latents.flatten(2)
    memory, nats, ends, rewards = model.init_state(3), [], [], []
    for i in range(6):
        output, memory = model(memory, latents[:, i : i + 1], model.embed_actions(clips.actions[:, i : i + 1]))
        predicted = model.predict(output[:, 0])
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
def test_latents_are_sampled_from_the_posterior_for_every_batch():
    learner, clips = module(), batch()
    posterior = learner.tokenizer.posterior(clips.frames.movedim(-1, 2).float() / 127.5 - 1)
    kept = batch(frames=None, latents=posterior.mean, latents_std=posterior.std)
    for source in (clips, kept):
        drawn = torch.stack([learner._sample_latents(source) for _ in range(1500)])
        torch.testing.assert_close(drawn.mean(0), posterior.mean.flatten(2), rtol=0, atol=0.15)
        torch.testing.assert_close(drawn.std(0), posterior.std.flatten(2), rtol=0.12, atol=0)
    bare = batch(frames=None, latents=posterior.mean)
    assert torch.equal(learner._sample_latents(bare), posterior.mean.flatten(2))


def test_only_the_dynamics_gets_gradients():
    learner = module().train()
    learner(batch())[0].backward()
    assert all(p.grad is None for p in learner.tokenizer.parameters()) and not learner.tokenizer.training
    assert all(p.grad is not None for p in learner.dynamics.parameters())


def test_action_dropout_trains_the_embedding_of_unknown_actions():
    learner = module(changes={"allow_unknown_actions": True}, action_dropout=0.5).train()
    learner(batch())[0].backward()
    assert learner.dynamics.no_action.grad.abs().sum() > 0


def test_unknown_parts_of_composite_actions_have_no_effect():
    torch.manual_seed(0)
    network = MDNRNN(latent_size=4, hidden_size=16, action_parts=composite_parts(), allow_unknown_actions=True)
    learner = MDNRNNModule(dream().tokenizer, network, OptimizerConfig(), action_dropout=0.1).eval()
    clips, space = batch(), composite_space()
    rows = space.from_flat(torch.rand(*clips.actions.shape[:2], space.size) * 2 - 1)
    others = rows.clone()
    others[..., space.slices["keys"]] = 1 - rows[..., space.slices["keys"]]

    def losses(keys_known: bool) -> list[Tensor]:
        known = torch.tensor([True, keys_known, True]).repeat(len(rows), 1)
        given = (replace(clips, actions=actions, known_parts=known) for actions in (rows, others))
        return [learner.validation_losses(x, 0)[0] for x in given]

    assert torch.equal(*losses(False)) and not torch.equal(*losses(True))


def test_a_sample_starts_with_its_context_in_temporal_order():
    learner = module(context_frames=2)
    one, two = learner.sample(encoded(0.0)), learner.sample(encoded(0.0))
    shown = learner.tokenizer.decode(encoded(0.0).latents[:, :2])
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
def test_rejects_invalid_settings_and_data(changes, settings, clips, message):
    with pytest.raises(ValueError, match=message):
        module(changes, **settings)(batch(**clips))
