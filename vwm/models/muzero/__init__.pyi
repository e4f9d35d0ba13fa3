from .family import MuZeroFamily as MuZeroFamily
from .network import MuZeroLatentState as MuZeroLatentState
from .network import MuZeroNetwork as MuZeroNetwork
from .network import MuZeroPrediction as MuZeroPrediction
from .network import MuZeroResidualBlock as MuZeroResidualBlock
from .network import MuZeroTransition as MuZeroTransition
from .simulator import MuZeroSimulator as MuZeroSimulator
from .simulator import MuZeroSimulatorState as MuZeroSimulatorState
