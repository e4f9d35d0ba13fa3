"""Dyna-Q (Sutton, 1990; Sutton and Barto, 2018, section 8.2): one-step Q-learning from real and from modeled steps.

Legend: s number of states, a number of actions, b batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vwm.core.checks import check_fraction, check_not_negative
from vwm.envs.batched_envs import BatchedEnv, EnvSpec
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.rl.agent import PolicyStep
from vwm.rl.algorithm import Algorithm, StepMetrics, TrainingSetup


class TabularPolicy(nn.Module):
    """A table of the values of actions, and the epsilon-greedy policy for it; see ``ActingPolicy``.

    States are observed as one-hot vectors, as Gymnasium's discrete observations are shown to agents. Equally good
    actions are equally likely.

    Args:
        spaces: of the environment; actions are discrete.
        epsilon: probability of a random action in training.

    Raises:
        ValueError: observations are no vectors, or actions not discrete.
    """

    values: Tensor

    def __init__(self, spaces: EnvSpaces, epsilon: float) -> None:
        super().__init__()
        if not spaces.observation.is_vector or spaces.actions.kind != "discrete":
            raise ValueError(
                f"a table needs numbered states and actions, and the environment has observations "
                f"{spaces.observation} and {spaces.actions.kind} actions: use SAC, MBPO or a Dreamer"
            )
        self.epsilon = epsilon
        self.register_buffer("values", torch.zeros(spaces.observation.shape[0], spaces.actions.size).double())

    @property
    def device(self) -> torch.device:
        """See ``ActingPolicy.device``; tables stay in the memory of the host."""
        return torch.device("cpu")

    def init_carry(self, batch: int) -> tuple[()]:
        """See ``ActingPolicy.init_carry``; there is nothing to remember."""
        return ()

    def act(self, carry: tuple[()], time_step: TimeStep, explore: bool) -> PolicyStep:
        """See ``ActingPolicy.act``."""
        values = self.values[states_of(time_step.observation)]
        best = values == values.amax(1, keepdim=True)
        action = torch.where(best, torch.rand(values.shape), -1.0).argmax(1)
        if explore:
            random = torch.rand(len(action)) < self.epsilon
            action = torch.where(random, torch.randint(values.shape[1], action.shape), action)
        return PolicyStep(action, carry, {})


class TabularModel(nn.Module):
    """What followed each action in each state when it was last taken: a model of a deterministic environment.

    Args:
        num_states, num_actions: s and a.
    """

    reward: Tensor
    next_state: Tensor
    terminal: Tensor
    observed: Tensor

    def __init__(self, num_states: int, num_actions: int) -> None:
        super().__init__()
        shape = (num_states, num_actions)
        self.register_buffer("reward", torch.zeros(shape).double())
        self.register_buffer("next_state", torch.zeros(shape, dtype=torch.int64))
        self.register_buffer("terminal", torch.zeros(shape, dtype=torch.bool))
        self.register_buffer("observed", torch.zeros(shape, dtype=torch.bool))

    def store(self, state: int, action: int, reward: float, next_state: int, terminal: bool) -> None:
        """Take note of a real step."""
        self.reward[state, action] = reward
        self.next_state[state, action] = next_state
        self.terminal[state, action] = terminal
        self.observed[state, action] = True

    def draw(self, count: int, generator: np.random.Generator) -> list[tuple[int, int, float, int, bool]]:
        """Draw steps: a state that was observed, uniformly, then an action that was taken there, uniformly."""
        observed = self.observed.numpy()
        state = generator.choice(np.flatnonzero(observed.any(1)), count)
        action = np.where(observed[state], generator.random((count, observed.shape[1])), -1.0).argmax(1)
        tables = (self.reward, self.next_state, self.terminal)
        columns = (state, action, *(table.numpy()[state, action] for table in tables))
        return list(zip(*(column.tolist() for column in columns), strict=True))


class DynaQ(Algorithm):
    """Acts, learns from the step, takes note of it in the model, and learns from ``planning_steps`` of the model.

    With 0 planning steps it is one-step Q-learning. The model's steps are drawn from a generator of their own, so that
    up to the first reward all numbers of planning steps act in the same way.

    Args:
        env: the environment: its states are numbered (``Discrete``), its actions discrete, and it is deterministic.
        planning_steps: steps of the model to learn from after every real step.
        learning_rate: alpha, 0..1.
        discount: gamma, 0..1.
        epsilon: probability of a random action in training.

    Raises:
        ValueError: a value is out of range.
    """

    policy: TabularPolicy

    def __init__(
        self,
        env: EnvSpec,
        planning_steps: int = 5,
        learning_rate: float = 0.1,
        discount: float = 0.95,
        epsilon: float = 0.1,
    ) -> None:
        check_not_negative(planning_steps=planning_steps)
        check_fraction(learning_rate=learning_rate, discount=discount, epsilon=epsilon)
        self.env = env
        self.planning_steps = planning_steps
        self.learning_rate = learning_rate
        self.discount = discount
        self.epsilon = epsilon

    def set_up(self, setup: TrainingSetup) -> None:
        """See ``Algorithm.set_up``."""
        self.envs: BatchedEnv = self.env.open(1, setup.seed)
        self.policy = TabularPolicy(self.envs.spaces, self.epsilon)
        self.model = TabularModel(*self.policy.values.shape)
        self.generator = np.random.default_rng(setup.seed)
        self.time_step: TimeStep | None = None
        self.progress = 0
        self.episode_return = 0.0
        self.episode_length = 0

    def step(self) -> StepMetrics:
        """Take one decision, and learn from it and from the model."""
        before = self._current()
        action = self.policy.act((), before, explore=True).action
        after = self.envs.step(action)
        self.time_step = after
        self.progress += 1
        state, next_state = (int(states_of(step.observation)) for step in (before, after))
        real = (state, int(action), float(after.reward), next_state, bool(after.is_terminal))
        error = self.learn(*real)
        self.model.store(*real)
        for modeled in self.model.draw(self.planning_steps, self.generator) if self.planning_steps else ():
            self.learn(*modeled)
        self.episode_return += float(after.reward)
        self.episode_length += 1
        episodes = []
        if after.is_last:
            episodes = [{"return": self.episode_return, "length": float(self.episode_length)}]
            self.episode_return, self.episode_length = 0.0, 0
        return {"episodes": episodes, "updates": [{"temporal_difference": abs(error)}]}

    def learn(self, state: int, action: int, reward: float, next_state: int, terminal: bool) -> float:
        """Move the value of an action toward what followed it; return the difference from that."""
        values = self.policy.values.numpy()
        following = 0.0 if terminal else values[next_state].max()
        error = float(reward + self.discount * following - values[state, action])
        values[state, action] += self.learning_rate * error
        return error

    def state_dict(self) -> dict[str, Any]:
        """See ``Algorithm.state_dict``."""
        return {
            "policy": self.policy.state_dict(),
            "model": self.model.state_dict(),
            "generator": self.generator.bit_generator.state,
            "progress": self.progress,
            "envs": self.envs.state_dict(),
            "episode": (self.episode_return, self.episode_length),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See ``Algorithm.load_state_dict``."""
        self.policy.load_state_dict(state["policy"])
        self.model.load_state_dict(state["model"])
        self.generator.bit_generator.state = state["generator"]
        self.progress = state["progress"]
        self.time_step = self.envs.load_state_dict(state["envs"])
        self.episode_return, self.episode_length = state["episode"]

    def close(self) -> None:
        """See ``Algorithm.close``."""
        self.envs.close()

    def build_policy(self, setup: TrainingSetup) -> TabularPolicy:
        """See ``Algorithm.build_policy``."""
        envs = self.env.open(1, setup.seed)
        envs.close()
        return TabularPolicy(envs.spaces, self.epsilon)

    def _current(self) -> TimeStep:
        """Return the time step to act at; after the end of an episode, the first one of the next."""
        if self.time_step is None:
            return self.envs.reset()
        if self.time_step.is_last:
            return self.envs.step(torch.zeros(1, dtype=torch.int64))
        return self.time_step


def states_of(observation: Tensor) -> Tensor:
    """Return the numbers of states, int64 [b], from one-hot vectors [b, s].

    Raises:
        ValueError: an observation is no one-hot vector.
    """
    state = observation.argmax(1)
    if not torch.equal(observation, torch.nn.functional.one_hot(state, observation.shape[1]).to(observation.dtype)):
        raise ValueError(
            f"a table needs numbered states (Gymnasium's Discrete), got the observation {observation[0].tolist()}: use "
            "SAC, MBPO or a Dreamer for vectors"
        )
    return state
