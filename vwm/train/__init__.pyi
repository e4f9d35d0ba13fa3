from .checkpoints import ResumableCheckpoints as ResumableCheckpoints
from .checkpoints import RunCheckpointIO as RunCheckpointIO
from .ema import EMACallback as EMACallback
from .export import export_run as export_run
from .fit import FitCLI as FitCLI
from .metric_logging import RunMetricsLogger as RunMetricsLogger
from .sample_videos import SampleVideos as SampleVideos
from .throughput import Throughput as Throughput
