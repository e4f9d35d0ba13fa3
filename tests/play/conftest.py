"""Small worlds with known dynamics, used to test the player."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import factories
import pytest
import torch
from torch import Tensor

from vwm.core.simulator import Simulator, SimulatorSpec, StepOutput
from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.models.genie.simulator import GenieSimulator

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
    "--enable-unsafe-webgpu",
    "--use-webgpu-adapter=swiftshader",  # on the processor
]
SIZE = 32
SQUARE = 4
MOVES = {
    "LEFT": (0, -1), "RIGHT": (0, 1), "UP": (-1, 0), "DOWN": (1, 0),
    "LEFT+UP": (-1, -1), "RIGHT+UP": (-1, 1), "LEFT+DOWN": (1, -1), "RIGHT+DOWN": (1, 1),
    "NOOP": (0, 0), "JUMP": (-SQUARE, 0),
}  # fmt: skip


def square_frame(color: tuple[int, int, int], row: int = 14, column: int = 14) -> Tensor:
    """Draw a frame with the square at a position on a plain background."""
    frame = torch.tensor(color, dtype=torch.uint8).expand(SIZE, SIZE, 3).clone()
    frame[row : row + SQUARE, column : column + SQUARE] = 255
    return frame


class SquareWorld(Simulator):
    """A white square that moves over the background of the context frame and stops at the walls.

    The pixel in the upper left corner is noise that depends on the seed and the step only. Reaching the right wall
    has a reward of 1 and terminates.

    Args:
        kind: ``"discrete"`` (the eight directions, NOOP and JUMP) or ``"continuous"`` (two numbers).
        starts: number of starting contexts, each with a different background.
    """

    def __init__(self, kind: str = "discrete", starts: int = 3) -> None:
        names = tuple(MOVES) if kind == "discrete" else ("vertical", "horizontal")
        self.spec = SimulatorSpec(
            ObservationSpace.image(SIZE, SIZE),
            ActionSpace(kind, len(names), names),
            fps=20.0,
            context_frames=2,
            title="square world",
        )
        backgrounds = [(20 + 40 * index, 30, 90 - 20 * index) for index in range(starts)]
        self.starts = torch.stack([square_frame(g).expand(2, -1, -1, -1) for g in backgrounds]) if starts else None
        self.broken = False

    def reset(
        self, context: Tensor, seed: int | Tensor = 0, context_actions: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        self.check_context(context)
        batch = len(context)
        state = {
            "background": context[:, -1],
            "position": torch.full((batch, 2), 14.0),
            "count": torch.zeros(batch, dtype=torch.int64),
            "seed": torch.as_tensor(seed).expand(batch),
        }
        return state, context[:, -1]

    def step(
        self, state: dict[str, Tensor], action: Tensor, decode: bool = True
    ) -> tuple[dict[str, Tensor], StepOutput]:
        if self.broken:
            raise RuntimeError("the model is out of memory")
        self.check_action(action, len(state["position"]))
        moves = torch.tensor(list(MOVES.values()), dtype=torch.float32)
        move = moves[action] if self.spec.actions.kind == "discrete" else action
        position = (state["position"] + move).clamp(0, SIZE - SQUARE)
        new = {**state, "position": position, "count": state["count"] + 1}
        reached = position[:, 1] >= SIZE - SQUARE
        return new, StepOutput(self._draw(new) if decode else None, position, reached.float(), reached)

    def _draw(self, state: dict[str, Tensor]) -> Tensor:
        frames = state["background"].clone()
        for frame, position in zip(frames, state["position"].round().long().tolist(), strict=True):
            frame[14 : 14 + SQUARE, 14 : 14 + SQUARE] = frame[-1, -1]
            frame[position[0] : position[0] + SQUARE, position[1] : position[1] + SQUARE] = 255
        noise = (state["seed"] * 7919 + state["count"] * 104729) % 256
        frames[:, 0, 0] = noise[:, None].to(torch.uint8)
        return frames


class FastSquareWorld(SquareWorld):
    """The square world with k frames per step, each with its own action or all with one."""

    def __init__(self, frames_per_step: int = 4) -> None:
        super().__init__()
        self.spec = replace(self.spec, frames_per_step=frames_per_step)

    def step(
        self, state: dict[str, Tensor], action: Tensor, decode: bool = True
    ) -> tuple[dict[str, Tensor], StepOutput]:
        frames, reward = [], torch.zeros(len(action))
        for taken in self.actions_per_frame(action).unbind(1):
            state, output = super().step(state, taken, decode)
            frames.append(output.frame)
            reward += output.reward
        return state, output._replace(frame=torch.stack(frames, dim=1) if decode else None, reward=reward)


class CarWorld(GenieSimulator):
    """A Genie world with random weights and continuous actions that records the actions it receives.

    Args:
        rest: names and rest values of the action dimensions.
    """

    def __init__(self, **rest: float) -> None:
        rest = rest or {"steer": 0.0, "gas": -1.0, "brake": -1.0}
        actions = ActionSpace("continuous", len(rest), tuple(rest), rest=tuple(rest.values()))
        world = factories.genie(labeled=True)
        dynamics = factories.dynamics(num_actions=len(rest), continuous=True)
        super().__init__(world.tokenizer, dynamics, None, actions, sampling=world.sampling, starts=world.starts)
        self.received: list[list[float]] = []

    def step(self, state: Any, action: Tensor, decode: bool = True) -> Any:
        self.received.append([round(value, 4) for value in action[0].tolist()])
        return super().step(state, action, decode)


class PartsWorld(SquareWorld):
    """A square that keys move together, a pointer moves too, and a choice colors; it records the actions it receives.

    Args:
        space: the actions: those of ``composite_space``, and perhaps axes.
    """

    def __init__(self, space: ActionSpace | None = None) -> None:
        super().__init__()
        self.spec = replace(self.spec, actions=space or factories.composite_space())
        self.received: list[list[float]] = []

    def step(
        self, state: dict[str, Tensor], action: Tensor, decode: bool = True
    ) -> tuple[dict[str, Tensor], StepOutput]:
        self.check_action(action, len(state["position"]))
        self.received += [[round(value, 4) for value in row] for row in action.tolist()]
        left, right, up, down, x, y = action[:, 1:7].unbind(1)
        move = torch.stack((down - up + SQUARE * y, right - left + SQUARE * x), dim=1)
        position = (state["position"] + move).clamp(0, SIZE - SQUARE)
        new = {**state, "position": position, "count": state["count"] + 1}
        ended = torch.zeros(len(position), dtype=torch.bool)
        return new, StepOutput(self._draw(new) if decode else None, position, ended.float(), ended)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; without it, or without playwright, the test is skipped."""
    playwright_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def make_parts() -> Callable[..., PartsWorld]:
    """The class ``PartsWorld``, to build variants of it."""
    return PartsWorld


@pytest.fixture
def make_car() -> Callable[..., CarWorld]:
    """The class ``CarWorld``, to build variants of it."""
    return CarWorld


@pytest.fixture
def car() -> CarWorld:
    """A world with the action dimensions steer, gas and brake."""
    return CarWorld()


@pytest.fixture
def make_world() -> Callable[..., SquareWorld]:
    """The class ``SquareWorld``, to build variants of it."""
    return SquareWorld


@pytest.fixture
def fast_world() -> FastSquareWorld:
    """The discrete world with four frames per step."""
    return FastSquareWorld()


@pytest.fixture
def world() -> Iterator[SquareWorld]:
    """The discrete world with three starts."""
    yield SquareWorld()
