"""Does a world see the ends of episodes wherever they are? Real ends and ordinary steps, after fewer or more frames.

    python tools/ends_by_place.py runs/coinrun_rewards/agent_world data/coinrun_agent_unseen

The world is shown the last frames before a recorded step, then takes the recorded action, ``--draws`` times with other
seeds. Printed are how often it ends, and its mean reward: for recorded terminations with a reward, for those without,
and for ordinary steps. A world that was trained on clips within one episode knows ends only after as many frames as a
clip has (see ``data.ends_share``).
"""

from __future__ import annotations

import argparse

import torch
from tqdm import tqdm

import vwm
from vwm.core.simulator import Simulator
from vwm.data.clip_folders import make_clip_dataset
from vwm.data.clips import ClipBatch, collate_clips
from vwm.data.mixtures import MixtureOptions

FIELDS = ("frames", "actions", "rewards", "terminated")


def read_clips(data: str, frames: int, count: int) -> dict[str, ClipBatch]:
    """Read clips whose last action is a termination with a reward, one without, or an ordinary step."""
    ends = make_clip_dataset(data, frames, fields=FIELDS, shuffle=False, mixture=MixtureOptions(1.0))
    last = [clip for clip in map(ends.__getitem__, range(len(ends))) if clip["terminated"][-1]]
    steps = make_clip_dataset(data, frames, fields=FIELDS)
    ordinary = [clip for clip in map(steps.__getitem__, range(min(len(steps), count))) if not clip["terminated"][-1]]
    kinds = {
        "rewarded ends": [clip for clip in last if clip["rewards"][-1] > 0],
        "other ends": [clip for clip in last if clip["rewards"][-1] <= 0],
        "ordinary steps": ordinary,
    }
    return {kind: collate_clips(clips[:count]) for kind, clips in kinds.items() if clips}


@torch.no_grad()
def find_outcomes(simulator: Simulator, clips: ClipBatch, frames: int, draws: int) -> tuple[float, float]:
    """Return how often the last action of clips ends the world that saw their last frames, and its mean reward."""
    assert clips.actions is not None
    context, actions = clips.frames[:, -frames:], clips.actions[:, -frames:]
    ended, reward, count = 0.0, 0.0, len(context)
    for draw in range(draws):
        seeds = torch.arange(count) + draw * count
        state, _ = simulator.reset(context, seeds, actions[:, :-1] if frames > 1 else None)
        _, output = simulator.step(state, simulator.spec.actions.from_flat(actions[:, -1]), decode=False)
        ended += float(output.terminated.float().mean()) / draws
        reward += float(output.reward.mean()) / draws
    return ended, reward


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", help="a bundle")
    parser.add_argument("data", help="a folder of shards with rewards and terminations")
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 2, 4, 7, 8, 16], help="how many the world sees")
    parser.add_argument("--clips", type=int, default=100, help="of each kind at most")
    parser.add_argument("--draws", type=int, default=8, help="seeds for each clip")
    args = parser.parse_args()
    torch.set_num_threads(1)
    simulator = vwm.load(args.world)
    kinds = read_clips(args.data, max(args.frames), args.clips)
    print(
        "| Frames seen | " + " | ".join(f"{kind} ({len(c.frames)}): ends, reward" for kind, c in kinds.items()) + " |"
    )
    print("|---" * (1 + len(kinds)) + "|")
    for frames in tqdm(args.frames, desc="frames seen"):
        found = (find_outcomes(simulator, clips, frames, args.draws) for clips in kinds.values())
        tqdm.write(f"| {frames} | " + " | ".join(f"{ended:.3f}, {reward:.2f}" for ended, reward in found) + " |")


if __name__ == "__main__":
    main()
