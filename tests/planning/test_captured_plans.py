"""Planners step accelerated worlds in batches of few sizes, from captured graphs, and find the plans of plain ones."""

from __future__ import annotations

import torch
from factories import diffusion_world
from recording_backend import RecordingBackend
from simulator_kinds import contexts

from vwm.core.states import select_worlds
from vwm.planning.cem import CEM
from vwm.planning.goal_distance import GoalDistance, encode_goal_frames
from vwm.planning.puct_search import PUCTSearch


def test_plans_replay_captured_steps_as_episodes_end() -> None:
    plain = diffusion_world()
    fast = plain.accelerate(backend := RecordingBackend())
    planner = CEM(horizon=3, samples=6, elites=2, iterations=2, keep_elites=1, max_batch_size=16)
    state, _ = plain.reset(contexts(plain, 4))
    goals = encode_goal_frames(plain, contexts(plain, 4, 1)[:, 0])
    for problems in (4, 4, 3, 2):
        start = select_worlds(state, torch.arange(problems))
        plans = [
            planner.plan(world, start, GoalDistance(goals[:problems]), seed=torch.arange(problems))
            for world in (plain, fast)
        ]
        assert torch.equal(plans[0].actions, plans[1].actions)
        torch.testing.assert_close(plans[0].cost, plans[1].cost)
    assert not fast.captured_steps.failed
    sizes = {key[3][0][0][0] for key in fast.captured_steps.captured}
    assert sizes <= {2, 4, 8, 16} and backend.replays > 30


def test_a_search_replays_captured_steps() -> None:
    plain = diffusion_world()
    fast = plain.accelerate(backend := RecordingBackend())
    state, _ = plain.reset(contexts(plain, 2))
    value = lambda state: state.latent.flatten(1).mean(1)  # noqa: E731 - a value that differs between states
    results = [PUCTSearch(simulations=8).plan(world, state, value=value) for world in (plain, fast)]
    assert torch.equal(results[0].visits, results[1].visits) and torch.equal(results[0].value, results[1].value)
    assert backend.replays >= 5 and not fast.captured_steps.failed
