"""Accelerated = plain: whatever a caller does with states, captured steps give the frames of plain ones.

The backend here records operations on a CPU (tests/recording_backend.py); where there is a GPU, CUDA graphs as well.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from factories import diffusion_world
from recording_backend import RecordingBackend
from simulator_kinds import SIMULATORS, actions, contexts
from torch.utils._pytree import tree_leaves

from vwm.core.capabilities import ObservesFrames
from vwm.core.captured_steps import CALLS_BEFORE_CAPTURE, MAX_CAPTURED, CaptureBackend, CapturedSteps, CUDAGraphs
from vwm.core.network_simulator import NetworkSimulator
from vwm.core.states import concatenate_states, select_worlds, state_batch_size

NETWORK_SIMULATORS = {name: make for name, make in SIMULATORS.items() if isinstance(make(), NetworkSimulator)}
BACKENDS = [RecordingBackend] + ([CUDAGraphs] if torch.cuda.is_available() else [])


def equal(ours: Any, theirs: Any) -> bool:
    """Whether two nested values have equal tensors; those of a GPU are allowed its rounding."""
    pairs = list(zip(tree_leaves(ours), tree_leaves(theirs), strict=True))
    return all(a is b is None or torch.equal(a, b) for a, b in pairs)


class Caller:
    """Does at random what callers do, with an accelerated and a plain simulator, and compares everything it keeps."""

    def __init__(self, plain: NetworkSimulator, backend: CaptureBackend, seed: int) -> None:
        self.plain = plain
        self.fast = plain.accelerate(backend)
        self.random = random.Random(seed)
        self.can_observe = "VectorQuantize" not in repr(plain.networks())  # see below
        self.kept = [(self.fast.reset(contexts(plain, 2), seed=seed)[0], plain.reset(contexts(plain, 2), seed=seed)[0])]
        self.views: list[tuple[torch.Tensor, torch.Tensor]] = []

    def step(self) -> None:
        """Go on from any state, mostly the newest, which is kept (a branch, an undo) or dropped."""
        i = -1 if self.random.random() < 0.7 else self.random.randrange(len(self.kept))
        fast, plain = self.kept[i] if self.random.random() < 0.3 else self.kept.pop(i)
        decode = self.random.random() < 0.8
        action = actions(self.plain, state_batch_size(plain), self.random.randrange(10))
        after, shown = self.fast.step(fast, action, decode)
        del fast
        plain_after, plain_shown = self.plain.step(plain, action, decode)
        assert equal(shown, plain_shown)
        self.kept.append((after, plain_after))

    def observe(self) -> None:
        """Add a real frame, where the simulator can."""
        if isinstance(self.plain, ObservesFrames) and self.can_observe:
            fast, plain = self.kept.pop()
            batch, k = state_batch_size(plain), self.plain.spec.frames_per_step
            frames = contexts(self.plain, batch, k)
            action = actions(self.plain, batch, self.random.randrange(10))
            given = (action, frames if k > 1 else frames[:, 0])
            self.kept.append((self.fast.observe(fast, *given), self.plain.observe(plain, *given)))

    def change_batch(self) -> None:
        """Select, repeat or join worlds."""
        chosen = self.random.choice(self.kept)
        if self.random.random() < 0.5:
            worlds = torch.tensor(self.random.choices(range(state_batch_size(chosen[1])), k=2))
            self.kept.append((select_worlds(chosen[0], worlds), select_worlds(chosen[1], worlds)))
        elif state_batch_size(chosen[1]) < 4:
            other = self.random.choice(self.kept)
            self.kept.append(tuple(concatenate_states([a, b]) for a, b in zip(chosen, other, strict=True)))

    def drop(self) -> None:
        """Forget all but one state, or keep a view of one alone."""
        fast, plain = self.random.choice(self.kept)
        if self.random.random() < 0.3:
            self.views = [(a[:1], b[:1]) for a, b in zip(tree_leaves(fast), tree_leaves(plain), strict=True)]
        if self.random.random() < 0.3:
            self.kept = [(fast, plain)]

    def run(self, moves: int) -> None:
        """Make random moves; what is kept stays what it was."""
        for _ in range(moves):
            self.random.choices((self.step, self.observe, self.change_batch, self.drop), weights=(7, 2, 1, 1))[0]()
            assert all(equal(fast, plain) for fast, plain in self.kept)
            assert all(torch.equal(a, b) for a, b in self.views)
            del self.kept[: -(self.random.randrange(3) + 2)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NETWORK_SIMULATORS)
def test_every_simulator_steps_as_it_does_plainly(name: str, backend: type) -> None:
    used = backend()
    world = NETWORK_SIMULATORS[name]()
    caller = Caller(world, used, seed=1)
    caller.run(16)
    assert not caller.fast.captured_steps.failed and caller.fast.captured_steps.captured


def test_what_cannot_be_captured_does_not_hinder_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer that reads a value on the host when it encodes."""
    world = SIMULATORS["genie-vq"]().accelerate(used := RecordingBackend())
    encode = world.tokenizer.encode_step
    monkeypatch.setattr(world.tokenizer, "encode_step", lambda s, video: encode(s, video) if video.sum() < 1e9 else s)
    state, frame = world.reset(contexts(world))
    with pytest.warns(UserWarning, match="observe is not accelerated: RuntimeError: .*is_nonzero") as warned:
        for i in range(CALLS_BEFORE_CAPTURE + 2):
            state = world.observe(state, actions(world, 3, i), frame)
            state, _ = world.step(state, actions(world, 3, i))
    assert len(warned) == 1 and world.captured_steps.captured and used.replays


def test_who_steps_on_and_on_gets_two_buffers_in_turns_and_copies_nothing() -> None:
    world = diffusion_world().accelerate(used := RecordingBackend())
    state, _ = world.reset(contexts(world))
    places = []
    for i in range(CALLS_BEFORE_CAPTURE + 6):
        state, _ = world.step(state, actions(world, 3, i))
        places.append([leaf.data_ptr() for leaf in tree_leaves(state)])
    assert places[-1] == places[-3] and places[-2] == places[-4]
    assert not set(places[-1]) & set(places[-2])
    assert used.captures == 3  # one that copies, and the two that work in turns

    kept, latent = state, state.latent.clone()
    for i in range(3):
        state, _ = world.step(state, actions(world, 3, i))
    assert torch.equal(kept.latent, latent)


def test_captures_are_bounded_and_other_sampling_is_captured_anew() -> None:
    world = diffusion_world().accelerate(used := RecordingBackend())
    for batch in range(1, MAX_CAPTURED + 3):
        state, _ = world.reset(contexts(world, batch))
        for i in range(CALLS_BEFORE_CAPTURE):
            state, _ = world.step(state, actions(world, batch, i), decode=False)
    assert len(world.captured_steps.captured) == MAX_CAPTURED and used.captures == 3 * (MAX_CAPTURED + 2)
    other = world.with_sampling(steps=1)
    assert not other.captured_steps.captured and other.captured_steps.backend is used


def test_captured_steps_inside_and_outside_of_autocast_use_the_weights_as_they_are() -> None:
    linear = torch.nn.Linear(3, 3)
    steps = CapturedSteps(RecordingBackend())
    add = lambda state, rest: (state, linear(state) + rest)  # noqa: E731
    for number in range(2 * CALLS_BEFORE_CAPTURE):
        state, rest = torch.randn(2, 3), torch.randn(2, 3)
        for autocast in (False, True):
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                found = steps("step", add, state, rest)[1]
                assert torch.equal(found, add(state, rest)[1]), (number, autocast)
                linear.weight.mul_(1.1)
                torch.clear_autocast_cache()  # as training does between updates
    assert len(steps.captured) == 2


def test_a_step_that_reads_values_falls_back_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = diffusion_world()
    world, advance = plain.accelerate(RecordingBackend()), plain.advance
    monkeypatch.setattr(
        world, "advance", lambda s, a, decode: advance(s, a, decode) if float(s.latent.sum()) < 1e9 else None
    )
    (state, _), (expected, _) = world.reset(contexts(world)), plain.reset(contexts(world))
    with pytest.warns(
        UserWarning, match=r"step\(decode=True\) is not accelerated: RuntimeError: .* reads a value"
    ) as warned:
        for i in range(CALLS_BEFORE_CAPTURE + 2):
            state, shown = world.step(state, actions(world, 3, i))
            expected, wanted = plain.step(expected, actions(world, 3, i))
            assert equal((state, shown), (expected, wanted))
    assert len(warned) == 1


def test_moving_a_world_ends_its_acceleration_and_actions_are_still_checked() -> None:
    world = diffusion_world().accelerate(RecordingBackend())
    state, _ = world.reset(contexts(world))
    with pytest.raises(ValueError, match="actions must lie in"):
        world.step(state, torch.full((3,), 99))
    assert world.to("cpu", torch.float64).captured_steps is None


class CallsAgain:
    """A capture that calls the function again: compiled code cannot be recorded by operations."""

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        function()
        return function


def step_both(world: NetworkSimulator, plain: NetworkSimulator, steps: int = CALLS_BEFORE_CAPTURE + 3) -> None:
    """Step two worlds alike; all they return is equal."""
    (state, _), (expected, _) = world.reset(contexts(world)), plain.reset(contexts(plain))
    for i in range(steps):
        state, shown = world.step(state, actions(world, 3, i))
        expected, wanted = plain.step(expected, actions(world, 3, i))
        assert equal((state, shown), (expected, wanted))


@pytest.mark.parametrize("name", ["genie-labeled", "dit-agent", "dit-2-frames-a-step-and-memory"])
def test_captured_steps_use_compiled_blocks_of_the_same_weights_and_plain_ones_do_not(name: str) -> None:
    compiled = []

    def compile_nothing(graph: torch.fx.GraphModule, _inputs: list[Any]) -> Callable[..., Any]:
        compiled.append(graph)
        return graph.forward

    plain = SIMULATORS[name]()
    world = plain.accelerate(CallsAgain(), compile_nothing)
    ours, theirs = (dict(w.dynamics.named_parameters()) for w in (world.compiled, plain))
    assert ours.keys() == theirs.keys() and all(ours[key] is theirs[key] for key in ours)
    step_both(world, plain, CALLS_BEFORE_CAPTURE - 1)
    assert not compiled
    step_both(world, plain)
    assert compiled and world.captured_steps.captured
    assert world.with_sampling(steps=4).compiled.sampling.steps == 4 != plain.sampling.steps


def test_blocks_that_cannot_be_compiled_are_captured_as_they_are() -> None:
    def fail(graph: torch.fx.GraphModule, _inputs: list[Any]) -> Callable[..., Any]:
        raise ValueError("no compiler here")

    plain = diffusion_world()
    world = plain.accelerate(CallsAgain(), fail)
    with pytest.warns(UserWarning, match=r"step\(decode=True\) is not compiled: .*no compiler here") as warned:
        step_both(world, plain)
    assert len(warned) == 1 and world.captured_steps.captured and not world.captured_steps.failed


@pytest.mark.parametrize("name", NETWORK_SIMULATORS)
def test_every_simulator_steps_in_bfloat16_as_well_and_close_to_float32(name: str) -> None:
    plain, half = NETWORK_SIMULATORS[name](), NETWORK_SIMULATORS[name]().to("cpu", torch.bfloat16)
    (state, _), (half_state, _) = plain.reset(contexts(plain)), half.reset(contexts(half))
    _, shown = plain.step(state, actions(plain, 3, 0))
    half_state, half_shown = half.step(half_state, actions(half, 3, 0))
    half.step(half_state, actions(half, 3, 1))
    for ours, theirs in zip(tree_leaves(half_shown), tree_leaves(shown), strict=True):
        if theirs is not None:
            assert ours.shape == theirs.shape and bool(torch.isfinite(ours).all())
    if shown.frame is not None and plain.spec.observation.is_image:
        assert (half_shown.frame.float() - shown.frame.float()).abs().mean() < 25  # of 255; random weights
