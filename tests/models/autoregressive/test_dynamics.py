"""Invariants of autoregressive dynamics: training equals streaming, and tokens depend on what is before them only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from autoregressive_worlds import SETTINGS, token_dynamics
from numpy.typing import NDArray
from scipy.special import erf
from torch import Tensor

from vwm.core.states import concatenate_states, select_worlds
from vwm.models.autoregressive.dynamics import AutoregressiveDynamics, AutoregressiveState
from vwm.nn.clip_draws import clip_draws
from vwm.nn.recomputation import recompute_blocks

N, M = 4, 5
KINDS = {
    "rotary": {},
    "rotary-copy": {"copy_previous": True, "codebook_levels": [4, 3, 3]},
    "rotary-2-frames-a-latent": {"frames_per_latent": 2},
    "learned": {"positions": "learned", "copy_previous": True},
}


def clip(frames: int, per_latent: int = 1, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 36, (batch, frames, N), generator=generator)
    return tokens, torch.randint(0, 4, (batch, frames * per_latent), generator=generator)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@torch.no_grad()
def stream(
    model: AutoregressiveDynamics, state: AutoregressiveState, tokens: Tensor, actions: Tensor
) -> tuple[list[Tensor], list[Tensor], list[Tensor], AutoregressiveState]:
    """Logits, outputs at actions and features of frames, token by token; r actions for each frame."""
    logits, outputs, features = [], [], []
    for t, led in enumerate(actions.split(model.frames_per_latent, dim=1)):
        frame, output = model.begin_frame(state, model.embed_actions(led)[:, 0])
        outputs.append(output)
        scores = []
        for place in range(N):
            scores.append(model.token_logits(frame, output))
            frame, output = model.add_token(frame, tokens[:, t, place])
        logits.append(torch.stack(scores, dim=1))
        state, of_frame = model.end_frame(frame)
        features.append(of_frame)
    return logits, outputs, features, state


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_training_equals_streaming_token_by_token_and_frame_by_frame(kind: str) -> None:
    """With a sliding window also past its end."""
    model, r = token_dynamics(**KINDS[kind]).double(), KINDS[kind].get("frames_per_latent", 1)
    frames = 4 if kind == "learned" else 9
    tokens, actions = clip(frames, r)
    predicted = model(tokens, actions)
    first, features = model.observe_with_features(model.init_state(2), tokens[:, :1], None)
    close(features, predicted.features[:, :1])
    logits, outputs, features_by_token, state = stream(model, first, tokens[:, 1:], actions[:, : (frames - 1) * r])
    close(torch.stack(logits, dim=1), predicted.logits)
    close(torch.stack(outputs, dim=1), predicted.action_features[:, : frames - 1])
    close(torch.stack(features_by_token, dim=1), predicted.features[:, 1:])
    assert predicted.action_features.shape[1] == frames
    close(model(tokens, actions[:, : (frames - 1) * r]).logits, predicted.logits)  # without an action at the last frame
    whole, _ = model.observe_with_features(first, tokens[:, 1:], actions[:, : (frames - 1) * r])
    for a, b in zip(whole.cache.blocks, state.cache.blocks, strict=True):
        close(a.keys, b.keys)
        close(a.values, b.values)
    by_frame = first
    for t in range(1, frames):
        led = actions[:, (t - 1) * r : t * r]
        close(model.predict_logits(by_frame, tokens[:, t], led), predicted.logits[:, t - 1])
        by_frame = model.observe(by_frame, tokens[:, t : t + 1], led)


@torch.no_grad()
def test_learned_positions_begin_anew_with_the_last_frame() -> None:
    """Of a window of 4: frames 4 to 6 as in a clip that begins with frame 3, and 7 as in one that begins with 6."""
    model, (tokens, actions) = token_dynamics(**KINDS["learned"]).double(), clip(8)
    state = model.observe(model.init_state(2), tokens[:, :1], None)
    logits, _, _, _ = stream(model, state, tokens[:, 1:], actions[:, :7])
    for start in (0, 3, 6):
        part = slice(start, min(start + 4, 8))
        close(
            torch.stack(logits[start : start + 3], 1), model(tokens[:, part], actions[:, start : part.stop - 1]).logits
        )
    with pytest.raises(ValueError, match=r"a clip of 5 frames is longer .* raise dynamics\.window"):
        model(tokens[:, :5], actions[:, :5])


@pytest.mark.parametrize("kind", ["rotary", "learned"])
@torch.no_grad()
def test_no_token_depends_on_what_is_after_it_and_each_on_all_before(kind: str) -> None:
    model, (tokens, actions) = token_dynamics(**KINDS[kind]).double(), clip(4)

    def outputs(tokens: Tensor, actions: Tensor) -> Tensor:
        """What is predicted at every token and action of the sequence, but for the last token of a frame."""
        predicted = model(tokens, actions)
        rest = torch.cat((predicted.logits, torch.zeros_like(predicted.logits[:, :, :1])), dim=2).flatten(1, 2)
        return torch.cat((predicted.first_logits, torch.zeros_like(rest[:, :1]), rest), dim=1)

    base = outputs(tokens, actions)
    asked = [i for i in range(base.shape[1]) if i % M != N - 1]
    for changed in range(base.shape[1]):
        other_tokens, other_actions = tokens.clone(), actions.clone()
        if changed % M == N:
            other_actions[:, changed // M] = (other_actions[:, changed // M] + 1) % 4
        else:
            other_tokens[:, changed // M, changed % M] = (other_tokens[:, changed // M, changed % M] + 1) % 36
        differs = (outputs(other_tokens, other_actions) - base).abs().amax(dim=(0, 2)) > 1e-9
        assert [bool(differs[i]) for i in asked] == [i >= changed for i in asked]


@torch.no_grad()
def test_one_block_sees_the_frames_of_its_window_only() -> None:
    model, (tokens, actions) = token_dynamics(depth=1, window=2).double(), clip(4)
    base, other = model(tokens, actions).logits, tokens.clone()
    other[:, 0] = (other[:, 0] + 1) % 36
    differs = (model(other, actions).logits - base).abs().amax(dim=(0, 2, 3)) > 1e-9
    assert differs.tolist() == [True, False, False]


@pytest.mark.parametrize("kind", ["rotary", "learned"])
@torch.no_grad()
def test_streams_of_different_length_share_a_batch(kind: str) -> None:
    """A new stream, one that fills the window, and one beyond it: as alone."""
    model, (tokens, actions) = token_dynamics(**KINDS[kind]).double(), clip(8, batch=1)
    states = [model.observe(model.init_state(1), tokens[:, :n], actions[:, :n]) for n in (1, 4, 6)]
    led = actions[:, :1].expand(3, 1)
    together = stream(model, concatenate_states(states), tokens[:, 6:7].expand(3, 1, N), led)
    for i, state in enumerate(states):
        alone = stream(model, state, tokens[:, 6:7], actions[:, :1])
        close(together[0][0][i : i + 1], alone[0][0])
        close(select_worlds(together[3], torch.tensor([i])).cache.blocks[1].keys, alone[3].cache.blocks[1].keys)


class Reference:
    """The network in NumPy, written from its equations over the whole sequence, from its weights."""

    def __init__(self, model: AutoregressiveDynamics) -> None:
        self.w = {name: weight.detach().double().numpy() for name, weight in model.named_parameters()}
        self.model = model

    def linear(self, x: NDArray[Any], name: str) -> NDArray[Any]:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, x: NDArray[Any], name: str) -> NDArray[Any]:
        centered = x - x.mean(-1, keepdims=True)
        return (
            centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5) * self.w[f"{name}.weight"]
            + self.w[f"{name}.bias"]
        )

    def rotate(self, x: NDArray[Any], index: NDArray[Any]) -> NDArray[Any]:
        half = x.shape[-1] // 2
        turns = np.exp(1j * index[:, None] * 10_000.0 ** (-np.arange(half) / half))
        turned = (x[..., :half] + 1j * x[..., half:]) * turns
        return np.concatenate((turned.real, turned.imag), axis=-1)

    def outputs(self, tokens: NDArray[Any], actions: NDArray[Any]) -> NDArray[Any]:
        """Of one clip, tokens [t, n] and actions [t] -> [t (n + 1), d]."""
        embedded = [
            np.concatenate((self.w["embed.weight"][frame], self.w["embed_action.table.weight"][[action]]))
            for frame, action in zip(tokens, actions, strict=True)
        ]
        x = np.concatenate(embedded)
        index = np.arange(len(x))
        learned = self.model.transformer.restarts
        x = x + self.w["transformer.places"][index if learned else index % M]
        heads, window = self.model.transformer.heads, self.model.transformer.span.window
        for i in range(len(self.model.transformer.blocks)):
            name = f"transformer.blocks.{i}"
            qkv = self.linear(self.norm(x, f"{name}.attention_norm"), f"{name}.qkv")
            q, k, v = (part.reshape(len(x), heads, -1).transpose(1, 0, 2) for part in np.split(qkv, 3, axis=-1))
            if not learned:
                q, k = self.rotate(q, index), self.rotate(k, index)
            logits = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
            group = (index + 1) // M
            visible = index[:, None] >= index
            if not learned:
                visible &= group[:, None] - group < window
            weights = np.where(visible, np.exp(logits), 0.0)
            mixed = (weights / weights.sum(-1, keepdims=True)) @ v
            x = x + self.linear(mixed.transpose(1, 0, 2).reshape(len(x), -1), f"{name}.out")
            hidden = self.linear(self.norm(x, f"{name}.mlp_norm"), f"{name}.mlp.0")
            x = x + self.linear(hidden * (1 + erf(hidden / np.sqrt(2))) / 2, f"{name}.mlp.2")
        return self.norm(x, "transformer.norm")

    def loss(self, tokens: NDArray[Any], actions: NDArray[Any], first_frame: bool) -> float:
        entropies = []
        for clip_tokens, clip_actions in zip(tokens, actions, strict=True):
            x = self.outputs(clip_tokens, clip_actions)
            for i in range(0 if first_frame else N, len(x) - 1):
                frame, place = divmod(i + 1, M)
                if place == N:
                    continue  # an action follows
                scores = self.linear(np.maximum(self.linear(x[i], "head.0"), 0), "head.2")
                if "copy_weight.weight" in self.w and frame:
                    scores[clip_tokens[frame - 1, place]] += self.linear(x[i], "copy_weight").item()
                entropies.append(np.log(np.exp(scores).sum()) - scores[clip_tokens[frame, place]])
        return float(np.mean(entropies))


@pytest.mark.parametrize("kind", ["rotary", "learned"])
@pytest.mark.parametrize("first_frame", [False, True])
def test_the_loss_is_that_of_an_independent_implementation(kind: str, first_frame: bool) -> None:
    model = token_dynamics(**{**KINDS[kind], "copy_previous": True}).double()
    tokens, actions = clip(4 if kind == "learned" else 6)
    expected = Reference(model).loss(tokens.numpy(), actions.numpy(), first_frame)
    assert float(model.loss(tokens, actions, first_frame=first_frame).loss.detach()) == pytest.approx(
        expected, abs=1e-10
    )


def test_dropout_and_corruption_are_of_the_training_only_and_recomputation_draws_the_same() -> None:
    model, (tokens, actions) = token_dynamics(dropout=0.3, context_corruption=0.5).double(), clip(4)

    def gradient(train: bool) -> Tensor:
        model.train(train).zero_grad()
        with clip_draws(torch.tensor([5, 6])):
            loss = model.loss(tokens, actions).loss
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.transformer.parameters() if p.grad is not None])

    kept, still = gradient(True), gradient(False)
    assert torch.equal(kept, gradient(True)) and not torch.allclose(kept, still)
    model.eval()
    plain = token_dynamics().double()
    assert torch.equal(model.loss(tokens, actions).loss, plain.loss(tokens, actions).loss)
    recompute_blocks(model, "full")
    close(gradient(True), kept)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_actions": 0}, "set num_actions, action_dims or action_parts"),
        ({"codebook_levels": [4, 3]}, "make 12 codes, not codebook_size=36"),
        ({"positions": "none"}, "positions='none' must be 'rotary' or 'learned'"),
        ({"window": 1}, "window=1 must be 2 or more"),
        ({"heads": 3}, "heads=3 must divide width=16"),
        ({"dropout": 1.5}, r"dropout must lie in 0\.\.1, got 1\.5"),
    ],
)
def test_settings_that_do_not_fit_are_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoregressiveDynamics(**{**SETTINGS, **changes})


def test_a_wrong_number_of_actions_is_an_error() -> None:
    tokens, actions = clip(4)
    with pytest.raises(ValueError, match="4 frames have 3 or 4 actions, got 2"):
        token_dynamics()(tokens, actions[:, :2])
