from .action_sequences import CategoricalActionSequences as CategoricalActionSequences
from .action_sequences import GaussianActionSequences as GaussianActionSequences
from .action_sequences import UniformActionSequences as UniformActionSequences
from .cem import CEM as CEM
<<<<<<< HEAD
from .device_search_tree import DeviceSearchTree as DeviceSearchTree
=======
from .end_effector_cem import EndEffectorCEM as EndEffectorCEM
from .end_effector_cem import EndEffectorPlan as EndEffectorPlan
>>>>>>> b9ed792 (planning: the published cross-entropy method of V-JEPA 2-AC)
from .goal_distance import GoalDistance as GoalDistance
from .goal_tasks import GoalTask as GoalTask
from .goal_tasks import LampGoalTask as LampGoalTask
from .goal_tasks import MountainCarGoalTask as MountainCarGoalTask
from .goal_tasks import PendulumGoalTask as PendulumGoalTask
from .goal_tasks import TwoRoomsGoalTask as TwoRoomsGoalTask
from .goal_tasks import find_goal_task as find_goal_task
from .gumbel_search import GumbelMuZeroSearch as GumbelMuZeroSearch
from .mpc_policy import MPCPolicy as MPCPolicy
from .mpc_policy import TaskRollout as TaskRollout
from .mpc_policy import random_task_policy as random_task_policy
from .mpc_policy import run_task_policy as run_task_policy
from .mppi import MPPI as MPPI
from .puct_search import PUCTSearch as PUCTSearch
from .random_shooting import RandomShooting as RandomShooting
from .sampling_planner import ActionPlan as ActionPlan
from .sampling_planner import NegativeReturnObjective as NegativeReturnObjective
from .sampling_planner import PlanningObjective as PlanningObjective
from .sampling_planner import SamplingPlanner as SamplingPlanner
from .sampling_planner import SequenceRollout as SequenceRollout
from .search_tree import SearchTree as SearchTree
from .search_tree import TreeArrays as TreeArrays
from .tree_search import TreeSearch as TreeSearch
from .tree_search import TreeSearchResult as TreeSearchResult
from .tree_search_model import NodePrediction as NodePrediction
from .tree_search_model import SimulatorTreeModel as SimulatorTreeModel
from .tree_search_model import TreeSearchModel as TreeSearchModel
from .tree_search_model import TreeStep as TreeStep
