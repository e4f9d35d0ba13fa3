"""Rollouts of a policy in a simulator, and the losses of learning from them.

Legend: n rollouts, h steps of the horizon. Time comes first.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vwm.core.capabilities import EstimatesUncertainty
from vwm.core.simulator import Simulator
from vwm.core.spaces import ObservationSpace
from vwm.envs.time_step import EnvSpaces
from vwm.rl.agent import PolicyCarry
from vwm.rl.algorithms.actor_critic import ActorCriticLosses, ImaginedTrajectory
from vwm.rl.algorithms.actor_critic_policy import ActorCriticPolicy
from vwm.rl.algorithms.encoded_env import reconstruct_frames
from vwm.rl.algorithms.policy_objectives import PolicyObjective
from vwm.worlds.context_sampler import SimulatorContext
from vwm.worlds.world_batch import OBSERVE_FRAME, blank_context, select_observation


class ImaginedRollout(NamedTuple):
    """Rollouts of a policy in a simulator.

    Attributes:
        carry: the policy's memory before the first observation.
        observation: [h + 1, n, ...].
        action: int64 [h, n] or float [h, n, a], as sampled; the simulator took them clamped to [-1, 1].
        reward: float [h + 1, n], received on arrival; 0 at the first time step.
        terminated: bool [h + 1, n], whether the episode ended there.
        uncertainty: float [h + 1, n], disagreement of an ensemble; 0 of a single simulator.
    """

    carry: PolicyCarry
    observation: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    uncertainty: Tensor


@torch.no_grad()
def imagine_rollout(
    simulator: Simulator, policy: ActorCriticPolicy, context: SimulatorContext, horizon: int, observe: str
) -> ImaginedRollout:
    """Roll a policy out in a simulator.

    Args:
        simulator: the simulator, or an ensemble that follows its first member.
        policy: its actions are drawn from torch's generator, as are the simulator's seeds.
        context: n contexts to start from.
        horizon: h. After the end of an episode the simulator is stepped on, to keep the batch complete; what follows is
            masked.
        observe: see ``ImaginationLearning``.
    """
    count, device = len(context.frames), policy.device
    not_ended = torch.zeros(count, dtype=torch.bool, device=device)
    zero = torch.zeros(count, device=device)
    state, frame = simulator.reset(context.frames, torch.randint(2**63 - 1, (count,)), context.actions)
    carry = policy.init_carry(count)
    shown, skip = simulator.trim_context(context.frames), simulator.spec.frames_per_step
    if observe == OBSERVE_FRAME and shown.shape[1] > 1:
        # The frames that earlier steps would have ended with, as in the real environment.
        preceding = reconstruct_frames(simulator, shown[:, :-skip].to(device))[:, ::skip]
        carry, _ = policy.encode_sequence(carry, preceding.transpose(0, 1))
    first_carry = carry
    observations = [select_observation(simulator, observe, state, frame)]
    actions: list[Tensor] = []
    rewards, ends, uncertainties = [zero], [not_ended], [zero]
    for _ in range(horizon):
        carry, features = policy.encode_step(carry, observations[-1], not_ended)
        action = policy.actor_critic.actor(features).sample()
        clamped = action.clamp(-1, 1) if action.is_floating_point() else action
        taken = simulator.spec.actions.from_flat(clamped)
        state, output = simulator.step(state, taken, decode=observe == OBSERVE_FRAME)
        observations.append(select_observation(simulator, observe, state, output.last_frame))
        actions.append(action)
        rewards.append(output.reward.float())
        ends.append(output.terminated)
        uncertainties.append(simulator.uncertainty(state) if isinstance(simulator, EstimatesUncertainty) else zero)
    stacked = (torch.stack(values) for values in (observations, actions, rewards, ends, uncertainties))
    return ImaginedRollout(first_carry, *stacked)


def imagination_losses(
    policy: ActorCriticPolicy, objective: PolicyObjective, rollout: ImaginedRollout, discount: float
) -> ActorCriticLosses:
    """Compute actor and critic losses; the critic bootstraps at the horizon, and nothing counts after an end."""
    _, features = policy.encode_sequence(rollout.carry, rollout.observation)
    continues = (~rollout.terminated).to(rollout.reward.dtype)
    trajectory = ImaginedTrajectory(
        features, rollout.action, rollout.reward, discount * continues, continues.cumprod(0)
    )
    current = features[:-1]
    return objective.losses(policy.actor_critic, trajectory, policy.actor_critic.actor(current), policy.prior(current))


def mean_reward_per_step(rollout: ImaginedRollout, mask: Tensor) -> float:
    """Average the rewards of the rollouts under a mask (bool [n]) over their steps up to their ends."""
    mask = mask.to(rollout.reward.device)
    alive = (~rollout.terminated).cumprod(0)[:-1, mask]
    return float((rollout.reward[1:, mask] * alive).sum() / alive.sum())


def simulator_env_spaces(simulator: Simulator, observe: str) -> EnvSpaces:
    """Return the spaces of a simulator that is observed in a given form; vectors are measured on a blank context."""
    if observe == OBSERVE_FRAME:
        return EnvSpaces(simulator.spec.observation, simulator.spec.actions.flat)
    shape = select_observation(simulator, observe, *simulator.reset(blank_context(simulator))).shape
    return EnvSpaces(ObservationSpace.of_shape(shape[1:]), simulator.spec.actions.flat)


def check_prior(policy: ActorCriticPolicy, objective: PolicyObjective) -> None:
    """Raise ValueError where an objective keeps the policy close to a prior that the policy does not have."""
    space = policy.spaces.observation
    blank = torch.zeros(1, *space.shape, dtype=space.dtype, device=policy.device)
    first = torch.ones(1, dtype=torch.bool, device=policy.device)
    _, features = policy.encode_step(policy.init_carry(1), blank, first)
    if objective.beta and policy.prior(features) is None:
        raise ValueError(
            f"{type(objective).__name__} is regularized toward a cloned policy (beta={objective.beta:g}), which a "
            f"{type(policy).__name__} does not have: set objective.beta=0, or take a ClonedActorCriticPolicy"
        )
