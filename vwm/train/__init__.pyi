from .checkpoints import ResumableCheckpoints as ResumableCheckpoints
from .ema import EMACallback as EMACallback
from .fit import FitCLI as FitCLI
from .sample_videos import SampleVideos as SampleVideos
from .throughput import Throughput as Throughput
