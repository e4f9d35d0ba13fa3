"""Soft actor-critic: its losses against their formulas in NumPy (float64), its target critics, and that it learns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.rl.algorithms.sac import SAC
from vwm.rl.algorithms.soft_actor_critic import SACConfig, SoftActorCritic
from vwm.rl.transitions import Transitions

BATCH, SIZE, ACTIONS = 7, 3, 2
CONFIG = SACConfig(width=8, layers=2, discount=0.9, tau=0.1, init_temperature=0.3)


def make_learner() -> SoftActorCritic:
    torch.manual_seed(0)
    learner = SoftActorCritic(SIZE, ActionSpace("continuous", ACTIONS), CONFIG).double()
    with torch.no_grad():
        for weight in learner.target_critics.parameters():  # as after many updates
            weight.add_(0.1 * torch.randn_like(weight))
        for weight in learner.actor.parameters():
            weight.mul_(1.5)
    return learner


def make_batch() -> Transitions:
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return Transitions(
        draw(BATCH, SIZE), draw(BATCH, ACTIONS).tanh(), draw(BATCH), draw(BATCH, SIZE), torch.arange(BATCH) % 3 == 0
    )


class Reference:
    """Row by row, in NumPy: Haarnoja et al., arXiv 1812.05905, with the actor's parametrization of this project."""

    def __init__(self, learner: SoftActorCritic) -> None:
        self.state = {name: value.numpy() for name, value in learner.state_dict().items()}
        self.temperature = math.exp(self.state["log_temperature"])

    def policy(self, observation: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, float]:
        """Return an action, and its log-probability by the change of variables."""
        hidden = observation
        for layer in range(2):
            weight, bias = (self.state[f"actor.body.{layer}.input_projections.0.{part}"] for part in ("weight", "bias"))
            hidden = np.maximum(weight @ hidden + bias, 0)
        outputs = self.state["actor.output.weight"] @ hidden + self.state["actor.output.bias"]
        mean = 5 * np.tanh(outputs[:ACTIONS] / 5)
        std = np.log1p(np.exp(outputs[ACTIONS:] + math.log(math.expm1(1.0)))) + 1e-3
        raw = mean + std * noise
        density = np.exp(-(((raw - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))
        return np.tanh(raw), float(np.log(density).sum() - np.log(1 - np.tanh(raw) ** 2).sum())

    def values(self, observation: np.ndarray, action: np.ndarray, name: str = "critics") -> list[float]:
        """Return the value of each of two critics."""
        found = []
        for member in range(2):
            hidden = np.concatenate((observation, action))
            for layer in range(3):
                weight, bias = (self.state[f"{name}.layers.{layer}.{part}"][member] for part in ("weight", "bias"))
                hidden = hidden @ weight + bias[0]
                hidden = np.maximum(hidden, 0) if layer < 2 else hidden
            found.append(float(hidden[0]))
        return found


def draw_noise(seed: int) -> np.ndarray:
    torch.manual_seed(seed)
    return torch.randn(BATCH, ACTIONS, dtype=torch.float64).numpy()


def test_the_critics_loss_is_the_soft_bellman_error_of_the_smaller_target() -> None:
    learner, batch, noise = make_learner(), make_batch(), draw_noise(2)
    reference, total = Reference(learner), 0.0
    for row in range(BATCH):
        observation, action, reward, following, terminal = (part[row].numpy() for part in batch)
        chosen, log_prob = reference.policy(following, noise[row])
        target = float(reward)
        if not terminal:
            soft = min(reference.values(following, chosen, "target_critics")) - reference.temperature * log_prob
            target += 0.9 * soft
        total += sum((value - target) ** 2 for value in reference.values(observation, action)) / 2
    torch.manual_seed(2)
    loss, _ = learner.critic_loss(batch)
    assert loss.dtype == torch.float64 and loss.item() == pytest.approx(total / BATCH, rel=1e-12)
    loss.backward()
    assert all(weight.grad is not None for weight in learner.critics.parameters())
    assert all(w.grad is None for part in (learner.actor, learner.target_critics) for w in part.parameters())


def test_the_losses_of_actor_and_temperature_are_those_of_the_paper() -> None:
    learner, batch, noise = make_learner(), make_batch(), draw_noise(3)
    reference = Reference(learner)
    total, entropy_gap = 0.0, 0.0
    for row in range(BATCH):
        observation = batch.observation[row].numpy()
        action, log_prob = reference.policy(observation, noise[row])
        total += reference.temperature * log_prob - min(reference.values(observation, action))
        entropy_gap += -log_prob - (-ACTIONS)
    torch.manual_seed(3)
    loss, log_prob = learner.actor_loss(batch.observation)
    assert loss.item() == pytest.approx(total / BATCH, rel=1e-12)
    loss.backward()
    assert all(weight.grad is not None for weight in learner.actor.parameters())
    assert all(weight.grad is None and weight.requires_grad for weight in learner.critics.parameters())
    assert learner.log_temperature.grad is None
    temperature_loss = learner.temperature_loss(log_prob)
    assert temperature_loss.item() == pytest.approx(math.log(reference.temperature) * entropy_gap / BATCH)
    temperature_loss.backward()  # too much entropy lowers the temperature
    assert learner.log_temperature.grad.item() == pytest.approx(entropy_gap / BATCH, rel=1e-12)


def test_an_update_moves_everything_and_the_targets_by_tau() -> None:
    learner = make_learner()
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    logs = learner.learn(make_batch())
    after = learner.state_dict()
    assert {name for name in before if torch.equal(before[name], after[name])} == set()
    for name in before:
        if name.startswith("target_critics."):
            expected = 0.9 * before[name] + 0.1 * after[name.removeprefix("target_")]
            torch.testing.assert_close(after[name], expected, rtol=1e-12, atol=1e-12)
    assert logs["temperature"].item() == pytest.approx(math.exp(after["log_temperature"]))


def test_it_learns_actions_of_high_return_at_the_target_entropy() -> None:
    torch.manual_seed(0)
    spaces = EnvSpaces(ObservationSpace.vector(2), ActionSpace("continuous", 1))
    agent = SAC(spaces, SACConfig(width=32, layers=1, lr=1e-2, target_entropy=-0.5), batch_size=64)
    for _ in range(300):
        observation = torch.rand(64, 2) * 2 - 1
        action = torch.rand(64, 1) * 2 - 1
        reward = -3 * (action[:, 0] - 0.6 * observation[:, 0]).square()
        logs = agent.sac.learn(Transitions(observation, action, reward, observation, torch.ones(64, dtype=torch.bool)))
    flags = torch.zeros(64, dtype=torch.bool)
    taken = agent.act((), TimeStep(observation, reward, flags, flags, flags), explore=False).action[:, 0]
    assert (taken - 0.6 * observation[:, 0]).abs().mean() < 0.1
    assert logs["entropy"].item() == pytest.approx(-0.5, abs=0.25)


def test_what_it_cannot_learn_from_is_refused() -> None:
    vector, discrete = ObservationSpace.vector(2), ActionSpace("discrete", 2)
    with pytest.raises(ValueError, match="takes continuous actions, these are 2 discrete ones: use MuZero"):
        SAC(EnvSpaces(vector, discrete))
    with pytest.raises(ValueError, match="SAC observes vectors, and the environment shows images"):
        SAC(EnvSpaces(ObservationSpace.image(16, 16), ActionSpace("continuous", 1)))
    with pytest.raises(ValueError, match="init_temperature must be above 0, got 0"):
        SACConfig(init_temperature=0)
