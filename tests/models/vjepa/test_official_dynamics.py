"""The published V-JEPA 2-AC: weights in its layout load to a predictor that equals its formulas, written out here."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F
from vjepa_models import AC_DEPTH, AC_HEADS, AC_WIDTH, encoder, published_weights, random

from vwm.core.components import load_component, save_component
from vwm.core.weight_mapping import PretrainedWeightsError
from vwm.models.vjepa.action_conditioned_module import ActionConditionedJEPAModule
from vwm.models.vjepa.action_conditioned_predictor import ActionConditionedPredictor
from vwm.models.vjepa.latent_projector import LatentProjector
from vwm.models.vjepa.official_weights import load_official_vjepa
from vwm.nn.optimizer import OptimizerConfig

OPTIONS = {"image_size": (16, 16), "frames": 8, "heads": 4, "predictor_num_heads": AC_HEADS}


def published_predictor(weights, latents, actions, states):
    """[b, t, n, 48] -> [b, t, n, 48], token by token: action, state and patches of each frame."""
    weights = {name.removeprefix("module."): weight for name, weight in weights.items()}

    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name, x):
        return F.layer_norm(x, (AC_WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6)

    frames = latents.shape[1]
    x = torch.cat(
        (
            linear("action_encoder", actions)[:, :, None],
            linear("state_encoder", states)[:, :, None],
            linear("predictor_embed", latents),
        ),
        dim=2,
    ).flatten(1, 2)
    cells = [None, None, *itertools.product(range(2), range(2))]  # actions and states have no place
    positions = [(frame, *(cell or (0, 0))) for frame in range(frames) for cell in cells]
    channels = AC_WIDTH // AC_HEADS
    pairs = channels // 6
    angles = torch.zeros(len(positions), channels, dtype=torch.float64)
    for token, position in enumerate(positions):
        for channel in range(6 * pairs):
            angles[token, channel] = position[channel // (2 * pairs)] * 10000 ** -((channel % pairs) / pairs)
    partner = torch.arange(channels) ^ 1
    sign = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(channels // 2)
    time = torch.tensor([position[0] for position in positions])
    for block in (f"predictor_blocks.{number}" for number in range(AC_DEPTH)):
        y = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x))
        heads = []
        for head in range(AC_HEADS):
            q, k, v = (y[..., part * AC_WIDTH + head * channels :][..., :channels] for part in range(3))
            q, k = (z * angles.cos() + sign * z[..., partner] * angles.sin() for z in (q, k))
            logits = (q @ k.mT / math.sqrt(channels)).masked_fill(time[:, None] < time, float("-inf"))
            heads.append(logits.softmax(-1) @ v)
        x = x + linear(f"{block}.attn.proj", torch.cat(heads, dim=-1))
        x = x + linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x))))
    x = norm("predictor_norm", x).unflatten(1, (frames, -1))[:, :, 2:]
    return F.layer_norm(linear("predictor_proj", x), (48,))  # as it is used, with normalize_reps


@pytest.fixture
def checkpoint():
    frozen = encoder(image_size=(16, 16), tiled_rope=True).state_dict()
    frozen = {f"module.backbone.{name}": weight for name, weight in frozen.items()}
    return {"encoder": frozen, "target_encoder": frozen, "predictor": published_weights(), "epoch": 315}


@torch.no_grad()
def test_a_loaded_action_conditioned_predictor_equals_the_published_one(checkpoint, tmp_path):
    torch.save(checkpoint, tmp_path / "ac.pt")
    found = load_official_vjepa(tmp_path / "ac.pt", **OPTIONS)
    assert found.predictor is None and found.dynamics.transformer.span.window == 4
    latents, actions, states = random(2, 4, 4, 48), random(2, 4, 7, seed=1), random(2, 4, 7, seed=2)
    expected = published_predictor(checkpoint["predictor"], latents, actions, states)
    torch.testing.assert_close(found.dynamics(latents, actions, states), expected, rtol=0, atol=1e-10)
    state, first = found.dynamics.step(found.dynamics.init_state(2), latents[:, :3], actions[:, :3], states[:, :3])
    _, last = found.dynamics.step(state, latents[:, 3:], actions[:, 3:], states[:, 3:])
    torch.testing.assert_close(torch.cat((first, last), dim=1), expected, rtol=0, atol=1e-10)
    unknown = published_predictor(checkpoint["predictor"], latents, actions, torch.zeros_like(states))
    torch.testing.assert_close(found.dynamics(latents, actions), unknown, rtol=0, atol=1e-10)


def test_training_starts_from_imported_dynamics_of_the_same_settings(checkpoint, tmp_path):
    torch.save(checkpoint, tmp_path / "ac.pt")
    found = load_official_vjepa(tmp_path / "ac.pt", **OPTIONS)
    save_component(found.encoder.float(), tmp_path / "encoder")
    save_component(found.dynamics.float(), tmp_path / "dynamics")
    settings = {
        name: value for name, value in load_component(tmp_path / "dynamics").config.items() if not name.startswith("_")
    }

    def train(**changes):
        return ActionConditionedJEPAModule(
            encoder=str(tmp_path),
            projector=LatentProjector((2, 2), 48, pooling="none", latent_width=0, norm="layer"),
            dynamics=ActionConditionedPredictor(**settings | changes),
            optimizer=OptimizerConfig(),
            pretrained=str(tmp_path),
        )

    started = train(window=2).dynamics
    for name, weight in found.dynamics.state_dict().items():
        assert torch.equal(started.state_dict()[name], weight)
    assert all(parameter.requires_grad for parameter in started.parameters())
    with pytest.raises(ValueError, match="tiled_rope=True there and False here"):
        train(tiled_rope=False)


def test_errors_name_what_the_published_layout_lacks(checkpoint, tmp_path):
    torch.save(checkpoint, tmp_path / "ac.pt")
    with pytest.raises(PretrainedWeightsError, match=r"square frames and rope; these are 2x2 patches with sincos"):
        weights = checkpoint["target_encoder"]
        table = encoder(image_size=(16, 16), positions="sincos")
        weights["pos_embed"] = table.positions.additive_embedding(table.grid(), torch.zeros(1))[None]
        torch.save(checkpoint, tmp_path / "sincos.pt")
        load_official_vjepa(tmp_path / "sincos.pt", **OPTIONS, positions="sincos")
    del checkpoint["predictor"]["module.predictor_blocks.1.mlp.fc2.bias"]
    torch.save(checkpoint, tmp_path / "ac.pt")
    with pytest.raises(PretrainedWeightsError, match=r"predictor: missing: predictor_blocks\.1\.mlp\.fc2\.bias"):
        load_official_vjepa(tmp_path / "ac.pt", **OPTIONS)
