"""Open-loop rollouts: the simulator gets a context and the actions, and no true frame after the context.

Legend: n clips, t time, h w pixels, a dimensions of a continuous action.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vwm.core.capabilities import InfersActions
from vwm.core.command_output import progress_bar
from vwm.core.seeds import fold_in, seeded_uniform
from vwm.core.simulator import Simulator
from vwm.core.spaces import ActionSpace
from vwm.eval.eval_clips import EvalClips


def open_loop_rollout(
    simulator: Simulator, frames: Tensor, actions: Tensor, context: int, seeds: Tensor, batch_size: int, desc: str
) -> Tensor:
    """Predict how each clip's first frames continue under given actions.

    Action ``context - 1`` leads from the last context frame to the first predicted one. Where a step shows k frames,
    each has its own action, and t - context is a multiple of k.

    Args:
        simulator: the simulator to roll out.
        frames: uint8 [n, t, h, w, 3], the clips, of which only the first ``context`` frames are used.
        actions: int64 [n, t-1] or float32 [n, t-1, a]; ``actions[:, i]`` leads from frame i to i+1.
        context: number of context frames.
        seeds: int64 [n], one per clip, so that its rollout does not depend on its batch.
        batch_size: clips at a time.
        desc: label of the progress bar.

    Returns:
        uint8 [n, t - context, h, w, 3], the predicted frames.
    """
    parts = []
    with progress_bar(total=len(frames) * (actions.shape[1] - context + 1), desc=desc, unit="frame") as bar:
        for clip, action, seed in zip(*(x.split(batch_size) for x in (frames, actions, seeds)), strict=True):
            between = action[:, : context - 1] if context > 1 else None
            state, _ = simulator.reset(clip[:, :context], seed, between)
            shown = []
            for taken in simulator.action_steps(action[:, context - 1 :]).unbind(1):
                state, out = simulator.step(state, taken)
                shown.append(out.frames.cpu())
                bar.update(len(clip) * out.frames.shape[1])
            parts.append(torch.cat(shown, dim=1))
    return torch.cat(parts)


def repeat_last_frame(frames: Tensor, context: int) -> Tensor:
    """Predict that nothing changes: uint8 [n, t, h, w, 3] -> [n, t - context, h, w, 3]."""
    return frames[:, context - 1 : context].expand_as(frames[:, context:])


def read_clip_actions(simulator: Simulator, sample: EvalClips, batch_size: int) -> Tensor:
    """Return the actions between the frames of clips, in the simulator's action space.

    Returns:
        int64 [n, t-1] or float32 [n, t-1, a]: inferred from the frames where the simulator has latent actions, else
        the recorded ones.

    Raises:
        ValueError: the simulator requires recorded actions, and the data have none or others.
    """
    if isinstance(simulator, InfersActions) and simulator.num_latent_actions:
        return infer_latent_actions(simulator, sample.frames, batch_size)
    actions, space = sample.actions, simulator.spec.actions
    if space.has_one_action:
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
            "recordings of the same environment"
        )
    if space.is_composite:
        space.check_rows(actions)
    return actions[:, :-1]


@torch.inference_mode()
def infer_latent_actions(simulator: InfersActions, frames: Tensor, batch_size: int) -> Tensor:
    """Infer the latent actions of clips: uint8 [n, t, h, w, 3] -> int64 [n, t-1] or float32 [n, t-1, a]."""
    batches = progress_bar(frames.split(batch_size), desc="latent actions", unit="batch")
    return torch.cat([simulator.infer_actions(b).cpu() for b in batches])


def random_action_sequences(space: ActionSpace, seeds: Tensor, steps: int) -> Tensor:
    """Draw uniform actions, as a function of seeds int64 [n]: int64 [n, steps] or float32 [n, steps, a]."""
    seeds = fold_in(seeds, -1)  # a simulator folds its steps 0, 1, 2, ... into the same seeds
    if space.kind == "discrete":
        return (seeded_uniform(seeds, steps) * space.size).long().clamp(max=space.size - 1)
    return space.from_flat(seeded_uniform(seeds, steps, space.size) * 2 - 1)
