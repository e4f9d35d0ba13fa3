"""Wrong keys and values of a config are found from the source of its classes, before heavy imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vwm.cli.class_signatures import find_class
from vwm.cli.config_arguments import expand_arguments
from vwm.cli.config_checks import check_config_arguments
from vwm.cli.configs import config_names
from vwm.cli.main import main
from vwm.cli.parser import UsageError

FIT, AGENT = ["fit", "-c", "genie/coinrun_small"], ["agent train", "-c", "agents/tdmpc2_pendulum"]


def check(command: str, *argv: str) -> None:
    check_config_arguments(command, expand_arguments(command, list(argv)))


@pytest.mark.parametrize("name", config_names())
def test_shipped_configs_have_no_errors(name: str) -> None:
    try:
        check("agent train" if name.startswith("agents/") else "fit", "-c", name)
    except FileNotFoundError as error:  # data and trained components are missing here
        assert "there is no" in str(error) or "no shards" in str(error)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([*FIT, "--trainer.max_steps", "abc"], "trainer.max_steps: 'abc' must be a whole number"),
        ([*FIT, "--trainer.max_step=3"], "Trainer has no max_step (did you mean max_steps?); it has: "),
        ([*FIT, "--model.dynamics.width", "1.5"], "model.dynamics.width: 1.5 must be a whole number"),
        ([*FIT, "--model.init_args.optimizer.lr", "x"], "model.optimizer.lr: 'x' must be a number"),
        ([*FIT, "--model.optimizer.schedule", "x"], "model.optimizer.schedule: 'x' must be one of constant, "),
        ([*FIT, "--model.optimizer.betas", "[0.9]"], "model.optimizer.betas: [0.9] must have 2 values"),
        ([*FIT, "--data.fields", "frames"], "data.fields: 'frames' must be a list, such as [a, b]"),
        ([*FIT, "--ema.decoy", "1"], "ema.decoy: EMACallback has no decoy (did you mean decay?); it has: decay"),
        ([*FIT, "--model", "vwm.models.genie.GenieModul"], "(did you mean vwm.models.genie.GenieModule?)"),
        ([*FIT, "--trainr.devices", "1"], "there is no key trainr (did you mean trainer?)"),
        ([*AGENT, "--steps", "many"], "steps: 'many' must be a whole number"),
        ([*AGENT, "--evaluation.vidio", "true"], "EvaluationConfig has no vidio (did you mean video?)"),
        ([*AGENT, "--algorithm.env.size", "null"], "algorithm.env.size: None must be a whole number"),
        ([*AGENT, "--algorithm.agent.batch", "3"], "algorithm.agent.batch: TDMPC2 has no batch"),
        ([*FIT, "--threads", "-1"], "threads must be 0 or more and at most 1024, got -1"),
        ([*FIT, "--threads", "100000"], "threads must be 0 or more and at most 1024, got 100000"),
        ([*FIT, "--model.dynamics.width", "0"], "model.dynamics.width must be 1 or more"),
        ([*FIT, "--model.dynamics.depth", "-1"], "model.dynamics.depth must be 1 or more"),
        ([*FIT, "--model.dynamics.context_corruption", "7"], "corruption must be 0 or more and at most 1, got 7"),
        ([*FIT, "--ema.decay", "2"], "ema.decay must be 0 or more and below 1, got 2"),
        ([*FIT, "--ema.decay", "-1"], "ema.decay must be 0 or more and below 1, got -1"),
        ([*FIT, "--model.optimizer.warmup", "-3"], "model.optimizer.warmup must be 0 or more, got -3"),
        ([*FIT, "--model.optimizer.lr", "0"], "model.optimizer.lr must be above 0, got 0"),
        ([*FIT, "--model.optimizer.lr", "nan"], "model.optimizer.lr must be above 0, got nan"),
        ([*FIT, "--data.val_fraction", "-0.5"], "data.val_fraction must be 0 or more and at most 1, got -0.5"),
        ([*FIT, "--data.batch_size", "0"], "data.batch_size must be 1 or more"),
        ([*FIT, "--checkpoint.every", "0"], "checkpoint.every must be 1 or more, got 0"),
        ([*AGENT, "--steps", "0"], "steps must be 1 or more, got 0"),
        ([*AGENT, "--algorithm.agent.planning.horizon", "0"], "algorithm.agent.planning.horizon must be 1 or more"),
        ([*AGENT, "--seed", "-1"], "seed must be 0 or more"),
        ([*FIT, "--model.sampling_steps", "0"], "model.sampling_steps must be 1 or more and at most 1000, got 0"),
        ([*FIT, "--model.context_frames", "0"], "model.context_frames must be 1 or more and at most 4096, got 0"),
        ([*FIT, "--trainer.max_epochs", "-7"], "trainer.max_epochs must be -1 or more, got -7"),
        ([*FIT, "--trainer.val_check_interval", "0"], "trainer.val_check_interval must be above 0, got 0"),
        ([*FIT, "--trainer.limit_val_batches", "-1"], "trainer.limit_val_batches must be 0 or more, got -1"),
        ([*FIT, "--trainer.gradient_clip_val", "-1"], "trainer.gradient_clip_val must be 0 or more, got -1"),
        ([*FIT, "--trainer.precision", "12-true"], "trainer.precision: '12-true' must be one of 32-true, 16-true, "),
        ([*AGENT, "--precision", "x"], "precision: 'x' must be one of 32-true, bf16-mixed"),
        ([*FIT, "--data.workers", "100000"], "data.workers must be 0 or more and at most 1024, got 100000"),
        ([*FIT, "--data.clip_length", "0"], "data.clip_length must be 1 or more and at most 2147483648, got 0"),
        ([*FIT, "--stpes", "3"], "there is no key stpes (did you mean steps?)"),
        (["fit", *AGENT[1:]], "a config of vwm agent train; run vwm agent train -c "),
        (["agent train", *FIT[1:]], "a config of vwm fit; run vwm fit -c "),
    ],
)  # fmt: skip
def test_errors_name_the_key_the_value_and_the_allowed_ones(argv: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        check(*argv)
    assert message in str(error.value)


def test_all_errors_are_reported_at_once(tmp_path: Path) -> None:
    config = tmp_path / "x.yaml"
    config.write_text("trainer: {max_steps: x, devises: 2}\n")
    with pytest.raises(UsageError, match=r"(?s)trainer.max_steps: 'x' must.*trainer.devises: Trainer has no devises"):
        check("fit", "-c", str(config))


@pytest.mark.parametrize(
    "argv",
    [
        ["--model.optimizer.lr", "1e-06"],
        ["--trainer.devices", "[0,1]", "--trainer.precision", "32-true", "--trainer.max_time", "00:01:00:00"],
        ["--seed_everything", "3", "--no-resume", "--compile", "true", "--threads", "1"],
        ["--model.latent_action", "null", "--model.dynamics.class_path", "vwm.models.genie.MaskGITDynamics"],
        ["--help"],
        ["--trainer.nonsense", "1", "--print_config"],
    ],
)
def test_valid_arguments_are_not_reported(argv: list[str], tmp_path: Path) -> None:
    existing_paths = ["--tokenizer", str(tmp_path), "--data", str(tmp_path)]
    check("fit", "-c", "genie/coinrun_small", *existing_paths, *argv)


def test_missing_paths_get_a_suggestion(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with pytest.raises(FileNotFoundError, match=r"model.tokenizer: there is no .*bundel \(did you mean .*bundle\?\)"):
        check(*FIT, "--tokenizer", str(tmp_path / "bundel"))


def test_config_errors_exit_before_torch_is_imported(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["fit", "-c", "genie/coinrun_small", "--trainer.max_steps", "abc"])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == "vwm fit: trainer.max_steps: 'abc' must be a whole number\n"
    code = "import sys; sys.argv[1:] = ['fit', '--threads', 'x']\ntry:\n  from vwm.cli.main import main; main()\n"
    code += "except SystemExit: print(*{'torch', 'lightning', 'diffusers'} & set(sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "" and "'x' must be a whole number" in process.stderr


def test_signatures_follow_inheritance_and_dataclasses() -> None:
    finetuning = find_class("vwm.models.dit.DiTFinetuning")
    assert finetuning is not None and "world" in finetuning.parameters
    assert set(find_class("vwm.rl.EvaluationConfig").parameters) == {"every", "episodes", "env", "video"}
    assert find_class("vwm.rl.Nothing") is None and find_class("nowhere.Thing") is None


@pytest.mark.parametrize(
    ("config", "training", "run"),
    [
        ("genie/coinrun_small", "tokenizer/coinrun_small", "runs/coinrun_small/tokenizer"),
        ("genie/coinrun_keys", "genie/coinrun_actions", "runs/coinrun_keys/actions"),
        ("dit/coinrun_small", "vae/coinrun_small", "runs/coinrun_small/vae"),
        ("dit/carracing_k4", "vae/carracing_k4", "runs/carracing_k4/vae"),
        ("latent_dynamics/mdn_rnn_cartpole", "vae/cartpole_frame", "runs/world_models_cartpole/vae"),
        ("dit/boxing_play", "dit/boxing_small", "runs/boxing_small/dit"),
        ("dit/freeway_play", "dit/freeway_game", "runs/freeway_game/dit"),
        ("vjepa/vjepa2_vitl16_cooldown", "vjepa/vjepa2_vitl16", "runs/vjepa2_vitl16"),
        ("agents/dreamer_v3_coinrun_world", "genie/coinrun_finetune", "runs/coinrun_finetune/genie"),
        ("agents/world_models_cartpole", "latent_dynamics/mdn_rnn_cartpole", "runs/world_models_cartpole/mdn_rnn"),
    ],
)
def test_a_missing_part_of_a_shipped_config_is_named_with_the_commands_that_make_it(
    config: str, training: str, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = "agent train" if config.startswith("agents/") else "fit"
    with pytest.raises(FileNotFoundError, match="make it first: ") as error:
        check(command, "-c", config)
    part = str(error.value).partition("there is no ")[2].partition(";")[0]
    assert str(error.value).endswith(f"make it first: vwm fit -c {training}, then vwm export {run} -o {part}")


def test_a_missing_tokenizer_of_own_data_is_named_with_its_run_and_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    own = ["-c", "genie/coinrun_small", "--data", "mine", "--tokenizer", "runs/mine/bundle"]
    training = "vwm fit -c tokenizer/coinrun_small --data mine --run runs/mine/tokenizer"
    export = "vwm export runs/mine/tokenizer -o runs/mine/bundle"
    with pytest.raises(FileNotFoundError, match=f"make it first: {training}, then {export}$"):
        check("fit", *own)
    checkpoint = tmp_path / "runs/mine/tokenizer/checkpoints/last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    with pytest.raises(FileNotFoundError, match=f"make it first: {export}$"):
        check("fit", *own)
    with pytest.raises(FileNotFoundError, match="tokenizer/coinrun_small --data mine, then"):
        check("fit", *own[:-2])


@pytest.mark.parametrize("argv", [FIT, AGENT])
def test_a_value_that_is_nested_without_end_is_named(argv: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^seed: nested deeper than 50 levels$|^seed_everything: nested deeper"):
        check(*argv, "--seed", "[" * 50_000)
