from .lerobot import LeRobotSource as LeRobotSource
from .source import ActionBounds as ActionBounds
from .source import EpisodeSource as EpisodeSource
from .source import SourceEpisode as SourceEpisode
