"""Train a small DreamerV3 on CartPole from Python; `vwm agent train` does the same from a YAML file.

python examples/train_an_agent.py [RUN] [DECISIONS]
"""

import sys
from pathlib import Path

from vwm.envs import EnvSpaces, GymnasiumEnvSpec
from vwm.models.rssm import RSSMWorldModelConfig
from vwm.rl import AgentTraining, EvaluationConfig, OnlineLearning
from vwm.rl.algorithms import ActorConfig, CriticConfig, Dreamer

run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/dreamer_example")
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 300  # 12,000 solve CartPole; see configs/agents


def make_agent(spaces: EnvSpaces) -> Dreamer:
    """Make the agent for the environment's spaces."""
    world = RSSMWorldModelConfig(deter=64, hidden=32, stoch=8, classes=8, units=32)
    actor, critic = ActorConfig(width=32, layers=1), CriticConfig(width=32, layers=1)
    return Dreamer(spaces, world, actor, critic, batch_size=4, batch_length=16)


learning = OnlineLearning(
    GymnasiumEnvSpec("CartPole-v1"),
    make_agent,
    num_envs=4,
    prefill=200,
    updates_per_decision=0.1,
    replay_capacity=10_000,
)
evaluation = EvaluationConfig(every=steps, episodes=4, video=False)
training = AgentTraining(run, learning, steps=steps, seed=0, device="cpu", evaluation=evaluation)
training.run()  # run it again with more steps, and it resumes
print((run / "metrics" / "evaluations.csv").read_text())
