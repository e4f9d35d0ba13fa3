"""Contract 3 of the action-conditioned predictor, what may know of what, and input that does not fit."""

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
}


@pytest.fixture(params=list(KINDS))
def network(request) -> ActionConditionedPredictor:
    return action_predictor(**KINDS[request.param]).double().eval()


def clips(
    network: ActionConditionedPredictor, b: int = 2, t: int = FRAMES, seed: int = 0
) -> dict[str, torch.Tensor | None]:
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    discrete = torch.randint(0, 4, (b, t), generator=g)
    return {
        "latents": draw(b, t, network.tokens, network.latent_width),
        "actions": draw(b, t, network.embed_action.dims) if network.embed_action.dims else discrete,
        "proprioception": draw(b, t, network.proprioception_dims) if network.proprioception_dims else None,
    }


def cut(said: dict[str, torch.Tensor | None], frames: slice) -> dict[str, torch.Tensor | None]:
    return {name: None if x is None else x[:, frames] for name, x in said.items()}


@pytest.mark.parametrize("chunks", [[1] * FRAMES, [FRAMES], [2, 5, 2], [7, 1, 1]])
@torch.no_grad()
def test_streaming_is_the_parallel_pass_for_every_chunking_also_past_the_window(network, chunks):
    said = clips(network)
    whole, state, parts, start = network(**said), network.init_state(2), [], 0
    for frames in chunks:
        state, out = network.step(state, **cut(said, slice(start, start + frames)))
        parts.append(out)
        start += frames
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-10)


@torch.no_grad()
def test_what_happens_in_a_frame_touches_no_earlier_prediction_and_touches_the_next(network):
    said = clips(network)
    there = [what for what, values in said.items() if values is not None]
    for what, frame in itertools.product(there, (0, 4, FRAMES - 1)):
        other = {**said, what: said[what].clone()}
        other[what][:, frame] = (other[what][:, frame] + 1) % 4 if what == "actions" else -other[what][:, frame]
        moved = (network(**said) - network(**other)).abs().amax(dim=(0, 2, 3)) > 1e-12
        assert not moved[:frame].any() and moved[frame]


@torch.no_grad()
def test_the_window_of_a_single_layer_is_what_it_says():
    network = action_predictor(depth=1, window=3).double()
    said = clips(network)
    other = {**said, "latents": said["latents"].clone()}
    other["latents"][:, 2] += 1
    moved = (network(**said) - network(**other)).abs().amax(dim=(0, 2, 3)) > 1e-12
    assert moved.nonzero().flatten().tolist() == [2, 3, 4]


@torch.no_grad()
def test_clips_of_a_batch_do_not_touch_each_other(network):
    said = clips(network, b=3)
    alone = {name: None if x is None else x[1:2] for name, x in said.items()}
    torch.testing.assert_close(network(**said)[1:2], network(**alone), rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_given_state_does_not_change(network):
    said = clips(network)
    state, _ = network.step(network.init_state(2), **cut(said, slice(0, 5)))
    first, second = (network.step(state, **cut(said, slice(5, 6)))[1] for _ in range(2))
    assert torch.equal(first, second)


def test_saved_is_loaded(network, tmp_path):
    network = network.float()
    save_component(network, tmp_path / "dynamics")
    again = load_component(tmp_path / "dynamics")
    assert type(again) is ActionConditionedPredictor
    for (name, a), (other, b) in zip(network.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other and torch.equal(a, b)
    said = clips(network := network.double())
    assert torch.equal(network(**said), again.double()(**said))


def test_a_residual_predictor_starts_as_the_identity():
    torch.manual_seed(0)
    network = ActionConditionedPredictor((2, 2), 8, num_actions=4, residual=True, width=16, depth=2, heads=2)
    said = clips(network.double())
    assert torch.equal(network(**said), said["latents"])


@torch.no_grad()
def test_predictions_are_normed_as_the_latents_they_stand_for():
    out = action_predictor(normalize_output=True, residual=True).double()
    said = out(**clips(out))
    torch.testing.assert_close(said.mean(-1), torch.zeros_like(said[..., 0]), rtol=0, atol=1e-10)
    torch.testing.assert_close(said.var(-1, unbiased=False), torch.ones_like(said[..., 0]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("action_conditioning", ["token", "modulation"])
@torch.no_grad()
def test_what_is_hidden_leaves_no_trace(action_conditioning):
    network = action_predictor(
        allow_unknown_actions=True, proprioception_dims=3, action_conditioning=action_conditioning
    ).double()
    said, other = clips(network), clips(network, seed=1)
    known = torch.arange(FRAMES).expand(2, -1) % 3 > 0
    felt = torch.arange(FRAMES).expand(2, -1) % 4 > 0
    changed = {
        **said,
        "actions": torch.where(known, said["actions"], other["actions"]),
        "proprioception": torch.where(felt[..., None], said["proprioception"], other["proprioception"]),
    }
    hidden = {"known": known, "proprioception_known": felt}
    assert torch.equal(network(**said, **hidden), network(**changed, **hidden))
    assert not torch.equal(network(**said), network(**changed))
    nothing = torch.zeros(2, FRAMES, dtype=torch.bool)
    torch.testing.assert_close(
        network(said["latents"], None), network(**said, known=nothing, proprioception_known=nothing), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_actions": 0}, "set dynamics.num_actions or action_dims"),
        ({"heads": 3}, "heads=3 must divide width=16"),
        ({"window": 0}, "window must be at least 1"),
    ],
)
def test_rejects_invalid_networks(changes, message):
    with pytest.raises(ValueError, match=message):
        action_predictor(**changes)


def test_rejects_input_that_does_not_fit():
    network = action_predictor(proprioception_dims=3).double()
    said = clips(network)
    for changes, message in (
        ({"latents": said["latents"][..., :5]}, r"latents must be \[b, t, 4, 8\], got \[2, 9, 4, 5\]"),
        ({"latents": said["latents"][:, :, :1]}, r"latents must be \[b, t, 4, 8\]"),
        ({"actions": torch.zeros(2, FRAMES, 2)}, r"integers \[b, t\], got torch.float32 \[2, 9, 2\]"),
        ({"actions": said["actions"][:, :4]}, r"actions are \[b, t\] = \[2, 4\], but latents are \[2, 9\]"),
        ({"actions": None}, "needs all actions: .*set dynamics.allow_unknown_actions"),
        ({"known": torch.ones(2, FRAMES, dtype=torch.bool)}, "set dynamics.allow_unknown_actions"),
        ({"proprioception": said["proprioception"][..., :2]}, r"proprioception must be \[2, 9, 3\], got \[2, 9, 2\]"),
    ):
        with pytest.raises(ValueError, match=message):
            network(**{**said, **changes})
