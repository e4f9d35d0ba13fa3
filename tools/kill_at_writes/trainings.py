"""``vwm fit`` of every family, and the exports of its runs, with networks of a few hundred weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from killing import Command
from results import check_run, folder_bytes, training_state

from vwm.cli.main import main as vwm_main
from vwm.core.components import load_component
from vwm.tokenizers import load_tokenizer
from vwm.worlds.bundle import load_simulator

STEPS = 4
COMMON = {
    "seed_everything": 1,
    "threads": 1,
    "trainer": {
        "accelerator": "cpu", "precision": "32-true", "max_steps": STEPS, "val_check_interval": 2,
        "check_val_every_n_epoch": None, "limit_val_batches": 1, "log_every_n_steps": 1, "num_sanity_val_steps": 0,
        "enable_progress_bar": False, "enable_model_summary": False,
    },
    "ema": {"decay": 0.9},
    "samples": {"every": 3, "clips": 1},
    "checkpoint": {"every": 1, "keep_every_n_steps": 3},
    "data": {
        "class_path": "vwm.data.VideoDataModule",
        "init_args": {"clip_length": 4, "batch_size": 2, "workers": 0, "val_fraction": 0.3},
    },
}  # fmt: skip
SMALL = {"width": 8, "depth": 1, "heads": 1, "window": 4}
IMAGE = {"image_size": [16, 16]}
OPTIMIZER = {"name": "muon", "lr": 0.005, "warmup": 2, "schedule": "cosine"}
LABELS = ["frames", "actions", "rewards", "terminated"]


def make(path: str, **settings: Any) -> dict[str, Any]:
    """Return the config of an object."""
    return {"class_path": f"vwm.{path}", "init_args": settings}


def tokenizer(kind: str, **settings: Any) -> dict[str, Any]:
    return make(
        "tokenizers.TokenizerModule", tokenizer=make(f"tokenizers.{kind}", **IMAGE, **settings), optimizer=OPTIMIZER
    )


def world(path: str, **settings: Any) -> dict[str, Any]:
    return make(path, optimizer=OPTIMIZER, **settings)


PATCHES = {"patch_size": 4, **SMALL}
VAE = {"latent_channels": 4, "time_compression": 1, "patch_size": 2, "widths": [8, 8], "depths": [1, 1]}
DIT = {"grid": [4, 4], "channels": 48, "num_actions": 2, **SMALL, "depth": 2}
PIXELS = make("tokenizers.PixelTokenizer", **IMAGE, patch_size=4)
SHORTCUT = make("models.dit.ShortcutForcing", finest=4, bootstrap=0.5)
OUTCOMES = make("nn.RewardTerminationHeads", width=8, hidden=8)
JEPA = {**IMAGE, "frames": 4, "tubelet": 2, "patch_size": 4, "width": 12, "depth": 1, "heads": 1}
SHORTCUT_DIT = make("models.dit.DiT", **DIT, prediction="clean", num_step_sizes=3)
MODELS: dict[str, dict[str, Any]] = {
    "tokenizer": tokenizer("SpaceTimeTokenizer", codebook=[3, 3], **PATCHES),
    "vq": tokenizer("SpaceTimeTokenizer", codebook=12, code_width=4, **PATCHES),
    "mae": tokenizer(
        "MaskedAutoencoderTokenizer",
        latent_grid=[2, 2],
        latent_channels=4,
        **{**PATCHES, "depth": 2, "time_every": 2},
    ),
    "vae": tokenizer("CausalVAE", **VAE),
    "fsq_vae": tokenizer("CausalVAE", codebook=[3, 3], **VAE),
    "frame_vae": tokenizer("FrameVAE", latent_size=4, widths=[4, 4], subtract_mean_frame=True),
    "genie": world(
        "models.genie.GenieModule",
        tokenizer="{home}/tokenizer/out",
        latent_action=make("models.genie.LatentActionModel", **IMAGE, codebook=[2, 2], **PATCHES),
        dynamics=make("models.genie.MaskGITDynamics", codebook_size=9, tokens_per_frame=16, num_actions=4, **SMALL),
        context_frames=2,
        sampling_steps=2,
    ),
    "genie_finetuning": world(
        "models.genie.GenieFinetuning", world="{home}/genie/out", num_actions=2, adapt="trained", outcomes=OUTCOMES,
        context_frames=2, sampling_steps=2,
    ),
    "dit": world(
        "models.dit.DiTModule", tokenizer=PIXELS, dynamics=SHORTCUT_DIT, objective=SHORTCUT, outcomes=OUTCOMES,
        action_dropout=0.3, context_frames=2, sampling_steps=2,
    ),
    "diffusion": world(
        "models.dit.DiTModule", tokenizer="{home}/vae/out",
        dynamics=make("models.dit.DiT", **{**DIT, "channels": 4, "prediction": "velocity"}),
        objective=make("models.dit.DiffusionForcing", prediction="velocity"), context_frames=2, sampling_steps=2,
    ),
    "dit_finetuning": world(
        "models.dit.DiTFinetuning", world="{home}/dit/out", num_actions=2, adapt="trained", objective=SHORTCUT,
        outcomes=OUTCOMES, context_frames=2, sampling_steps=2,
    ),
    "dit_agent": world(
        "models.dit.DiTAgentModule", tokenizer=PIXELS,
        dynamics=make("models.dit.DiT", **DIT, prediction="clean", num_step_sizes=3, agent_tokens=1),
        objective=SHORTCUT, outcomes=OUTCOMES, context_frames=2, sampling_steps=2,
        policy=make("models.dit.PolicyRewardHeads", width=8, num_actions=2, hidden=8, length=2),
    ),
    "vjepa": make(
        "models.vjepa.VJEPAModule",
        encoder=make("models.vjepa.VideoEncoder", **JEPA),
        predictor=make("models.vjepa.MaskedPredictor", encoder_width=12, **JEPA),
        mask_samplers=[make("models.vjepa.MultiBlockMaskSampler", num_blocks=1, spatial_scale=[0.3, 0.5])],
        momentum={"start": 0.9, "end": 0.99},
        regularizer=make("models.vjepa.SIGReg", num_slices=8),
        optimizer={"lr": 0.003, "warmup": 2},
    ),
    "vjepa_ac": make(
        "models.vjepa.ActionConditionedJEPAModule",
        encoder=make("models.vjepa.ConvFrameEncoder", **IMAGE, widths=[8, 8], blocks_per_stage=0),
        projector=make("models.vjepa.LatentProjector", grid=[4, 4], width=8, pooling="flatten", latent_width=4),
        dynamics=make("models.vjepa.ActionConditionedPredictor", latent_width=4, num_actions=2, **SMALL),
        decoder=make("models.vjepa.LatentDecoder", **IMAGE, latent_width=4, widths=[8, 8]),
        anti_collapse={
            "regularizer": make("models.vjepa.VarianceCovarianceRegularizer"), "inverse_dynamics_weight": 1.0,
        },
        optimizer={"lr": 0.003, "warmup": 2},
        rollout_steps=2,
    ),
    "mdn_rnn": world(
        "models.mdn_rnn.MDNRNNModule", tokenizer="{home}/frame_vae/out", action_dropout=0.1,
        dynamics=make("models.mdn_rnn.MDNRNN", latent_size=4, num_actions=2, hidden_size=8, allow_unknown_actions=True),
    ),
}  # fmt: skip
"""Models by family; ``{home}`` stands for the folder of the case."""
FIELDS = {
    "genie": ["frames", "actions"], "genie_finetuning": LABELS, "dit": LABELS, "diffusion": ["frames", "actions"],
    "dit_finetuning": LABELS, "dit_agent": LABELS, "vjepa_ac": ["frames", "actions"],
    "mdn_rnn": ["actions", "terminated", "latents", "latents_std"],
}  # fmt: skip
NEEDS = {
    "genie": "tokenizer", "genie_finetuning": "genie", "diffusion": "vae", "dit_finetuning": "dit",
    "mdn_rnn": "frame_vae",
}  # fmt: skip
"""Families over the exported run of another one."""
TOKENIZERS = ("tokenizer", "vq", "mae", "vae", "fsq_vae", "frame_vae")


def record_argv(home: Path) -> list[str]:
    return [
        "record", "CartPole-v1", str(home / "data"), "--frames", "90", "--frames-per-shard", "30", "--size", "16",
        "--workers", "0",
    ]  # fmt: skip


def prepare_data(home: Path) -> None:
    vwm_main(record_argv(home))


def prepare_fit(family: str, home: Path) -> None:
    """Record, write the configs of a family, and train and export what it stands on."""
    if not (home / "data").exists():
        prepare_data(home)
    if family in NEEDS:
        prepare_export(NEEDS[family], home)
    data = home / "data"
    if family == "mdn_rnn":
        data = home / "latents"
        vwm_main(
            [
                "encode",
                str(home / "data"),
                "--tokenizer",
                str(home / "frame_vae" / "out"),
                "-o",
                str(data),
                "--device",
                "cpu",
            ]
        )
    (home / "common.yaml").write_text(yaml.safe_dump(COMMON))
    text = yaml.safe_dump({
        "base": "common.yaml", "run": f"{home}/{family}/run", "model": MODELS[family],
        "data": {"init_args": {"path": str(data), "fields": FIELDS.get(family, ["frames"])}},
    }, sort_keys=False)  # fmt: skip
    (home / f"{family}.yaml").write_text(text.replace("{home}", str(home)))


def fit_argv(family: str, home: Path, *arguments: str) -> list[str]:
    return ["fit", "-c", str(home / f"{family}.yaml"), *arguments]


def prepare_export(family: str, home: Path) -> None:
    """Train a family and export its run, as ``old`` with the last weights."""
    prepare_fit(family, home)
    vwm_main(fit_argv(family, home))
    old = ["--weights", "last", *(() if family in TOKENIZERS else ("--title", "old"))]
    vwm_main([*export_argv(family, home), *old])


def export_argv(family: str, home: Path) -> list[str]:
    return ["export", f"{home}/{family}/run", "-o", f"{home}/{family}/out", "--starts", "2", "--context", "2"]


def fit_command(family: str) -> Command:
    return Command(
        prepare=lambda home: prepare_fit(family, home),
        argv=lambda home: fit_argv(family, home),
        result=training_state,
        check=lambda home: check_run(home / family / "run"),
    )


def extending_command(family: str) -> Command:
    """Return the command that goes on with a run that had ended: what there was must stay readable."""

    def prepare(home: Path) -> None:
        prepare_fit(family, home)
        vwm_main(fit_argv(family, home, "--steps", "2"))

    def check(home: Path) -> None:
        check_run(home / family / "run", must_exist=True)

    return fit_command(family)._replace(prepare=prepare, check=check)


def export_command(family: str, load: Callable[[Path], Any]) -> Command:
    """Return the command that exports over an older bundle."""
    return Command(
        prepare=lambda home: prepare_export(family, home),
        argv=lambda home: export_argv(family, home),
        result=folder_bytes,
        check=lambda home: load(home / family / "out"),
        replaces=f"{family}/out",
    )


def load_networks(folder: Path) -> None:
    for name in ("encoder", "predictor"):
        load_component(folder / name)


def load_world(folder: Path) -> None:
    load_simulator(folder, device="cpu")


WORLDS = ("genie", "dit", "dit_agent", "vjepa_ac", "mdn_rnn")
COMMANDS = {
    **{f"fit {family}": fit_command(family) for family in MODELS},
    "fit longer": extending_command("dit"),
    **{f"export {family}": export_command(family, load_tokenizer) for family in TOKENIZERS},
    "export vjepa": export_command("vjepa", load_networks),
    **{f"export {family}": export_command(family, load_world) for family in WORLDS},
}
