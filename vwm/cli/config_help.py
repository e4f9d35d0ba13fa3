"""The help of ``vwm fit`` and ``vwm agent train``: what people change most. ``--help-all`` lists every key."""

from __future__ import annotations

from collections.abc import Mapping

from vwm.cli.commands import COMMANDS
from vwm.cli.configs import config_names, config_summary
from vwm.cli.signatures import SHARED_HELP

COMMON_OPTIONS = {
    "-c, --config NAME": "a YAML file, or a config that comes with vwm; of several, later ones override earlier ones",
    "--run PATH": "folder of everything that the run writes",
    "--steps N": "length of the training",
    "--seed N": "seed of everything random",
    "--device TEXT": SHARED_HELP["device"],
    "--threads N": "CPU threads of torch; 0 leaves torch's choice",
    "--compile": "torch.compile the networks, which is done anyway on a GPU (--compile false does not)",
    "--wandb PROJECT": "log to Weights & Biases",
    "--tensorboard": "also write TensorBoard's files",
    "--KEY.KEY VALUE": "any key of the config",
    "--print-config": "print every key and its value",
    "--help-all": "list every key with its meaning",
}
CONFIG_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "fit": {
        "--data PATH": "shards to train on",
        "--batch N": "clips per batch",
        "--tokenizer PATH": "bundle or folder of the trained tokenizer",
        "--encode-ahead": "encode the data once, next to it, where a frozen tokenizer would in every step",
        "--context-parallel N": "processes that share each clip: for clips too long for the memory of one",
        "--no-resume": "start again instead of continuing from the run's last checkpoint",
        "--float8 RECIPE": "tensorwise or rowwise: large linear layers multiply in float8 (pip install 'vwm[float8]')",
        "--gradient-checkpointing HOW": "none, selective or full: recompute activations to save memory",
    },
    "estimate": {
        "--strategy NAME": "ddp, fsdp, hsdp, or hsdp-REPLICASxSHARDS",
        "--ranks A,B": "numbers of processes, one a device",
        "--batch N": "clips that a process computes at once",
        "--global-batch N": "clips of a step of all processes; by default those of every process",
        "--context-parallel N": "processes that share a clip",
        "--precision NAME": "bf16-mixed or 32-true",
        "--gradient-checkpointing HOW": "none, selective or full: recompute activations to save memory",
        "--hours X": "hours of video of the corpus",
        "--fps X": "its frames a second",
        "--stored-bytes N": "bytes of a clip in the shards; estimated where it is not given",
        "--cluster.NAME X": "a rate of the machines: teraflops, mfu, network_gigabytes, ... (see --help-all)",
        "--kernels NAME": "cuda or cpu: the device whose attention kernels count",
        "--json": "print JSON",
    },
    "agent train": {"--precision NAME": "32-true or bf16-mixed, for updates"},
}
"""Options of one command, in addition to the common ones."""

CONTINUES = "The same command continues a run that stopped."


def config_help(command: str) -> str:
    """Return the help of a command whose arguments are the keys of a config.

    Args:
        command: ``fit`` or ``agent train``.
    """
    options = {**COMMON_OPTIONS, **CONFIG_OPTIONS[command]}
    width = max(map(len, options))
    summary = COMMANDS[command].summary
    names = [name for name in config_names() if name.startswith("agents/") == (command == "agent train")]
    return "\n".join(
        [
            f"usage: vwm {command} -c NAME [--OPTION VALUE ...]",
            "",
            f"{summary[0].upper()}{summary[1:]}. {CONTINUES if command != 'estimate' else ''}".rstrip(),
            "",
            "options:",
            *(f"  {option:<{width}}  {text}" for option, text in options.items()),
            "",
            "configs:",
            *(f"  {name:<{max(map(len, names))}}  {config_summary(name)}" for name in names),
            "",
            "examples:",
            *(f"  {example}" for example in COMMANDS[command].examples),
        ]
    )
