"""Plan to goals given as images, in the latents of a world, and measure how often they are reached.

python examples/plan_in_a_world.py [REPORT]
"""

import sys

import vwm
from vwm.eval import GoalObjectiveConfig, GoalPlannerConfig, GoalTaskConfig

out = sys.argv[1] if len(sys.argv) > 1 else "runs/plan"
result = vwm.plan(
    "two_rooms",
    "vwm/TwoRooms-v0",
    out=out,
    task=GoalTaskConfig(episodes=4),
    planning=GoalPlannerConfig(horizon=12, samples=32),
    objective=GoalObjectiveConfig(metric="l2"),
)
print(sorted(result["results"]))
