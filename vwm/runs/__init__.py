"""Run folders of ``vwm fit`` and ``vwm agent train``: lock, config, checkpoints, signals and metrics.

    RUN/
      config.yaml               every setting, written atomically; some must not change when the run is resumed
      .lock                     held by the process that trains (rank 0 of a distributed run)
      checkpoints/last.ckpt     what the same command resumes from
      checkpoints/best.ckpt     weights with the best evaluation (agents)
      checkpoints/step-N/       the same, written by all processes together (vwm fit, checkpoint.format folder)
      checkpoints/step-N.ckpt   never deleted (vwm fit, checkpoint.keep_every_n_steps)
      checkpoints/replay/       recorded episodes (agents with a replay buffer)
      metrics/TABLE.csv         train, val (vwm fit); episodes, evaluations, updates (agents)
      videos/                   samples of held-out clips (vwm fit); episodes of evaluations (agents)
      tensorboard/, wandb/      on request; a metric is called TABLE/NAME in both

Files are written atomically (``vwm.core.atomic_files``). Nothing
in a run folder is unpickled as code: checkpoints load with ``weights_only=True``. This package does not import
Lightning; ``vwm.train`` connects it to Lightning's trainer.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
