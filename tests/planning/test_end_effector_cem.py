"""V-JEPA 2-AC's cross-entropy method, against the same steps written one by one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from vwm.core.seeds import fold_in, world_seeds
from vwm.core.simulator import StepOutput
from vwm.core.spaces import ActionSpace
from vwm.planning.colored_noise import draw_colored_noise
from vwm.planning.end_effector_cem import EndEffectorCEM
from vwm.planning.goal_distance import GoalDistance


class ArmWorld:
    """The latent is the pose, to which actions are added; the gripper has a weight of its own."""

    spec = SimpleNamespace(actions=ActionSpace("continuous", 7, tuple("xyzabcg")), frames_per_step=1)

    def step(self, state: Tensor, action: Tensor, decode: bool = True) -> tuple[Tensor, StepOutput]:
        assert not decode and not action[:, 3:6].any()
        state = state + action
        ends = torch.zeros(len(state), dtype=torch.bool)
        return state, StepOutput(None, state, torch.zeros(len(state)), ends)


STATE = torch.tensor([[0.1, 0.2, 0.3, 0.0, 0.0, 0.0, 0.5], [0.0] * 7])
GOAL = STATE + torch.tensor([[0.06, -0.02, 0.3, 0.0, 0.0, 0.0, 0.6], [0.02, 0.01, -0.03, 0.0, 0.0, 0.0, 0.1]])


def test_plans_are_those_of_the_published_steps() -> None:
    settings = {"samples": 40, "elites": 5, "iterations": 4, "momentum_mean": 0.25, "momentum_std": 0.75}
    planner = EndEffectorCEM(**settings, gripper_momentum_std=0.4)
    plan = planner.plan(ArmWorld(), STATE, GoalDistance(GOAL, "l1", "end"), seed=3)
    for problem in range(2):
        seed = world_seeds(3, 2, torch.device("cpu"))[problem : problem + 1]
        mean, std = torch.zeros(2, 4), torch.tensor([[0.05, 0.05, 0.05, 1.0]] * 2)
        for iteration in range(4):
            noise = draw_colored_noise(fold_in(seed, iteration), 40, 2, 4, 0.0)[0]
            rows = []
            for sample in range(40):
                action = noise[sample] * std + mean
                action[:, :3] = action[:, :3].clip(-0.05, 0.05)
                action[:, 3] = action[:, 3].clip(-0.75, 0.75)
                end = STATE[problem].clone()
                end[:3] += action[:, :3].sum(dim=0)
                end[6] += action[:, 3].sum()
                rows.append(((end - GOAL[problem]).abs().mean().item(), action))
            elites = torch.stack([action for _, action in sorted(rows, key=lambda row: row[0])[:5]])
            new_std = ((elites - elites.mean(dim=0)).square().sum(dim=0) / 4).sqrt()
            mean = elites.mean(dim=0) * torch.tensor([0.75, 0.75, 0.75, 0.85]) + mean * torch.tensor(
                [0.25] * 3 + [0.15]
            )
            std = new_std * torch.tensor([0.25, 0.25, 0.25, 0.6]) + std * torch.tensor([0.75] * 3 + [0.4])
        torch.testing.assert_close(plan.mean[problem], mean, rtol=0, atol=1e-6)
        torch.testing.assert_close(plan.std[problem], std, rtol=0, atol=1e-6)
        gripper = torch.where(mean[:, 3].abs() < 0.25, 0.0, mean[:, 3])
        expected = torch.cat((mean[:, :3], torch.zeros(2, 3), gripper[:, None]), dim=1)
        torch.testing.assert_close(plan.actions[problem], expected, rtol=0, atol=1e-6)


def test_the_plan_moves_toward_the_goal_and_holds_what_is_fixed() -> None:
    objective = GoalDistance(GOAL, "l1", "end")
    plan = EndEffectorCEM().plan(ArmWorld(), STATE, objective)
    assert plan.actions[0, :, 2] == pytest.approx([0.05, 0.05], abs=0.005)  # at the bound
    assert float(plan.actions[0, :, 6].sum()) == pytest.approx(0.6, abs=0.1)
    assert not plan.actions[1, :, 6].any()  # 0.1 is below the threshold of a movement
    fixed = EndEffectorCEM(fixed={1: 0.01}, close_gripper=1).plan(ArmWorld(), STATE, objective)
    assert fixed.actions[..., 1].flatten().tolist() == pytest.approx([0.01] * 4)
    assert fixed.actions[:, 1, 6].tolist() == pytest.approx([1.0, 1.0], abs=1e-3)


def test_other_actions_and_settings_are_named() -> None:
    world = ArmWorld()
    world.spec = SimpleNamespace(actions=ActionSpace("continuous", 2, ("x", "y")))
    with pytest.raises(ValueError, match="plans 7 continuous numbers"):
        EndEffectorCEM().plan(world, STATE, GoalDistance(GOAL))
    with pytest.raises(ValueError, match=r"elites must lie in 2..400 \(samples\), got 1"):
        EndEffectorCEM(elites=1)
    with pytest.raises(ValueError, match="fixed has keys from 0 to 3"):
        EndEffectorCEM(fixed={6: 0.0})
