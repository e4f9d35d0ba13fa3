from .dataset_exporter import DatasetExporter as DatasetExporter
from .dataset_exporter import ExportShard as ExportShard
from .lerobot import LeRobotExporter as LeRobotExporter
from .stored_episode import StoredEpisode as StoredEpisode
from .webdataset import WebDatasetExporter as WebDatasetExporter
