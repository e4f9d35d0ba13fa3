"""A simulator of every kind, and contexts and actions for it: what the tests of the contract run on."""

import torch
from autoregressive_worlds import autoregressive_world, composite_token_world
from diamond_worlds import csgo_world, diamond_world
from factories import (
    composite_parts,
    diffusion_world,
    dream,
    genie,
    genie_of_latent_frames,
    jepa_world,
    latent_frames_world,
    muzero_world,
    tdmpc2_world,
)
from latent_worlds import rssm_world
from pets_worlds import pets_world
from published_worlds import dreamer4_world, oasis_world, waypoint_world

from vwm.models.dit.sampling import DiffusionSampling
from vwm.models.pets.simulator import TrajectorySampling
from vwm.worlds.ensemble import EnsembleSimulator

SIMULATORS = {
    "genie-latent": lambda: genie(),
    "genie-labeled": lambda: genie(labeled=True),
    "genie-vq": lambda: genie(codebook=36),
    "genie-outcomes": lambda: genie(labeled=True, outcomes=True),
    "genie-2-frames-a-step": lambda: genie_of_latent_frames(2),
    "genie-4-frames-a-step-labeled": lambda: genie_of_latent_frames(4, labeled=True, outcomes=True),
    "genie-continuous-latent": lambda: genie(dims=3),
    "genie-composite-actions": lambda: genie(labeled=True, composite=True),
    "dit": lambda: diffusion_world(),
    "dit-continuous-actions-and-outcomes": lambda: diffusion_world(outcomes=True, action_dims=3),
    "dit-composite-actions-guided-by-part": lambda: diffusion_world(
        outcomes=True, action_parts=composite_parts(), sampling=DiffusionSampling(steps=2, guidance={"keys": 2.0})
    ),
    "dit-shortcut": lambda: diffusion_world(prediction="clean", num_step_sizes=3),
    "dit-v-guided": lambda: diffusion_world(prediction="v", sampling=DiffusionSampling(steps=2, guidance=2.0)),
    "dit-full-attention": lambda: diffusion_world(attention="full"),
    "dit-time-every-4th": lambda: diffusion_world(time_every=4, kv_heads=1),
    "dit-agent": lambda: diffusion_world(outcomes=True, agent_tokens=2),
    "dit-2-frames-a-step-and-memory": lambda: latent_frames_world(
        2, window=2, sink_frames=1, memory_frames=1, memory_every=2
    ),
    "dit-4-frames-a-step-and-outcomes": lambda: latent_frames_world(4, outcomes=True, action_pooling="concatenate"),
    "mdn-rnn": lambda: dream(),
    "mdn-rnn-continuous-actions-and-rewards": lambda: dream(
        action_dims=3, predict_reward=True, allow_unknown_actions=True
    ),
    "rssm": lambda: rssm_world(),
    "rssm-gaussian-continuous-actions": lambda: rssm_world(
        action_dims=3, classes=0, cell="gru", norm="none", activation="elu", reward_distribution="normal"
    ),
    "rssm-of-vectors": lambda: rssm_world((5,)),
    "muzero": lambda: muzero_world(),
    "muzero-of-vectors": lambda: muzero_world((5,), value_prefix_horizon=0),
    "muzero-pooled-images": lambda: muzero_world(image_network="pooled", prediction_blocks=1, value_prefix_horizon=2),
    "pets": lambda: pets_world(),
    "pets-particles-continuous-actions": lambda: pets_world(3, TrajectorySampling(4, 1), predict_termination=False),
    "consistency": lambda: tdmpc2_world((40, 40, 3)),
    "consistency-of-vectors": lambda: tdmpc2_world(frames=1, predict_termination=False),
    "jepa": lambda: jepa_world(),
    "jepa-one-vector-a-frame": lambda: jepa_world(pooling="flatten", action_conditioning="modulation", residual=True),
    "jepa-latents-alone": lambda: jepa_world(decoder=False, action_dims=3, allow_unknown_actions=True),
    "oasis": lambda: oasis_world(),
    "diamond": lambda: diamond_world(),
    "diamond-upsampled": lambda: csgo_world(),
    "dreamer4": lambda: dreamer4_world(),
    "dreamer4-of-mmbench2": lambda: dreamer4_world(rotary=True),
    "waypoint": lambda: waypoint_world(),
    "autoregressive": lambda: autoregressive_world(),
    "autoregressive-sliding-window-and-composite-actions": lambda: composite_token_world(),
    "ensemble": lambda: EnsembleSimulator(
        [diffusion_world(outcomes=True), diffusion_world(outcomes=True, sampling=DiffusionSampling(steps=2))],
        uncertainty_penalty=1.0,
    ),
    "ensemble-that-follows-the-first": lambda: EnsembleSimulator(
        [diffusion_world(outcomes=True, agent_tokens=1), diffusion_world(outcomes=True)], followed_member="first"
    ),
}


def contexts(world, batch: int = 3, frames: int = 4) -> torch.Tensor:
    space = world.spec.context
    generator = torch.Generator().manual_seed(0)
    if space.is_vector:
        return 3 * torch.randn(batch, frames, *space.shape, generator=generator)
    return torch.randint(0, 256, (batch, frames, *space.shape), dtype=torch.uint8, generator=generator)


def actions(world, batch: int, step: int) -> torch.Tensor:
    if world.spec.actions.kind == "discrete":
        return (torch.arange(batch) + step) % world.spec.actions.size
    flat = torch.sin(torch.arange(batch)[:, None] + step + torch.arange(world.spec.actions.size) * 2.0)
    return world.spec.actions.from_flat(flat)
