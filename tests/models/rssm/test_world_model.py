"""RSSM world models: the loss is the published sum, training lowers it, and saving keeps the settings."""

import json

import pytest
import torch
from latent_worlds import latent_world

from vwm.core.components import load_component, save_component
from vwm.models.rssm.dreamerv3_sizes import DREAMERV3_SIZES, dreamerv3_world_config
from vwm.models.rssm.kl_loss import KLLoss
from vwm.models.rssm.world_model import RSSMWorldModel, RSSMWorldModelConfig

DREAMERS = {
    "planet": {
        "classes": 0, "cell": "gru", "norm": "none", "activation": "elu", "image_network": "plain", "depth": 2,
        "pixel_bits": 5,
        "reconstruction_loss": "normal", "reward_distribution": "normal", "reward_scale": 10.0,
        "predict_continue": False, "prior_layers": 1,
        "kl": KLLoss("elbo", free_nats=0.01), "overshooting_distance": 3,
    },
    "v1": {
        "classes": 0, "cell": "gru", "norm": "none", "activation": "elu", "image_activation": "relu",
        "image_network": "plain", "depth": 2, "reconstruction_loss": "normal", "reward_distribution": "normal",
        "predict_continue": False, "prior_layers": 1,
        "kl": KLLoss("elbo", free_nats=0.01, free_nats_over="mean"),
    },
    "v2": {
        "cell": "norm_gru", "unimix": 0.0, "norm": "none", "activation": "elu", "image_network": "plain", "depth": 2,
        "reconstruction_loss": "normal", "reward_distribution": "normal", "tanh_reward": True,
        "continue_scale": 5.0, "discount_horizon": 1000,
        "prior_layers": 1, "kl": KLLoss("balanced", 0.8, 0.2, free_nats=0.0, free_nats_over="mean", scale=0.1),
    },
    "v3": {"kl": KLLoss(free_nats=0.01)},
    "v3-strided": {"image_network": "strided", "kl": KLLoss(free_nats=0.01)},
}  # fmt: skip


def make_batch(shape, length: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    observation = torch.randn(2, length, *shape, generator=generator)
    if len(shape) == 3:
        observation = torch.randint(0, 256, (2, length, *shape), dtype=torch.uint8, generator=generator)
    is_first, is_terminal = torch.zeros(2, 2, length, dtype=torch.bool)
    is_first[:, 0] = is_first[1, 3] = is_terminal[1, 2] = True
    action, reward = (
        torch.randint(0, 4, (2, length), generator=generator),
        torch.randn(2, length, generator=generator) * 3,
    )
    return {
        "observation": observation,
        "action": action,
        "reward": reward,
        "is_first": is_first,
        "is_terminal": is_terminal,
    }


@pytest.mark.parametrize("dreamer", list(DREAMERS))
@pytest.mark.parametrize("vectors", [False, True])
def test_every_weight_gets_a_gradient_and_training_lowers_the_loss(dreamer, vectors):
    settings = DREAMERS[dreamer]
    shape = (5,) if vectors else (64, 64, 3) if settings.get("image_network") == "plain" else (16, 16, 3)
    world, batch = latent_world(shape, **settings), make_batch(shape)
    torch.manual_seed(0)
    optimizer, losses = torch.optim.Adam(world.parameters(), 3e-3), []
    for i in range(8):
        loss, states, logs = world.loss(**batch)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        assert i or all(p.grad is not None and p.grad.any() for p in world.parameters())
        optimizer.step()
    assert losses[-1] < losses[0] and states.deter.shape == (2, 5, 16)
    assert all(value.ndim == 0 and value.isfinite() and not value.requires_grad for value in logs.values())


def test_the_loss_equals_the_published_sum_of_terms():
    world = latent_world((5,), reward_scale=2.0, continue_scale=3.0, discount_horizon=10).double()
    batch = make_batch((5,))
    batch["observation"], batch["reward"] = batch["observation"].double(), batch["reward"].double()
    torch.manual_seed(1)
    loss, states, logs = world.loss(**batch)
    torch.manual_seed(1)
    expected_states, priors = world.rssm.observe(world.embed(batch["observation"]), batch["action"], batch["is_first"])
    assert torch.equal(states.stoch, expected_states.stoch)
    features = torch.cat((states.deter, states.stoch), dim=-1)
    symlog_observation = batch["observation"].sign() * batch["observation"].abs().log1p()
    reconstruction = (world.observation_model.decoder(features) - symlog_observation).square().sum(-1).mean()
    reward_loss = world.reward_head.two_hot.loss(world.reward_head(features), batch["reward"]).mean()
    continue_probability = world.continue_head(features).squeeze(-1).sigmoid()
    target = torch.where(batch["is_terminal"], 0.0, 0.9).double()
    continue_loss = -(target * continue_probability.log() + (1 - target) * (1 - continue_probability).log()).mean()
    kl = (states.parameters.exp() * (states.parameters - priors)).sum((-1, -2)).clamp(min=1).mean()
    torch.testing.assert_close(loss, reconstruction + 2 * reward_loss + 3 * continue_loss + 1.1 * kl)
    torch.testing.assert_close(logs["loss/reward"], reward_loss.detach())
    torch.testing.assert_close(world.predict_continue(features), continue_probability)
    torch.testing.assert_close(
        world.predict_reward(features), world.reward_head.two_hot.mean(world.reward_head(features))
    )


def test_rewards_can_be_squashed_and_the_discount_is_constant_without_a_continue_head():
    world = latent_world((5,), tanh_reward=True, predict_continue=False, discount_horizon=100)
    torch.testing.assert_close(world.reward_target(torch.tensor([-50.0, 0.5])), torch.tensor([-1.0, 0.46211716]))
    assert torch.equal(world.predict_continue(torch.zeros(2, 3, world.feature_size)), torch.full((2, 3), 0.99))
    is_terminal = torch.tensor([False, True])
    assert torch.equal(world.continue_target(is_terminal), torch.tensor([0.99, 0.0]))
    assert torch.equal(latent_world((5,), discount_horizon=0).continue_target(is_terminal), torch.tensor([1.0, 0.0]))


def test_a_loaded_world_model_equals_the_saved_one(tmp_path):
    world = latent_world((16, 16, 3), **DREAMERS["v3-strided"])
    save_component(world, tmp_path / "world")
    loaded = load_component(tmp_path / "world")
    assert isinstance(loaded, RSSMWorldModel) and loaded.settings == world.settings
    assert json.loads((tmp_path / "world" / "config.json").read_text())["settings"]["kl"]["free_nats"] == 0.01
    batch = make_batch((16, 16, 3))
    losses = []
    for model in (world, loaded):
        torch.manual_seed(0)
        losses.append(model.loss(**batch)[0].detach())
    assert torch.equal(*losses)


def test_rejects_unknown_settings():
    with pytest.raises(ValueError, match="depht"):
        RSSMWorldModelConfig.from_dict({"depht": 3})
    with pytest.raises(ValueError, match=r"observation_shape=\[4, 4\]"):
        RSSMWorldModel([4, 4], 2)
    with pytest.raises(ValueError, match="size '13m' must be one of 1m, 12m"):
        dreamerv3_world_config("13m")


def test_parameter_counts_match_the_names_of_sizes():
    """Count world, actor, critic and target critic on images; the published counts are rounded, some by a lot."""
    counts = {}
    for name, size in DREAMERV3_SIZES.items():
        with torch.device("meta"):
            world = RSSMWorldModel.from_settings((64, 64, 3), 6, 0, dreamerv3_world_config(name))
        head = world.feature_size * size.units + 2 * size.units**2
        counts[name] = (sum(p.numel() for p in world.parameters()) + 3 * head + 2 * 255 * size.units) / 1e6
    assert counts["12m"] == pytest.approx(12, rel=0.1)
    for name, count in counts.items():
        assert count == pytest.approx(float(name[:-1]), rel=0.35), counts
    assert list(counts.values()) == sorted(counts.values())
