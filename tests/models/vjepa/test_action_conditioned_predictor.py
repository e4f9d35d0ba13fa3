"""The action-conditioned predictor: streaming equals parallel, causality, and invalid input."""

from __future__ import annotations

import itertools

import pytest
import torch
from factories import action_predictor

from vwm.core.components import load_component, save_component
from vwm.models.vjepa.action_conditioned_predictor import ActionConditionedPredictor

FRAMES = 9  # more than twice the window of 4
KINDS = {
    "tokens": {},
    "one-token-a-frame": {"grid": (1, 1), "action_conditioning": "modulation", "residual": True},
    "state": {"proprioception_dims": 3, "action_dims": 2, "normalize_output": True},
    "modulated-state": {"proprioception_dims": 3, "action_conditioning": "modulation"},
    "factored": {"attention": "factored", "kv_heads": 1},
    "frame-by-frame": {"window": 1, "residual": True},
    "vit": {"layers": "vit", "tiled_rope": True, "width": 28, "proprioception_dims": 3, "action_dims": 2},
}


@pytest.fixture(params=list(KINDS))
def network(request) -> ActionConditionedPredictor:
    return action_predictor(**KINDS[request.param]).double().eval()


def make_inputs(
    network: ActionConditionedPredictor, b: int = 2, t: int = FRAMES, seed: int = 0
) -> dict[str, torch.Tensor | None]:
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    discrete, space = torch.randint(0, 4, (b, t), generator=g), network.embed_action.space
    return {
        "latents": draw(b, t, network.tokens, network.latent_width),
        "actions": discrete if space.is_discrete else space.from_flat(draw(b, t, space.size).clamp(-1, 1)),
        "proprioception": draw(b, t, network.proprioception_dims) if network.proprioception_dims else None,
    }


def slice_frames(inputs: dict[str, torch.Tensor | None], frames: slice) -> dict[str, torch.Tensor | None]:
    return {name: None if x is None else x[:, frames] for name, x in inputs.items()}


@pytest.mark.parametrize("chunks", [[1] * FRAMES, [FRAMES], [2, 5, 2], [7, 1, 1]])
@torch.no_grad()
def test_streaming_equals_parallel_past_the_window_for_every_chunking(network, chunks):
    inputs = make_inputs(network)
    expected, state, parts, start = network(**inputs), network.init_state(2), [], 0
    for frames in chunks:
        state, output = network.step(state, **slice_frames(inputs, slice(start, start + frames)))
        parts.append(output)
        start += frames
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_a_frame_changes_the_next_prediction_and_no_earlier_one(network):
    inputs = make_inputs(network)
    names = [name for name, values in inputs.items() if values is not None]
    for name, frame in itertools.product(names, (0, 4, FRAMES - 1)):
        other = {**inputs, name: inputs[name].clone()}
        other[name][:, frame] = (other[name][:, frame] + 1) % 4 if name == "actions" else -other[name][:, frame]
        is_changed = (network(**inputs) - network(**other)).abs().amax(dim=(0, 2, 3)) > 1e-12
        assert not is_changed[:frame].any() and is_changed[frame]


@torch.no_grad()
def test_a_single_layer_attends_to_exactly_its_window():
    network = action_predictor(depth=1, window=3).double()
    inputs = make_inputs(network)
    other = {**inputs, "latents": inputs["latents"].clone()}
    other["latents"][:, 2] += 1
    is_changed = (network(**inputs) - network(**other)).abs().amax(dim=(0, 2, 3)) > 1e-12
    assert is_changed.nonzero().flatten().tolist() == [2, 3, 4]


@torch.no_grad()
def test_clips_of_a_batch_are_independent(network):
    inputs = make_inputs(network, b=3)
    alone = {name: None if x is None else x[1:2] for name, x in inputs.items()}
    torch.testing.assert_close(network(**inputs)[1:2], network(**alone), rtol=0, atol=1e-12)


@torch.no_grad()
def test_stepping_does_not_change_the_given_state(network):
    inputs = make_inputs(network)
    state, _ = network.step(network.init_state(2), **slice_frames(inputs, slice(0, 5)))
    first, second = (network.step(state, **slice_frames(inputs, slice(5, 6)))[1] for _ in range(2))
    assert torch.equal(first, second)


def test_a_saved_predictor_loads_equal(network, tmp_path):
    network = network.float()
    save_component(network, tmp_path / "dynamics")
    loaded = load_component(tmp_path / "dynamics")
    assert type(loaded) is ActionConditionedPredictor
    for (name, a), (other, b) in zip(network.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert name == other and torch.equal(a, b)
    inputs = make_inputs(network := network.double())
    assert torch.equal(network(**inputs), loaded.double()(**inputs))


def test_a_residual_predictor_starts_as_the_identity():
    torch.manual_seed(0)
    network = ActionConditionedPredictor((2, 2), 8, num_actions=4, residual=True, width=16, depth=2, heads=2)
    inputs = make_inputs(network.double())
    assert torch.equal(network(**inputs), inputs["latents"])


@torch.no_grad()
def test_normalized_predictions_have_zero_mean_and_unit_variance():
    network = action_predictor(normalize_output=True, residual=True).double()
    predicted = network(**make_inputs(network))
    torch.testing.assert_close(predicted.mean(-1), torch.zeros_like(predicted[..., 0]), rtol=0, atol=1e-10)
    torch.testing.assert_close(predicted.var(-1, unbiased=False), torch.ones_like(predicted[..., 0]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("action_conditioning", ["token", "modulation"])
@torch.no_grad()
def test_unknown_actions_and_proprioception_have_no_effect(action_conditioning):
    network = action_predictor(
        allow_unknown_actions=True, proprioception_dims=3, action_conditioning=action_conditioning
    ).double()
    inputs, other = make_inputs(network), make_inputs(network, seed=1)
    known = torch.arange(FRAMES).expand(2, -1) % 3 > 0
    proprioception_known = torch.arange(FRAMES).expand(2, -1) % 4 > 0
    changed = {
        **inputs,
        "actions": torch.where(known, inputs["actions"], other["actions"]),
        "proprioception": torch.where(
            proprioception_known[..., None], inputs["proprioception"], other["proprioception"]
        ),
    }
    hidden = {"known": known, "proprioception_known": proprioception_known}
    assert torch.equal(network(**inputs, **hidden), network(**changed, **hidden))
    assert not torch.equal(network(**inputs), network(**changed))
    none_known = torch.zeros(2, FRAMES, dtype=torch.bool)
    torch.testing.assert_close(
        network(inputs["latents"], None),
        network(**inputs, known=none_known, proprioception_known=none_known),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_actions": 0}, "set dynamics.num_actions, action_dims or action_parts"),
        ({"heads": 3}, "heads=3 must divide width=16"),
        ({"window": 0}, "window must be 1 or more"),
        ({"layers": "vit", "kv_heads": 1}, "kv_heads=1: with dynamics.layers=vit it must be None"),
    ],
)
def test_rejects_invalid_networks(changes, message):
    with pytest.raises(ValueError, match=message):
        action_predictor(**changes)


def test_rejects_input_that_does_not_fit():
    network = action_predictor(proprioception_dims=3).double()
    inputs = make_inputs(network)
    for changes, message in (
        ({"latents": inputs["latents"][..., :5]}, r"latents must be \[b, t, 4, 8\], got \[2, 9, 4, 5\]"),
        ({"latents": inputs["latents"][:, :, :1]}, r"latents must be \[b, t, 4, 8\]"),
        ({"actions": torch.zeros(2, FRAMES, 2)}, r"integers \[b, t\], got torch.float32 \[2, 9, 2\]"),
        ({"actions": inputs["actions"][:, :4]}, r"actions are \[b, t\] = \[2, 4\], but latents are \[2, 9\]"),
        ({"actions": None}, "needs all actions: .*set dynamics.allow_unknown_actions"),
        ({"known": torch.ones(2, FRAMES, dtype=torch.bool)}, "set dynamics.allow_unknown_actions"),
        ({"proprioception": inputs["proprioception"][..., :2]}, r"proprioception must be \[2, 9, 3\], got \[2, 9, 2\]"),
    ):
        with pytest.raises(ValueError, match=message):
            network(**{**inputs, **changes})
