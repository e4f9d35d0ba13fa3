"""Measures of long play, motion and hallucination: right values on made-up scenes whose motion is known."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from factories import composite_space
from torch import Tensor

from vwm.core.feature_extractor import FeatureExtractor
from vwm.core.simulator import Simulator, SimulatorSpec, State, StepOutput
from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.eval.action_following import measure_action_following
from vwm.eval.drift import Drift, SlicedFrechet, action_patterns, measure_drift
from vwm.eval.drift_features import ClipFeatures, model_features, tokenizer_features
from vwm.eval.hallucination import measure_hallucination
from vwm.eval.revisit import measure_revisit, opposite_actions

SIDE = 32
TEXTURE = torch.randint(0, 256, (SIDE, 4 * SIDE, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
NAMES = ("stay", "left", "right")


class Position(NamedTuple):
    latent: Tensor  # int64 [b, 1], columns moved
    steps: Tensor  # int64 [b]


class ScrollingWorld(Simulator):
    """Scrolls a texture by 2 pixels a step; ``darkening`` levels are subtracted for every step."""

    def __init__(self, darkening: int = 0) -> None:
        self.spec = SimulatorSpec(
            ObservationSpace.image(SIDE, SIDE), ActionSpace("discrete", 3, NAMES), fps=4, context_frames=1
        )
        self.darkening = darkening

    def reset(
        self, context: Tensor, seed: int | Tensor = 0, context_actions: Tensor | None = None
    ) -> tuple[State, Tensor]:
        offsets = torch.tensor([find_offset(clip[-1]) for clip in context])
        return Position(offsets[:, None], torch.zeros(len(context), dtype=torch.int64)), context[:, -1]

    def step(self, state: State, action: Tensor, decode: bool = True) -> tuple[State, StepOutput]:
        move = torch.tensor([0, -2, 2])[action]
        state = Position(state.latent + move[:, None], state.steps + 1)
        frames = torch.stack([draw(int(offset)) for offset in state.latent[:, 0]])
        frames = (frames.int() - self.darkening * state.steps[:, None, None, None]).clamp(0, 255).to(torch.uint8)
        return state, StepOutput(frames, state.latent, torch.zeros(len(action)), torch.zeros(len(action)).bool())

    def encode(self, frames: Tensor) -> Tensor:
        return frames.float().unflatten(2, (8, 4)).unflatten(4, (8, 4)).mean(dim=(3, 5))

    def reconstruct(self, frames: Tensor, state: State | None = None) -> tuple[State, Tensor]:
        return None, frames // 2 * 2


def draw(offset: int) -> Tensor:
    return TEXTURE.roll(-offset, dims=1)[:, :SIDE]


def find_offset(frame: Tensor) -> int:
    return next(i for i in range(4 * SIDE) if torch.equal(draw(i), frame))


def clips(count: int = 24, frames: int = 9) -> tuple[Tensor, Tensor]:
    """Recorded clips and their actions."""
    generator = torch.Generator().manual_seed(1)
    actions = torch.randint(0, 3, (count, frames - 1), generator=generator)
    start = torch.randint(0, SIDE, (count, 1), generator=generator) * 4
    offsets = torch.cat((start, start + torch.tensor([0, -2, 2])[actions].cumsum(dim=1)), dim=1)
    return torch.stack([torch.stack([draw(int(o)) for o in row]) for row in offsets]), actions


def test_sliced_frechet_distance_of_known_gaussians() -> None:
    """A shift by 3 standard deviations of one of f dimensions is 3 / sqrt(f); twice the spread is 1."""
    reference = torch.randn(4000, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    distance = SlicedFrechet(reference)
    assert distance(reference) == 0
    shifted = reference.clone()
    shifted[:, 2] += 3
    assert distance(shifted) == pytest.approx(3 / 6**0.5, rel=0.1)
    assert distance(reference.mean(dim=0) + 2 * (reference - reference.mean(dim=0))) == pytest.approx(1, rel=0.05)
    assert distance(reference[:1]) > 0.9  # a single frame has no spread


def test_patterns_hold_every_action_and_alternate() -> None:
    held = action_patterns(ActionSpace("discrete", 3, NAMES), steps=6, period=2)
    assert {name: pattern.tolist() for name, pattern in held.items()} == {
        "stay": [0] * 6,
        "left": [1] * 6,
        "right": [2] * 6,
        "in turn": [1, 1, 2, 2, 1, 1],
    }
    car = action_patterns(ActionSpace("continuous", 2, ("steer", "gas"), rest=(0.0, -1.0)), steps=2, period=1)
    assert {name: pattern[0].tolist() for name, pattern in car.items()} == {
        "rest": [0, -1],
        "steer -1": [-1, -1],
        "steer +1": [1, -1],
        "gas +1": [0, 1],
        "in turn": [1, -1],
    }
    assert len(action_patterns(ActionSpace("discrete", 40), steps=1, period=1)) == 6
    parts = action_patterns(composite_space(), steps=1, period=1)
    assert list(parts) == ["rest", "color green", "color blue", "keys.left", "keys.right", "in turn"]
    assert parts["keys.right"].tolist() == [[0, 0, 1, 0, 0, 0, 0]] and parts["color blue"].tolist() == [[2] + [0] * 6]


def unroll(world: ScrollingWorld, features: ClipFeatures | None) -> Drift:
    frames, actions = clips()
    reconstructed = world.reconstruct(frames)[1]
    assert features is not None
    return measure_drift(
        world, frames, reconstructed, actions, features=features, context=1, seconds=3, starts=6, batch_size=8
    )


class MeanColor(FeatureExtractor):
    """Of clips of two frames of 8x8 pixels: the color of each of 4 x 4 patches, as tokens."""

    frames = 2
    image_size = (8, 8)

    def tokens(self, video: Tensor) -> Tensor:
        return F.avg_pool2d(video.flatten(0, 1), 4).unflatten(0, video.shape[:2]).permute(0, 1, 3, 4, 2).flatten(1, 3)


def test_drift_in_the_features_of_another_model_is_of_short_clips_at_its_size() -> None:
    features = model_features(MeanColor({}), batch_size=5, device=torch.device("cpu"))
    frames, _ = clips()
    found = features(frames[:3, :5])  # two pairs of each clip; the fifth frame is left out
    assert found.shape == (6, 3) and found.dtype == torch.float64
    level = frames[1, 2:4].double().mean(dim=(0, 1, 2)) / 127.5 - 1
    assert torch.allclose(found[3], level, atol=0.01)
    assert torch.equal(features(frames[:1, :1]), features(frames[:1, :1].expand(-1, 2, -1, -1, -1)))
    perfect, dark = (unroll(ScrollingWorld(d), features) for d in (0, 20))
    assert dark.numbers["mean_by_second"][-1] > 3 * perfect.numbers["mean_by_second"][-1]


def test_drift_is_the_floor_for_a_perfect_world_and_grows_for_one_that_darkens() -> None:
    frames, _ = clips()
    perfect, dark = (unroll(ScrollingWorld(d), tokenizer_features(ScrollingWorld(d), 8)) for d in (0, 20))
    assert dark.numbers["mean_by_second"] == sorted(dark.numbers["mean_by_second"])
    assert dark.numbers["mean_by_second"][-1] > 3 * perfect.numbers["mean_by_second"][-1]
    assert dark.numbers["above_floor"][-1] == pytest.approx(dark.numbers["mean_by_second"][-1] - dark.numbers["floor"])
    assert perfect.numbers["floor"] < perfect.numbers["mean_image"]
    assert dark.frames["left"].shape == (6, 3, SIDE, SIDE, 3)
    state, _ = ScrollingWorld().reset(frames[:1, :1])
    for _ in range(4):  # the last of the 4 frames of the first second
        state, out = ScrollingWorld().step(state, torch.tensor([1]))
    assert torch.equal(perfect.frames["left"][0, 0], out.frame[0])


def test_action_following_tells_right_from_ignored_and_inverted_actions() -> None:
    frames, actions = clips(count=60)
    still = frames[:, :1].expand(-1, 4, -1, -1, -1)
    mirrored, _ = zip(*[roll_out(frames[:, 0], a) for a in (torch.tensor([0, 2, 1])[actions],)], strict=True)
    own = measure_action_following(frames, actions, frames[:, 1:5], mirrored[0][:, :4], 1, 3)
    assert own["flow"]["correlation"] == pytest.approx(1)
    assert own["flow"]["correlation_random_actions"] < -0.9
    assert own["probe"]["real"] == own["probe"]["predicted"] > 0.9
    assert own["probe"]["predicted_random_actions"] < 0.5 and own["probe"]["constant"] < 0.5
    ignored = measure_action_following(frames, actions, still, still, 1, 3)
    assert ignored["flow"]["correlation"] == 0 and ignored["probe"]["predicted"] < 0.5
    assert measure_action_following(still, actions[:, :3], still[:, 1:], still[:, 1:], 1, 3)["flow"] is None


def roll_out(first: Tensor, actions: Tensor) -> tuple[Tensor, State]:
    world, shown = ScrollingWorld(), []
    state, _ = world.reset(first[:, None])
    for action in actions.unbind(1):
        state, out = world.step(state, action)
        shown.append(out.frame)
    return torch.stack(shown, dim=1), state


def test_signs_of_hallucination_rank_the_errors() -> None:
    """In a world that darkens, the error grows with the horizon, which seeds do not show."""
    frames, actions = clips()
    world = ScrollingWorld(darkening=9)
    state, shown = world.reset(frames[:, :1])[0], []
    for action in actions.unbind(1):
        state, out = world.step(state, action)
        shown.append(out.frame)
    signs = measure_hallucination(world, frames, actions, torch.stack(shown, dim=1), 1, 0, 8)
    assert signs["horizon"]["all"] > 0.95 and signs["horizon"]["last"] is None
    assert signs["seed_variance"] == {"all": None, "last": None}  # all rollouts are equal
    assert signs["round_trip"]["all"] < -0.5  # dark frames round well: a sign that fails here is not hidden


def test_a_world_with_memory_returns_to_where_it_was() -> None:
    frames, actions = clips()
    result = measure_revisit(ScrollingWorld(), frames, actions, 1, 1.0, 4, 4)
    assert result is not None and list(result) == ["left, then right"]
    assert result["left, then right"]["returned"] == float("inf") > result["left, then right"]["turning_point"]
    assert opposite_actions(ActionSpace("discrete", 2, ("fire", "up"))) == {}
    learned = opposite_actions(ActionSpace("discrete", 3, ("left", "none", "right"), latent=True))
    assert learned == {"left, then right": (torch.tensor(0), torch.tensor(2))}  # named by what they do
    one, other = opposite_actions(ActionSpace("continuous", 2, ("steer", "gas"), rest=(0, -1)))["steer -1, then +1"]
    assert one.tolist() == [-1, -1] and other.tolist() == [1, -1]
    pairs = opposite_actions(composite_space())
    assert list(pairs) == [
        "keys.left, then keys.right",
        "keys.up, then keys.down",
        "mouse.x -1, then mouse.x +1",
        "mouse.y -1, then mouse.y +1",
    ]
    assert [row.tolist() for row in pairs["mouse.y -1, then mouse.y +1"]] == [[0] * 6 + [-1], [0] * 6 + [1]]
