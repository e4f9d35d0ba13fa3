from .autoencoder import WaypointAutoencoder as WaypointAutoencoder
from .family import WaypointFamily as WaypointFamily
from .memory import LayerMemory as LayerMemory
from .network import BiasFreePerceptron as BiasFreePerceptron
from .network import WaypointBlock as WaypointBlock
from .network import WaypointDiT as WaypointDiT
from .simulator import WaypointSimulator as WaypointSimulator
from .simulator import WaypointState as WaypointState
