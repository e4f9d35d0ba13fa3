from .hdf5 import Hdf5Source as Hdf5Source
from .lerobot import LeRobotSource as LeRobotSource
from .minari import MinariSource as MinariSource
from .npz import NpzSource as NpzSource
from .source import ActionBounds as ActionBounds
from .source import EpisodeSource as EpisodeSource
from .source import SourceEpisode as SourceEpisode
