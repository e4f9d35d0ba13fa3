from .benchmarks import UncachedDynamics as UncachedDynamics
from .benchmarks import UncachedState as UncachedState
from .compare_agents import RunGroup as RunGroup
from .main import CLICommand as CLICommand
