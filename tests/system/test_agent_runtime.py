"""Options of `vwm agent train` from the run layer: precision and metric loggers."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from vwm.cli.main import main

CONFIG = """
run: {run}
steps: 12
log_every: 1
device: cpu
evaluation: {{every: 12, episodes: 1, video: false}}
algorithm:
  class_path: vwm.rl.OnlineLearning
  init_args:
    env: {{class_path: vwm.envs.GymnasiumEnvSpec, init_args: {{env: CartPole-v1}}}}
    prefill: 10
    agent:
      class_path: vwm.rl.algorithms.dreamer.Dreamer
      init_args:
        world_model: {{deter: 16, hidden: 12, stoch: 4, classes: 4, blocks: 2, units: 12}}
        actor: {{width: 12, layers: 1}}
        critic: {{width: 12, layers: 1}}
        imagination: {{horizon: 3}}
        batch_size: 2
        batch_length: 4
"""


class FakeWandb(ModuleType):
    """A replacement of ``wandb`` that records what is logged."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)  # libraries check whether it is installed
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.settings: dict[str, object] = {}

    def init(self, **settings: object) -> SimpleNamespace:
        self.settings = settings
        return SimpleNamespace(log=lambda values, step: self.logged.append((step, values)), finish=lambda: None)


@pytest.mark.usefixtures("no_curves")
def test_bfloat16_updates_keep_float32_weights_and_log_to_wandb(tmp_path: Path, monkeypatch) -> None:
    from vwm.rl.algorithms.dreamer import Dreamer

    wandb, linear_dtypes, autocast_in_act = FakeWandb(), [], []
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: pytest.fail("compiled"))
    linear = torch.nn.functional.linear

    def recording_linear(*args, **kwargs):
        linear_dtypes.append(linear(*args, **kwargs).dtype)
        return linear(*args, **kwargs)

    act = Dreamer.act

    def recording_act(*args, **kwargs):
        autocast_in_act.append(torch.is_autocast_enabled("cpu"))
        return act(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "linear", recording_linear)
    monkeypatch.setattr(Dreamer, "act", recording_act)
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(run=tmp_path / "run"))
    main(["agent", "train", "-c", str(config), "--precision", "bf16-mixed", "--wandb", "worlds"])
    assert torch.bfloat16 in linear_dtypes  # updates
    assert autocast_in_act and not any(autocast_in_act)
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["counters"]["updates"] >= 2
    assert all(
        value.dtype != torch.bfloat16 and value.isfinite().all() for value in state["algorithm"]["policy"].values()
    )
    assert wandb.settings["mode"] == "offline" and wandb.settings["project"] == "worlds"
    steps = [step for step, _ in wandb.logged]
    assert steps == sorted(steps)
    assert {name.split("/")[0] for _, values in wandb.logged for name in values} >= {"updates", "evaluations"}


def test_an_error_for_missing_tensorboard_suggests_the_extra(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(run=tmp_path / "run"))
    with pytest.raises(SystemExit):
        main(["agent", "train", "-c", str(config), "--tensorboard", "true"])
    assert "pip install -e '.[tensorboard]'" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.yaml").exists()
