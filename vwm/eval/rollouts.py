"""Open-loop rollouts: the world is shown a context and the actions, and never again a frame of the truth.

Legend: n clips, t time, h w pixels, a dimensions of a continuous action.
"""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from vwm.core.capabilities import InfersActions
from vwm.core.seeds import fold_in, seeded_uniform
from vwm.core.simulator import Simulator
from vwm.core.spaces import ActionSpace
from vwm.eval.eval_clips import EvalClips


def open_loop_rollout(
    simulator: Simulator, frames: Tensor, actions: Tensor, context: int, seeds: Tensor, batch_size: int, desc: str
) -> Tensor:
    """Continue each clip's first frames under given actions.

    Action ``context - 1`` leads from the last context frame to the first predicted one.

    Args:
        simulator: the world.
        frames: uint8 [n, t, h, w, 3], the clips; only their first ``context`` frames are looked at.
        actions: int64 [n, t-1] or float32 [n, t-1, a]; ``actions[:, i]`` leads from frame i to i+1.
        context: frames that are shown.
        seeds: int64 [n], one a world, so that a clip's rollout does not depend on its batch.
        batch_size: worlds that step together.
        desc: what the progress bar says.

    Returns:
        uint8 [n, t - context, h, w, 3], the predicted frames.
    """
    steps = range(context - 1, actions.shape[1])
    parts = []
    with tqdm(total=len(frames) * len(steps), desc=desc, unit="frame", disable=None) as bar:
        for clip, action, seed in zip(*(x.split(batch_size) for x in (frames, actions, seeds)), strict=True):
            between = action[:, : context - 1] if context > 1 else None
            state, _ = simulator.reset(clip[:, :context], seed, between)
            shown = []
            for i in steps:
                state, out = simulator.step(state, action[:, i])
                assert out.frame is not None  # decode=True
                shown.append(out.frame.cpu())
                bar.update(len(clip))
            parts.append(torch.stack(shown, dim=1))
    return torch.cat(parts)


def repeat_last_frame(frames: Tensor, context: int) -> Tensor:
    """The prediction that nothing ever moves: uint8 [n, t, h, w, 3] -> [n, t - context, h, w, 3]."""
    return frames[:, context - 1 : context].expand_as(frames[:, context:])


def read_clip_actions(simulator: Simulator, sample: EvalClips, batch_size: int) -> Tensor:
    """The actions between the frames of clips, in the world's own action space.

    Returns:
        int64 [n, t-1] or float32 [n, t-1, a]: inferred from the frames where the world learned its actions, else the
        recorded ones.

    Raises:
        ValueError: the world needs recorded actions, and the data have none or others.
    """
    if isinstance(simulator, InfersActions) and simulator.num_latent_actions:
        return infer_latent_actions(simulator, sample.frames, batch_size)
    actions, space = sample.actions, simulator.spec.actions
    if space.kind == "discrete" and space.size == 1:  # a world that can only go on
        return torch.zeros(len(sample), sample.frames.shape[1] - 1, dtype=torch.int64)
    if actions is None:
        raise ValueError(
            "this world was trained on recorded actions, and some of these clips have none: evaluate it on shards "
            "with actions (vwm record writes them)"
        )
    fits = actions.ndim == 2 if space.kind == "discrete" else actions.shape[2:] == (space.size,)
    if not fits or (space.kind == "discrete" and not 0 <= int(actions.min()) <= int(actions.max()) < space.size):
        found = f"0..{int(actions.max())}" if actions.ndim == 2 else f"vectors of {actions.shape[-1]} numbers"
        raise ValueError(
            f"this world takes {space.size} {space.kind} actions, and the data hold {found}: evaluate it on "
            f"recordings of the same game"
        )
    return actions[:, :-1]


@torch.inference_mode()
def infer_latent_actions(simulator: InfersActions, frames: Tensor, batch_size: int) -> Tensor:
    """Latent actions of clips: uint8 [n, t, h, w, 3] -> int64 [n, t-1]."""
    batches = tqdm(frames.split(batch_size), desc="latent actions", unit="batch", disable=None)
    return torch.cat([simulator.infer_actions(b).cpu() for b in batches])


def random_action_sequences(space: ActionSpace, seeds: Tensor, steps: int) -> Tensor:
    """Uniform over the action space, a function of seeds int64 [n]: int64 [n, steps] or float32 [n, steps, a]."""
    seeds = fold_in(seeds, -1)  # a world folds its steps 0, 1, 2, ... into the same seeds
    if space.kind == "discrete":
        return (seeded_uniform(seeds, steps) * space.size).long().clamp(max=space.size - 1)
    return seeded_uniform(seeds, steps, space.size) * 2 - 1
