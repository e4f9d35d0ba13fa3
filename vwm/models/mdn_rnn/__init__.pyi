from .module import MDNRNNModule as MDNRNNModule
from .network import GaussianMixture as GaussianMixture
from .network import LSTMState as LSTMState
from .network import MDNRNN as MDNRNN
from .network import MDNRNNPrediction as MDNRNNPrediction
from .simulator import MDNRNNSampling as MDNRNNSampling
from .simulator import MDNRNNSimulator as MDNRNNSimulator
from .simulator import MDNRNNState as MDNRNNState
