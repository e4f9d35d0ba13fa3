from .family import PETSFamily as PETSFamily
from .network import EnsemblePrediction as EnsemblePrediction
from .network import ProbabilisticEnsemble as ProbabilisticEnsemble
from .simulator import PETSSimulator as PETSSimulator
from .simulator import PETSSimulatorState as PETSSimulatorState
from .simulator import TrajectorySampling as TrajectorySampling
