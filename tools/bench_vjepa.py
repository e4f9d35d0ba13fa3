"""Benchmark V-JEPA's training step against vjepa2's modules, with equal weights, masks, shapes and settings.

    python tools/bench_vjepa.py --vjepa2 PATH --size tiny
    python tools/bench_vjepa.py --vjepa2 PATH --size large --device cuda --bfloat16 --compile

PATH is a checkout of github.com/facebookresearch/vjepa2 (MIT). Its side does what its app/vjepa/train.py does with a
batch: the target encoder on whole clips, the encoder and the predictor on two masks, the loss, backward, AdamW (with a
gradient scaler in bfloat16), and the moving average. Ours is the module that ``vwm fit`` trains. First both are
checked for equal losses; then they alternate in one process.

Legend: b batch, n tokens of a clip, k visible, m predicted, d width.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timing import Times, medians, race, save
from torch import Tensor, nn
from torch.nn import functional as F

from vwm.models.vjepa.masked_clips import MaskedClips
from vwm.models.vjepa.masking import MultiBlockMaskSampler, TokenMask
from vwm.models.vjepa.module import VJEPAModule, update_target_encoder
from vwm.models.vjepa.official_weights import IMAGENET_MEAN, IMAGENET_STD, load_official_vjepa
from vwm.nn.optimizer import OptimizerConfig

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"width": 192, "depth": 12, "heads": 3, "frames": 8, "pixels": 128, "batch": 4},
    "small": {"width": 384, "depth": 12, "heads": 6, "frames": 16, "pixels": 128, "batch": 2},
    "large": {"width": 1024, "depth": 24, "heads": 16, "frames": 16, "pixels": 256, "batch": 16},
}
PATCH, TUBELET, PREDICTOR = 16, 2, {"width": 384, "depth": 12, "heads": 12}
MASKS = [{"num_blocks": 8, "spatial_scale": (0.15, 0.15)}, {"num_blocks": 2, "spatial_scale": (0.7, 0.7)}]
"""V-JEPA 2's, of the whole clip's length."""
LR, DECAY, BETAS, MOMENTUM = 5.25e-4, 0.04, (0.9, 0.999), 0.99925
PEAK = {"H100": 989e12, "H200": 989e12}
"""Dense bf16 operations per second according to NVIDIA."""

Step = Callable[[], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vjepa2", type=Path, required=True, help="a checkout of the official code")
    parser.add_argument("--size", choices=SIZES, default="tiny", help="size of the encoder and the clips")
    parser.add_argument("--batch", type=int, help="clips per step; by default that of the size")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--repeats", type=int, default=7, help="rounds in which the two take turns")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--bfloat16", action="store_true", help="autocast in bfloat16 on both sides")
    parser.add_argument("--compile", action="store_true", help="also time ours with compiled layers")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    size = SIZES[options.size] | ({} if options.batch is None else {"batch": options.batch})
    print(
        f"torch {torch.__version__}, {options.device}, {options.threads} threads, "
        f"{'bfloat16 autocast' if options.bfloat16 else 'float32'}, medians of {options.repeats} interleaved repeats"
    )
    theirs = Official(options.vjepa2, size, options.device, options.bfloat16)
    masks = draw_masks(size, options.device)
    pixels = torch.randint(
        0, 256, (size["batch"], size["frames"], size["pixels"], size["pixels"], 3), dtype=torch.uint8
    )
    ours = our_module(theirs, size, options.device)
    describe(theirs, ours, masks, size)
    batch = MaskedClips(**clips_of(pixels.to(options.device)), masks=masks)
    normalized = imagenet(pixels).to(options.device)
    steps: dict[str, Step] = {
        "vjepa2": partial(theirs.step, normalized, masks),
        "vwm": our_step(ours, batch, options),
    }
    check_equal_losses(steps, options)
    if options.compile:
        compiled = copy.deepcopy(ours)
        for part in (compiled.encoder, compiled.target_encoder, compiled.predictor):
            assert part is not None
            for block in part.blocks:
                block.compile()
        steps["vwm, compiled"] = our_step(compiled, batch, options)
    figures = race(steps, options.repeats, options.device)
    table(figures, operations(ours, masks, size), options)


# ------------------------------------------------------------------------------------------------- the official side


class Official:
    """The modules of vjepa2, and a training step as in its train.py."""

    def __init__(self, path: Path, size: dict[str, int], device: str, bfloat16: bool) -> None:
        if not (path / "src/models/vision_transformer.py").is_file():
            raise SystemExit(f"--vjepa2 {path} holds no src/models/vision_transformer.py")
        sys.path.insert(0, str(path))
        warnings.simplefilter("ignore", FutureWarning)  # names that torch and timm have moved since
        from src.masks.utils import apply_masks
        from src.models.predictor import vit_predictor
        from src.models.vision_transformer import VisionTransformer
        from src.utils.wrappers import MultiSeqWrapper, PredictorMultiSeqWrapper

        self.apply_masks, self.device, self.bfloat16 = apply_masks, device.split(":")[0], bfloat16
        shared = {
            "img_size": (size["pixels"], size["pixels"]), "patch_size": PATCH, "num_frames": size["frames"],
            "tubelet_size": TUBELET, "use_sdpa": True, "use_rope": True, "uniform_power": True,
        }  # fmt: skip
        encoder = VisionTransformer(
            **shared, embed_dim=size["width"], depth=size["depth"], num_heads=size["heads"], mlp_ratio=4,
            qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )  # fmt: skip
        # With clips of one length train.py uses the first mask token for every mask; ours would use one for each.
        predictor = vit_predictor(
            **shared, embed_dim=size["width"], predictor_embed_dim=PREDICTOR["width"], depth=PREDICTOR["depth"],
            num_heads=PREDICTOR["heads"], use_mask_tokens=True, num_mask_tokens=1,
        )  # fmt: skip
        self.encoder = MultiSeqWrapper(encoder).to(device)
        self.predictor = PredictorMultiSeqWrapper(predictor).to(device)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        groups = []
        for decayed in (True, False):
            for network in (self.encoder, self.predictor):
                named = network.named_parameters()
                weights = [p for name, p in named if ("bias" not in name and p.ndim != 1) == decayed]
                groups.append({"params": weights, "weight_decay": DECAY if decayed else 0.0})
        self.optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=1e-8)
        self.scaler = torch.amp.GradScaler(self.device, enabled=bfloat16)

    def loss(self, video: Tensor, masks: list[TokenMask]) -> Tensor:
        """Compute the loss as in train.py: lists over clip lengths, of lists over masks."""
        clips, keeps = [video], [[mask.context_indices for mask in masks]]
        aims = [[mask.target_indices[0] for mask in masks]]
        with torch.no_grad():
            h = [F.layer_norm(x, (x.size(-1),)) for x in self.target_encoder(clips)]
        z = self.predictor(self.encoder(clips, keeps), keeps, aims)
        h = [self.apply_masks(x, aim, concat=False) for x, aim in zip(h, aims, strict=True)]
        losses = [(a - b).abs().mean() for za, hb in zip(z, h, strict=True) for a, b in zip(za, hb, strict=True)]
        return sum(losses, torch.zeros((), device=video.device)) / len(losses)

    def step(self, video: Tensor, masks: list[TokenMask]) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16):
            loss = self.loss(video, masks)
        self.scaler.scale(loss).backward()
        if self.bfloat16:
            self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        with torch.no_grad():
            kept, new = list(self.target_encoder.parameters()), list(self.encoder.parameters())
            torch._foreach_mul_(kept, MOMENTUM)
            torch._foreach_add_(kept, new, alpha=1 - MOMENTUM)
        return loss.detach()


# ----------------------------------------------------------------------------------------------------------- our side


def our_module(theirs: Official, size: dict[str, int], device: str) -> VJEPAModule:
    """Return the module that ``vwm fit`` trains, with the official weights loaded as one of their checkpoints."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "official.pt"
        torch.save({name: getattr(theirs, name).state_dict() for name in ("encoder", "predictor")}, file)
        side = (size["pixels"], size["pixels"])
        encoder, predictor, _ = load_official_vjepa(
            file, image_size=side, frames=size["frames"], heads=size["heads"], predictor_num_heads=PREDICTOR["heads"]
        )
    assert predictor is not None
    optimizer = OptimizerConfig(lr=LR, weight_decay=DECAY, betas=BETAS, warmup=0)
    maskings = [MultiBlockMaskSampler(**masking) for masking in MASKS]
    for network in (encoder, predictor):
        network.train().requires_grad_(True)
    return VJEPAModule(encoder, predictor, maskings, optimizer, monitor=None).to(device)


def our_step(module: VJEPAModule, batch: MaskedClips, options: argparse.Namespace) -> Step:
    optimizer, _ = module.optimizer.build(module, 0)
    assert module.target_encoder is not None

    def step() -> Tensor:
        with torch.autocast(options.device.split(":")[0], torch.bfloat16, enabled=options.bfloat16):
            loss, _ = module(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        update_target_encoder(module.target_encoder, module.encoder, MOMENTUM)
        return loss.detach()

    return step


# ---------------------------------------------------------------------------------------------------------- both sides


def draw_masks(size: dict[str, int], device: str) -> list[TokenMask]:
    grid = (size["frames"] // TUBELET, size["pixels"] // PATCH, size["pixels"] // PATCH)
    seeds = torch.arange(size["batch"])
    drawn = [MultiBlockMaskSampler(**masking).sample(seeds + number, grid) for number, masking in enumerate(MASKS)]
    return [
        TokenMask(mask.context_indices.to(device), tuple(aim.to(device) for aim in mask.target_indices))
        for mask in drawn
    ]


def imagenet(pixels: Tensor) -> Tensor:
    """uint8 [b, t, H, W, 3] -> float [b, 3, t, H, W], as the official loader gives them."""
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return ((pixels / 255 - mean) / std).permute(0, 4, 1, 2, 3).contiguous()


def check_equal_losses(steps: dict[str, Step], options: argparse.Namespace) -> None:
    """Compare the losses of three steps of each."""
    losses = {name: [float(step()) for _ in range(3)] for name, step in steps.items()}
    for name, each in losses.items():
        print(f"{name:14} losses of the first steps {', '.join(f'{loss:.6f}' for loss in each)}")
    a, b = (torch.tensor(each) for each in losses.values())
    difference = float(((a - b).abs() / a).max())
    # Their angles are bfloat16 under autocast, ours are not.
    if difference > (2e-2 if options.bfloat16 else 1e-4):
        raise SystemExit(f"relative difference of the losses {difference:.0e}: the times cannot be compared")
    print(f"relative difference at most {difference:.0e}")


def operations(module: VJEPAModule, masks: list[TokenMask], size: dict[str, int]) -> float:
    """Count useful operations of a step: two per weight and token, and attention's; backward counts twice."""

    def forward(network: nn.Module, tokens: int, ends: int) -> float:
        blocks = network.blocks
        weights = sum(part.weight.numel() for part in blocks.modules() if isinstance(part, nn.Linear))
        attention = 4 * len(blocks) * tokens**2 * network.config.width
        return size["batch"] * (2 * tokens * weights + attention + 2 * ends)

    encoder, predictor, n = module.encoder, module.predictor, module.encoder.num_tokens()
    patch, narrow = encoder.patch_embed.proj.weight.numel(), predictor.proj.weight.numel()
    total = forward(encoder, n, n * patch)
    for mask in masks:
        k, m = mask.context_indices.shape[1], mask.target_indices[0].shape[1]
        total += 3 * forward(encoder, k, k * patch) + 3 * forward(predictor, k + m, (k + m) * narrow)
    return total


def describe(theirs: Official, ours: VJEPAModule, masks: list[TokenMask], size: dict[str, int]) -> None:
    print(
        f"both: {size}, patches of {TUBELET}x{PATCH}x{PATCH}, {ours.encoder.num_tokens()} tokens per clip, "
        f"predictor {PREDICTOR}, AdamW lr {LR} betas {BETAS} weight decay {DECAY}, moving average {MOMENTUM}"
    )
    for number, mask in enumerate(masks):
        seen, predicted = mask.context_indices.shape[1], mask.target_indices[0].shape[1]
        print(f"both: mask {number}: {seen} tokens visible, {predicted} predicted")
    for name, side in (("vjepa2", theirs), ("vwm", ours)):
        counts = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (side.encoder, side.predictor)]
        print(f"{name:14} encoder {counts[0]:.2f}M, predictor {counts[1]:.2f}M parameters")


def clips_of(frames: Tensor) -> dict[str, Any]:
    """Return the fields of ``ClipBatch`` that training requires."""
    from vwm.data.clips import ClipBatch

    return vars(ClipBatch(frames=frames))


def table(figures: Times, work: float, options: argparse.Namespace) -> None:
    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else ""
    peak = next((flops for part, flops in PEAK.items() if part in name and options.bfloat16), None)
    print(f"\n{work / 1e12:.3f} useful TFLOP per step{', on ' + name if name else ''}\n")
    print("| step | ms (min to max) | CPU ms | TFLOP/s | MFU | times as fast (by CPU time) |")
    print("| --- | --- | --- | --- | --- | --- |")
    middle = medians(figures)
    first = middle["vjepa2"]
    for side, kinds in figures.items():
        ms = sorted(1e3 * seconds for seconds in kinds["clock"])
        clock, cpu = (middle[side][kind] for kind in ("clock", "cpu"))
        mfu = "" if peak is None else f"{work / clock / peak:.1%}"
        print(
            f"| {side} | {1e3 * clock:.1f} ({ms[0]:.1f} to {ms[-1]:.1f}) | {1e3 * cpu:.1f} | {work / clock / 1e12:.3f} "
            f"| {mfu} | {first['clock'] / clock:.2f} ({first['cpu'] / cpu:.2f}) |"
        )
    settings = {k: str(v) for k, v in vars(options).items() if k not in ("vjepa2", "out")}
    save(options.out, {"settings": settings, "device": name, "work": work, "seconds": figures})


if __name__ == "__main__":
    main()
