"""Losses, gradients and weights of Lightning modules and tokenizers over a few steps."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from factories import diffusion_world, dit, dream, genie, jepa_parts, latent_action, randomize, tokenizer
from factories import dynamics as maskgit
from hashing import case, hashed, put, put_weights
from small_networks import clips, pictures
from torch import Tensor

from vwm.core.components import load_component, save_component
from vwm.core.frames import frames_to_float
from vwm.core.spaces import ActionSpace
from vwm.data.clips import ClipBatch
from vwm.models.dit.agent_module import DiTAgentModule
from vwm.models.dit.finetuning import DiTFinetuning
from vwm.models.dit.module import DiTModule
from vwm.models.dit.objectives import DiffusionForcing, ShortcutForcing
from vwm.models.dit.policy_heads import PolicyRewardHeads
from vwm.models.genie.finetuning import GenieFinetuning
from vwm.models.genie.module import GenieModule
from vwm.models.mdn_rnn.module import MDNRNNModule
from vwm.models.vjepa.action_conditioned_module import ActionConditionedJEPAModule, AntiCollapseConfig
from vwm.models.vjepa.augmentation import RandomResizedCrop
from vwm.models.vjepa.collapse_regularizers import SIGReg, VarianceCovarianceRegularizer
from vwm.models.vjepa.masked_predictor import MaskedPredictor
from vwm.models.vjepa.masking import ContextBlockMaskSampler, MultiBlockMaskSampler
from vwm.models.vjepa.module import VJEPAModule
from vwm.models.vjepa.motion_branch import MotionBranch
from vwm.models.vjepa.video_encoder import VideoEncoder
from vwm.nn.lora import LoRAConfig
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.outcome_heads import RewardTerminationHeads
from vwm.tokenizers.adversarial import AdversarialLoss
from vwm.tokenizers.causal_vae import CausalVAE
from vwm.tokenizers.frame_vae import FrameVAE
from vwm.tokenizers.latent_statistics import measure_latent_statistics
from vwm.tokenizers.masked_autoencoder import MaskedAutoencoderTokenizer
from vwm.tokenizers.module import TokenizerModule
from vwm.tokenizers.pixel_tokenizer import PixelTokenizer
from vwm.worlds.bundle import save_simulator


class Trainer:
    """As much of Lightning's as a module asks for."""

    max_steps, global_step, is_global_zero, global_rank, world_size, current_epoch = 10, 0, True, 0, 1, 0
    loggers: tuple[Any, ...] = ()
    callbacks: tuple[Any, ...] = ()


def train(name: str, module: Any, batch: ClipBatch, steps: int = 2, sample: bool = True) -> None:
    trainer, logged = Trainer(), {}
    module.trainer = trainer
    module.log = lambda key, value, **_: logged.update({key: value})
    module.log_dict = lambda values, **_: logged.update(values)
    put_weights(f"{name}/begun", module)
    configured = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    module.train()
    torch.manual_seed(0)
    for step in range(steps):
        logged.clear()
        module.on_train_batch_start(batch, step)
        moved = module.on_before_batch_transfer(batch, 0)
        loss = module.training_step(moved, step)
        put(f"{name}/step{step}/loss", loss)
        for key, value in logged.items():
            put(f"{name}/step{step}/log/{key}", value)
        optimizer.zero_grad()
        loss.backward()
        put(
            f"{name}/step{step}/gradients",
            sorted(hashed(p.grad) for p in module.parameters() if p.grad is not None),
        )
        if step + 1 < steps:

            def closure(loss: Tensor = loss) -> Tensor:
                trainer.global_step += 1
                return loss

            module.optimizer_step(0, step, optimizer, closure)
            schedule.step()
    put_weights(name, module)
    module.eval()
    logged.clear()
    with torch.no_grad():
        module.validation_step(module.on_before_batch_transfer(batch, 0), 0)
        for key, value in logged.items():
            put(f"{name}/validation/{key}", value)
        if sample:
            put(f"{name}/sample", module.sample(batch))
    put(f"{name}/networks", sorted(module.networks()))


FAST = OptimizerConfig(warmup=1, lr=1e-2)
OPTIMIZERS = {
    "adamw": FAST,
    "cosine": OptimizerConfig(warmup=2, lr=1e-2, schedule="cosine", final_weight_decay=0.1, stretch=1.25),
    "muon": OptimizerConfig(name="muon", warmup=1, lr=1e-2),
}


def vae(**changes: Any) -> CausalVAE:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"latent_channels": 4, "patch_size": 2, "widths": [8, 8], "depths": [1, 1], **changes}
    return randomize(CausalVAE((16, 16), **settings))


def masked_autoencoder() -> MaskedAutoencoderTokenizer:
    torch.manual_seed(0)
    return randomize(
        MaskedAutoencoderTokenizer(
            (16, 16), patch_size=4, latent_grid=(2, 3), latent_channels=4, width=16, depth=2, heads=2, window=4,
            time_every=2,
        )
    )  # fmt: skip


def frame_vae(**changes: Any) -> FrameVAE:
    torch.manual_seed(0)
    return randomize(FrameVAE((16, 16), latent_size=6, widths=[8, 8], **changes))


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "space_time_fsq": tokenizer,
    "space_time_vq": lambda: tokenizer(16),
    "vae_kl": vae,
    "vae_vq": lambda: vae(codebook=16),
    "vae_fsq": lambda: vae(codebook=[5, 4, 3]),
    "masked_autoencoder": masked_autoencoder,
    "frame_vae": frame_vae,
    "frame_vae_centred": lambda: frame_vae(subtract_mean_frame=True),
}


def tokenizer_module(name: str, make: Callable[[], Any], optimizer: str = "adamw", adversary: bool = False) -> None:
    adversarial = None
    if adversary:
        torch.manual_seed(1)
        adversarial = AdversarialLoss(start_step=0, width=4, layers=2)
    train(name, TokenizerModule(make(), OPTIMIZERS[optimizer], l1_weight=0.1, adversarial=adversarial), clips(2, 5, 16))


def tokenizer_streams(name: str, make: Callable[[], Any]) -> None:
    network = make().eval()
    video = frames_to_float(pictures(2, 5, 16, 16, seed=1))
    with torch.no_grad():
        if network.channels:
            put(f"{name}/measured", list(measure_latent_statistics(network, [pictures(2, 5, 16, 16, seed=2)])))
        latents = network.encode(video)
        put(f"{name}/latents", latents)
        put(f"{name}/video", network.decode(latents))
        _, one = network.encode_step(network.init_encoder(2), video)
        put(f"{name}/encode_step", one)
        _, back = network.decode_step(network.init_decoder(2), one)
        put(f"{name}/decode_step", back)
    with tempfile.TemporaryDirectory() as folder:
        save_component(network, Path(folder) / "part")
        put_weights(f"{name}/saved", load_component(Path(folder) / "part"))


def genie_module(name: str, labeled: bool = False, outcomes: bool = False) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_component(tokenizer(), Path(folder) / "tokenizer")
        torch.manual_seed(0)
        heads = randomize(RewardTerminationHeads(width=16, hidden=16)) if outcomes else None
        module = GenieModule(
            folder, maskgit(), FAST, None if labeled else latent_action(), context_frames=2, outcomes=heads
        )
        train(name, module, clips(3, 6, 16))


def genie_finetuning(name: str, adapt: Any, outcomes: bool = False) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_simulator(genie(), Path(folder) / "latent")
        torch.manual_seed(0)
        module = GenieFinetuning(
            str(Path(folder) / "latent"), num_actions=3, optimizer=OptimizerConfig(warmup=0, lr=1e-2),
            context_frames=2, adapt=adapt, outcomes=randomize(RewardTerminationHeads(width=16, hidden=16)) if outcomes
            else None,
        )  # fmt: skip
        batch = clips(3, 6, 16, choices=3)
        module.initialize_action_map([batch])
        put_weights(f"{name}/map", module)
        train(name, module, batch)
        module.merge()
        put_weights(f"{name}/merged", module)


OBJECTIVES: dict[str, tuple[dict[str, Any], Callable[[], Any]]] = {
    "velocity": ({}, DiffusionForcing),
    "v": ({"prediction": "v"}, lambda: DiffusionForcing("v", density="uniform", shift=3.0)),
    "shortcut": ({"prediction": "clean", "num_step_sizes": 3}, lambda: ShortcutForcing(finest=4, bootstrap=0.5)),
}


def dit_module(name: str, objective: str, context: Any = "clean", outcomes: bool = False, **changes: Any) -> None:
    settings, make = OBJECTIVES[objective]
    module = DiTModule(
        PixelTokenizer((8, 8), patch_size=2), dit(grid=(4, 4), channels=12, **settings, **changes), make(), FAST,
        context=context, action_dropout=0.2, context_frames=2,
        outcomes=randomize(RewardTerminationHeads(width=32, hidden=16)) if outcomes else None,
    )  # fmt: skip
    train(name, module, clips(3, 6, 8, labeled=torch.tensor([True, False, True])))


def agent_module(name: str, objective: str, context: Any = "clean") -> None:
    settings, make = OBJECTIVES[objective]
    torch.manual_seed(0)
    module = DiTAgentModule(
        dynamics=dit(grid=(4, 4), channels=12, agent_tokens=2, **settings),
        policy=randomize(PolicyRewardHeads(32, num_actions=4, hidden=16, length=3, bins=21)),
        tokenizer=PixelTokenizer((8, 8), patch_size=2),
        objective=make(),
        optimizer=FAST,
        outcomes=randomize(RewardTerminationHeads(width=32, hidden=16, bins=21)),
        context=context,
        context_frames=2,
    )
    train(name, module, clips(3, 6, 8))


def dit_finetuning(name: str, adapt: Any, dims: int = 0) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = diffusion_world(num_actions=0)
        world.spec = replace(world.spec, actions=ActionSpace("discrete", 1, ("go on",)))
        save_simulator(world, Path(folder) / "unlabeled")
        torch.manual_seed(0)
        module = DiTFinetuning(
            str(Path(folder) / "unlabeled"), objective=DiffusionForcing(), optimizer=OptimizerConfig(warmup=0,
            lr=1e-2),
            num_actions=0 if dims else 3, action_dims=dims, adapt=adapt, lora=LoRAConfig(rank=2) if adapt == "lora" else None, context_frames=2,  # noqa: E501
            outcomes=randomize(RewardTerminationHeads(32, 16)),
        )  # fmt: skip
        taken = torch.rand(2, 5, dims, generator=torch.Generator().manual_seed(1)) * 2 - 1 if dims else None
        batch = clips(2, 5, 8, choices=3, **({"actions": taken} if dims else {}))
        train(name, module, batch)
        module.merge()
        put_weights(f"{name}/merged", module)


def mdn_module(name: str, action_dropout: float = 0.0, **changes: Any) -> None:
    world = dream(**changes)
    module = MDNRNNModule(world.tokenizer, world.dynamics, FAST, action_dropout=action_dropout)
    train(name, module, clips(3, 6, 8))


SIZES: dict[str, Any] = {"image_size": (16, 16), "frames": 4, "tubelet": 2, "patch_size": 4, "heads": 2, "depth": 2}


def vjepa_module(
    name: str, encoder: Mapping[str, Any], predictor: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    torch.manual_seed(0)
    seer = randomize(VideoEncoder(**{"width": 24, **SIZES, **encoder}))
    sayer = randomize(MaskedPredictor(**{"encoder_width": 24, "width": 16, **SIZES, **predictor}))
    masks = [
        MultiBlockMaskSampler(2, (0.2, 0.3)),
        MultiBlockMaskSampler(1, (0.5, 0.5)),
        ContextBlockMaskSampler(num_targets=2),
    ]
    module = VJEPAModule(seer, sayer, **{"mask_samplers": masks, "optimizer": OPTIMIZERS["cosine"], **settings})
    train(name, module, clips(4, 4, 16))


def action_module(name: str, settings: Mapping[str, Any], frozen: bool = False, **parts: Any) -> None:
    networks = jepa_parts(**parts)
    with tempfile.TemporaryDirectory() as folder:
        if frozen:
            save_component(networks["encoder"], Path(folder) / "encoder")
            networks["encoder"] = folder
        module = ActionConditionedJEPAModule(**networks, optimizer=FAST, context_frames=2, **settings)
    if module.inverse_dynamics is not None:
        randomize(module.inverse_dynamics)
    more: dict[str, Any] = {"state": torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(2))}
    if parts.get("action_dims"):
        more["actions"] = torch.rand(3, 6, 2, generator=torch.Generator().manual_seed(3)) * 2 - 1
    train(name, module, clips(3, 6, 8, **more))


def modules() -> None:
    for kind, make in TOKENIZERS.items():
        case(f"module/tokenizer/{kind}", tokenizer_module, make)
        case(f"tokenizer/{kind}", tokenizer_streams, make)
    case("module/tokenizer/adversarial", tokenizer_module, vae, adversary=True)
    for name in ("cosine", "muon"):
        case(f"module/tokenizer/{name}", tokenizer_module, vae, name)
    case("module/genie", genie_module)
    case("module/genie_labelled", genie_module, True)
    case("module/genie_outcomes", genie_module, True, True)
    for adapt in ("frozen", "lora", "trained"):
        case(f"module/genie_finetuning/{adapt}", genie_finetuning, adapt, adapt == "trained")
        case(f"module/dit_finetuning/{adapt}", dit_finetuning, adapt)
    case("module/dit_finetuning/continuous", dit_finetuning, "lora", 2)
    for objective in OBJECTIVES:
        case(f"module/dit/{objective}", dit_module, objective)
        case(f"module/dit/{objective}_noisy_outcomes", dit_module, objective, "noisy", True)
        case(f"module/agent/{objective}", agent_module, objective)
    case("module/dit/outcomes", dit_module, "velocity", "clean", True)
    case("module/dit/agent_noisy", agent_module, "velocity", "noisy")
    case("module/dit/bidirectional", dit_module, "velocity", "noisy", causal=False)
    case("module/dit/kv_heads", dit_module, "velocity", kv_heads=1)
    case("module/mdn_rnn", mdn_module)
    case("module/mdn_rnn_reward", mdn_module, predict_reward=True)
    case("module/mdn_rnn_unknown", mdn_module, 0.5, allow_unknown_actions=True)
    plain: dict[str, Any] = {}
    case("module/vjepa", vjepa_module, plain, plain, plain)
    case(
        "module/vjepa_no_momentum", vjepa_module, plain, plain, {"momentum": None, "regularizer": SIGReg(num_slices=8)}
    )
    motion = {
        "motion": MotionBranch(24, 8, radius=1),
        "regularizer": VarianceCovarianceRegularizer(),
        "augmentation": RandomResizedCrop(),
    }
    case("module/vjepa_motion", vjepa_module, plain, plain, motion)
    for kind, encoder in {"sincos": {"positions": "sincos"}, "swiglu": {"mlp": "swiglu"}}.items():
        case(f"module/vjepa_{kind}", vjepa_module, encoder, plain, plain)
    everything = AntiCollapseConfig(VarianceCovarianceRegularizer(), smoothness_weight=0.5, inverse_dynamics_weight=0.5)
    case("module/action", action_module, {"anti_collapse": everything})
    case(
        "module/action_l2_rollout",
        action_module,
        {"loss_type": "l2", "rollout_steps": 3, "rollout_context_frames": 2},
        pooling="flatten",
    )
    case(
        "module/action_dropout", action_module,
        {"anti_collapse": everything, "proprioception_dropout": 0.5, "action_dropout": 0.3},
        proprioception_dims=2, allow_unknown_actions=True,
    )  # fmt: skip
    case("module/action_frozen", action_module, {}, True, action_dims=2)
    case(
        "module/action_no_decoder",
        action_module,
        {"anti_collapse": AntiCollapseConfig(SIGReg(num_slices=8))},
        decoder=False,
    )
