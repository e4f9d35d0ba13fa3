"""Run folders of ``vwm fit`` and ``vwm agent train``: lock, config, checkpoints, signals and metrics.

    RUN/
      config.yaml               every setting, written whole; the run keeps those that make it what it is
      .lock                     held by the process that trains (rank 0 of a distributed run)
      checkpoints/last.ckpt     what the same command resumes from
      checkpoints/best.ckpt     weights with the best evaluation (agents)
      checkpoints/step-N.ckpt   kept for good (vwm fit, checkpoint.keep_every_n_steps)
      checkpoints/replay/       what was played (agents with a replay)
      metrics/TABLE.csv         train, val (vwm fit); episodes, evaluations, updates (agents)
      videos/                   samples of held-out clips (vwm fit); episodes of evaluations (agents)
      tensorboard/, wandb/      on request; a metric is called TABLE/NAME in both

Files are written under a temporary name in their own folder, flushed and renamed (``vwm.core.atomic_files``). Nothing
in a run folder is unpickled as code: checkpoints load with ``weights_only=True``. This package does not import
Lightning; ``vwm.train`` connects it to Lightning's trainer.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
