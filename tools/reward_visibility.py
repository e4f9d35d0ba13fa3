"""What a reward head must see to predict the rewards of a game: small networks on frames, each shown something else.

    vwm record ALE/Boxing-v5 data/boxing --frames 30000 --frame-skip 4 --seed 1
    vwm record ALE/Boxing-v5 data/boxing_unseen --frames 8000 --frame-skip 4 --seed 2
    python tools/reward_visibility.py data/boxing data/boxing_unseen

Every network predicts the sign of an action's reward (-1, 0, 1) from convolutional features of 8 x 8 places, with equal
sizes, steps and batches. They differ in the frames that they see (the one at which the action is taken, the one before
it, the one that it leads to) and in how places are pooled (their mean, or attention by a learned query). Measured is
the average precision of rewards on the unseen recording, whose value for guesses is the share of rewarded steps.

    python tools/reward_visibility.py data/boxing data/boxing_unseen --world boxing

measures the same of reward heads on the frozen features of a DiT, with and without the features of the next frame.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

import vwm
from vwm.data.clip_folders import make_clip_dataset
from vwm.data.clips import collate_clips
from vwm.models.dit import DiTSimulator
from vwm.models.dit.network import NoisyFrames
from vwm.models.dit.noise_schedule import add_noise
from vwm.models.dit.sampling import finest_step_index
from vwm.nn.outcome_heads import RewardTerminationHeads

Steps = tuple[Tensor, Tensor, Tensor]
"""Frames, actions and signs of rewards of clips, see ``read_steps``."""
WIDTH = 64
BATCH = 64


@dataclass(frozen=True)
class Row:
    """What a network sees: frames by their offset from that at which the action is taken, and how it pools places."""

    name: str
    offsets: tuple[int, ...]
    attention: bool = False
    balanced: bool = False


ROWS = (
    Row("the frame and the next, attention, half of the batch rewarded", (0, 1), attention=True, balanced=True),
    Row("the frame, attention, half of the batch rewarded", (0,), attention=True, balanced=True),
    Row("the frame and the next, mean, half of the batch rewarded", (0, 1), balanced=True),
    Row("the frame, mean, half of the batch rewarded", (0,), balanced=True),
    Row("the frame and the next, attention", (0, 1), attention=True),
    Row("the frame and the next, mean", (0, 1)),
    Row("the frame, attention", (0,), attention=True),
    Row("the frame, mean of its places (as outcome heads without sees_next)", (0,)),
)


class RewardNetwork(nn.Module):
    """Logits of a negative, no and a positive reward, from frames [b, f, h, w, 3] (uint8) and actions [b] (int64)."""

    def __init__(self, row: Row, num_actions: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3 * len(row.offsets), 32), (32, WIDTH), (WIDTH, WIDTH)):
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.GroupNorm(8, after), nn.SiLU()]
        self.encoder = nn.Sequential(*layers, nn.Conv2d(WIDTH, WIDTH, 3, 1, 1), nn.GroupNorm(8, WIDTH), nn.SiLU())
        self.action = nn.Embedding(num_actions, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True) if row.attention else None
        self.query = nn.Parameter(torch.zeros(WIDTH))
        self.head = nn.Sequential(nn.Linear(2 * WIDTH, 128), nn.SiLU(), nn.Linear(128, 3))

    def forward(self, frames: Tensor, actions: Tensor) -> Tensor:
        """See the class."""
        places = self.encoder(frames.permute(0, 1, 4, 2, 3).flatten(1, 2).float() / 127.5 - 1).flatten(2).mT
        action = self.action(actions)
        pooled = places.mean(1)
        if self.attention is not None:
            pooled = self.attention((self.query + action)[:, None], places, places, need_weights=False)[0][:, 0]
        return self.head(torch.cat((pooled, action), dim=-1))


def read_steps(data: str, length: int = 32) -> Steps:
    """Read clips: frames uint8 [n, t, h, w, 3], actions int64 [n, t] and signs of rewards int64 [n, t]."""
    dataset = make_clip_dataset(
        data, length, fields=("frames", "actions", "rewards"), seed=0, shuffle=False, split="all"
    )
    batch = collate_clips([dataset.read(dataset.order.address(0, i)) for i in range(len(dataset.order))])
    assert batch.frames is not None and batch.actions is not None and batch.rewards is not None
    return batch.frames, batch.actions, batch.rewards.sign().long()


def average_precision(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Return the area under the curve of precision over recall."""
    hits = positive[np.argsort(-scores, kind="stable")]
    precision = hits.cumsum() / np.arange(1, len(hits) + 1)
    return float(precision[hits].mean())


def train(row: Row, steps: Steps, num_actions: int, updates: int, seed: int) -> RewardNetwork:
    """Train a network on steps of clips."""
    frames, actions, signs = steps
    torch.manual_seed(seed)
    network = RewardNetwork(row, num_actions)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, updates)
    inside = signs[:, 1:-1]
    rewarded, every = inside.nonzero(), torch.ones_like(inside).nonzero()
    for _ in range(updates):
        drawn = every[torch.randint(len(every), (BATCH,))]
        if row.balanced:
            drawn = torch.cat((drawn[: BATCH // 2], rewarded[torch.randint(len(rewarded), (BATCH // 2,))]))
        clip, at = drawn[:, 0], drawn[:, 1] + 1
        shown = torch.stack([frames[clip, at + offset] for offset in row.offsets], dim=1)
        loss = F.cross_entropy(network(shown, actions[clip, at]), signs[clip, at] + 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def measure(network: RewardNetwork, row: Row, steps: Steps) -> tuple[float, float]:
    """Return the average precisions of positive and negative rewards."""
    frames, actions, signs = steps
    logits = []
    for clip, action in zip(frames, actions, strict=True):
        at = torch.arange(1, len(clip) - 1)
        logits.append(network(torch.stack([clip[at + offset] for offset in row.offsets], dim=1), action[at]))
    chances = torch.cat(logits).softmax(-1).double().numpy()
    truth = signs[:, 1:-1].flatten().numpy()
    return average_precision(chances[:, 2], truth == 1), average_precision(chances[:, 0], truth == -1)


@torch.no_grad()
def world_features(world: DiTSimulator, frames: Tensor, actions: Tensor, batch: int = 8) -> tuple[Tensor, Tensor]:
    """Return the features [n, t, d] of clips, with the noise that the past has in play, and the actions' embeddings."""
    dynamics, found = world.dynamics, []
    for clip, taken in zip(tqdm(frames.split(batch)), actions.split(batch), strict=True):
        latents = world.encode(clip)
        signal = latents.new_full(latents.shape[:2], 1 - world.sampling.context_noise)
        noisy = NoisyFrames(
            latents=add_noise(dynamics.prediction, latents, torch.randn_like(latents), signal),
            signal=signal,
            step_index=finest_step_index(dynamics, signal),
            action_embedding=dynamics.embed_previous_actions(taken[:, :-1], *latents.shape[:2]),
        )
        found.append(dynamics(noisy).features.float())
    return torch.cat(found), torch.cat([dynamics.embed_actions(taken).float() for taken in actions.split(batch)])


def compare_heads(world: DiTSimulator, seen: Steps, unseen: Steps, updates: int, seed: int) -> None:
    """Train reward heads on frozen features, with and without the next frame's, and print a row for each."""
    torch.manual_seed(seed)
    (features, taken), (test_features, test_taken) = (world_features(world, *steps[:2]) for steps in (seen, unseen))
    for sees_next in (False, True):
        torch.manual_seed(seed)
        heads = RewardTerminationHeads(features.shape[-1], 256, sees_next=sees_next)
        optimizer = torch.optim.AdamW(heads.parameters(), 1e-3)
        for _ in range(updates):
            drawn = torch.randint(len(features), (32,))
            loss, _ = heads.losses(features[drawn], taken[drawn], seen[2][drawn].float(), None)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            predicted = heads(test_features[:, :-1], test_taken[:, :-1], test_features[:, 1:]).reward
        scores, truth = predicted.flatten().double().numpy(), unseen[2][:, :-1].flatten().numpy()
        found = average_precision(scores, truth == 1), average_precision(-scores, truth == -1)
        name = "features of the frame and the next" if sees_next else "features of the frame"
        print(f"| {name} | {found[0]:.3f} / {found[1]:.3f} | |", flush=True)


def main() -> None:
    """Train and measure each network, and print the table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("unseen")
    parser.add_argument("--updates", type=int, default=1500)
    parser.add_argument("--world", help="a DiT whose reward heads are compared instead")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    seen, unseen = read_steps(options.data), read_steps(options.unseen)
    num_actions = 1 + int(max(seen[1].max(), unseen[1].max()))
    inside = unseen[2][:, 1:-1]
    shares = [float((inside == sign).double().mean()) for sign in (1, -1)]
    print("| What the network sees | average precision of rewards above / below 0 | seconds |\n|---|---|---|")
    print(f"| nothing (share of such steps) | {shares[0]:.3f} / {shares[1]:.3f} | |", flush=True)
    if options.world is not None:
        return compare_heads(vwm.load(options.world), seen, unseen, options.updates, options.seed)
    for row in ROWS:
        began = time.perf_counter()
        network = train(row, seen, num_actions, options.updates, options.seed)
        positive, negative = measure(network, row, unseen)
        print(f"| {row.name} | {positive:.3f} / {negative:.3f} | {time.perf_counter() - began:.0f} |", flush=True)


if __name__ == "__main__":
    main()
