"""Training a diffusion transformer: gradient flow, learning on small data, and errors for mismatched parts or data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from factories import composite_parts, composite_space, diffusers_tokenizer, dit, randomize, tokenizer

from vwm.core.components import ComponentError, save_component
from vwm.core.frames import frames_to_float
from vwm.core.spaces import ActionSpace
from vwm.data.clips import ClipBatch
from vwm.data.datamodule import VideoDataModule
from vwm.data.episode import Episode
from vwm.data.shards import ShardWriter
from vwm.models.dit.module import DiTModule
from vwm.models.dit.network import DiT
from vwm.models.dit.objectives import DiffusionForcing, DiffusionObjective, ShortcutForcing
from vwm.models.dit.simulator import DiTSimulator
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.outcome_heads import RewardTerminationHeads
from vwm.tokenizers.causal_vae import CausalVAE
from vwm.tokenizers.pixel_tokenizer import PixelTokenizer

FRAMES = 6
OBJECTIVES = {
    "velocity": ({}, DiffusionForcing),
    "v": ({"prediction": "v"}, lambda: DiffusionForcing("v")),
    "shortcut": ({"prediction": "clean", "num_step_sizes": 3}, lambda: ShortcutForcing(finest=4, bootstrap=0.25)),
}


def network(**changes) -> DiT:
    """Every weight random; over pixels of 8x8 in patches of 2x2."""
    return dit(**{"grid": (4, 4), "channels": 12, **changes})


def module(objective: str = "velocity", dynamics: DiT | None = None, outcomes: bool = False, **settings) -> DiTModule:
    changes, make = OBJECTIVES[objective]
    return DiTModule(
        settings.pop("tokenizer", PixelTokenizer((8, 8), patch_size=2)),
        dynamics or network(**changes),
        make(),
        OptimizerConfig(),
        outcomes=randomize(RewardTerminationHeads(width=32, hidden=16)) if outcomes else None,
        **{"context_frames": 2, **settings},
    ).train()


def batch(clips: int = 3, frames: int = FRAMES, **more) -> ClipBatch:
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (clips, frames, 8, 8, 3), dtype=torch.uint8, generator=generator)
    return ClipBatch(**{"frames": video, "actions": torch.randint(0, 4, (clips, frames), generator=generator), **more})


def compressing_autoencoder() -> CausalVAE:
    """Each latent holds two frames."""
    return CausalVAE((8, 8), latent_channels=4, time_compression=2, patch_size=2, widths=[8], depths=[1])


def batch_with_rewards(**more) -> ClipBatch:
    clips = batch(**more)
    return replace(clips, rewards=(clips.actions == 1).float(), terminated=clips.actions == 3)


def gradients(dit: DiTModule, clips: ClipBatch) -> list[torch.Tensor]:
    dit.zero_grad()
    torch.manual_seed(1)
    loss, _ = dit(clips)
    loss.backward()
    return [loss.detach()] + [p.grad.clone() for p in dit.parameters() if p.grad is not None]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("context", ["clean", "noisy"])
@pytest.mark.parametrize("outcomes", [False, True])
def test_only_actions_of_labeled_clips_affect_loss_and_gradients(context, outcomes):
    clips = batch_with_rewards(labeled=torch.tensor([True, False, True]))

    def has_effect(world: int) -> bool:
        """Whether other actions of one clip change the loss or any gradient."""
        others = clips.actions.clone()
        others[world] = (others[world] + 1) % 4
        learners = (module(context=context, outcomes=outcomes) for _ in range(2))  # loss normalizers keep state
        return not equal(*map(gradients, learners, (clips, replace(clips, actions=others))))

    assert [has_effect(world) for world in range(3)] == [True, False, True]


def test_all_clips_are_labeled_by_default():
    batches = [batch(), batch(labeled=torch.ones(3, dtype=torch.bool))]
    assert equal(*(gradients(module(), clips) for clips in batches))


def test_action_dropout_applies_in_training_only():
    other = replace(batch(), actions=(batch().actions + 1) % 4)
    learner = module(action_dropout=1.0)
    assert equal(gradients(learner, batch()), gradients(learner, other))
    learner.eval()
    assert not equal(gradients(learner, batch()), gradients(learner, other))


def composite_batch(**more) -> ClipBatch:
    space = composite_space()
    flat = torch.rand(3, FRAMES, space.size, generator=torch.Generator().manual_seed(2)) * 2 - 1
    return batch(actions=space.from_flat(flat), **more)


def test_unknown_and_dropped_parts_of_composite_actions_have_no_effect():
    clips = composite_batch(known_parts=torch.tensor([[True, True, True], [True, False, True], [False] * 3]))
    other_keys = clips.actions.clone()
    other_keys[..., composite_space().slices["keys"]] = 1 - other_keys[..., composite_space().slices["keys"]]

    def has_effect(world: int, **settings) -> bool:
        """Whether other keys of one clip change the loss or any gradient."""
        actions = clips.actions.clone()
        actions[world] = other_keys[world]
        learner = module(dynamics=network(num_actions=0, action_parts=composite_parts()), **settings)
        return not equal(*(gradients(learner, x) for x in (clips, replace(clips, actions=actions))))

    assert [has_effect(world) for world in range(3)] == [True, False, False]
    assert not has_effect(0, part_dropout=1.0) and not has_effect(0, action_dropout=1.0)
    learner = module(dynamics=network(num_actions=0, action_parts=composite_parts()), part_dropout=0.5)
    shown = learner.drop_actions(torch.ones(50, 40, dtype=torch.bool), 3).float()
    assert shown.shape == (50, 40, 3) and abs(shown.mean(dim=(0, 1)) - 0.5).max() < 0.05
    assert learner.eval().drop_actions(torch.ones(2, 2, dtype=torch.bool), 3).shape == (2, 2)


def test_trains_without_any_labeled_episode(tmp_path):
    rng = np.random.default_rng(0)
    with ShardWriter(tmp_path / "shard-000000.tar") as writer:
        for i in range(3):
            frames = rng.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
            writer.write(f"episode-{i}", Episode(frames, rng.integers(1, 4, 9)))
    data = VideoDataModule(str(tmp_path), clip_length=4, batch_size=3, workers=0, val_fraction=0, labeled_fraction=0.0)
    data.setup("fit")
    clips = next(iter(data.train_dataloader()))
    assert not clips.labeled.any() and not clips.actions.any()
    learner = module()
    found = gradients(learner, clips)
    assert all(x.isfinite().all() for x in found)
    assert not learner.dynamics.embed_action.table.weight.grad.any()
    assert learner.dynamics.no_action.grad.any()


@pytest.mark.parametrize("outcomes", [False, True])
@pytest.mark.parametrize("context", ["clean", "noisy"])
@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_every_weight_but_the_tokenizers_gets_a_gradient(objective, context, outcomes):
    """Also where the data have no terminations: data-parallel training waits for the gradient of every weight."""
    learner = module(objective, context=context, outcomes=outcomes, action_dropout=0.5)
    gradients(learner, replace(batch_with_rewards(clips=4), terminated=None))
    assert not [name for name, p in learner.named_parameters() if p.requires_grad and p.grad is None]
    learner = module(tokenizer=diffusers_tokenizer("AutoencoderKL"), dynamics=dit(channels=4))
    video = torch.zeros(2, 3, 16, 16, 3, dtype=torch.uint8)
    gradients(learner, ClipBatch(frames=video, actions=torch.zeros(2, 3, dtype=torch.int64)))
    assert all(p.grad is None and not p.requires_grad for p in learner.tokenizer.parameters())
    assert learner.dynamics.training and not learner.tokenizer.training


@pytest.mark.parametrize("context", ["clean", "noisy"])
@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_training_on_one_clip_halves_the_loss(objective, context):
    torch.manual_seed(0)
    changes, _ = OBJECTIVES[objective]
    settings = {
        "grid": (4, 4),
        "channels": 12,
        "num_actions": 4,
        "width": 32,
        "depth": 2,
        "heads": 2,
        "window": 4,
        "time_every": 2,
    }
    learner = module(objective, DiT(**settings, **changes), context=context)
    ramp = torch.linspace(0, 255, 8).byte()
    video = torch.stack([ramp.roll(i)[None, :, None].expand(8, 8, 3) for i in range(FRAMES)])
    clips = ClipBatch(frames=video[None].expand(8, -1, -1, -1, -1), actions=torch.arange(FRAMES).expand(8, -1) % 4)

    def loss() -> float:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(2)
            return float(learner(clips)[0])

    before, optimizer = loss(), torch.optim.Adam(learner.dynamics.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        learner(clips)[0].backward()
        optimizer.step()
    assert loss() < before / 2


@pytest.mark.parametrize("context", ["clean", "noisy"])
def test_learns_rewards_and_terminations_of_actions(context):
    """Frames are noise: only the action predicts rewards and terminations."""
    torch.manual_seed(0)
    learner = module(outcomes=True, context=context)
    learner.outcomes = RewardTerminationHeads(width=32, hidden=16)  # randomized weights of distant bins would dominate
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-2)
    for _ in range(60):
        actions = torch.randint(0, 4, (16, 3))
        clips = ClipBatch(
            latents=torch.randn(16, 3, 4, 4, 12),
            actions=actions,
            rewards=(actions == 1).float(),
            terminated=actions == 3,
        )
        optimizer.zero_grad()
        learner(clips)[0].backward()
        optimizer.step()
    learner.eval()
    world = simulator(learner)
    state, _ = world.reset(batch(clips=4).frames[:, :2])
    predicted = learner.outcomes(state.features[:, None], learner.dynamics.embed_actions(torch.arange(4)[:, None]))
    torch.testing.assert_close(predicted.reward[:, 0], torch.tensor([0.0, 1.0, 0.0, 0.0]), rtol=0, atol=0.25)
    torch.testing.assert_close(predicted.terminated[:, 0], torch.tensor([0.0, 0.0, 0.0, 1.0]), rtol=0, atol=0.25)


def simulator(learner: DiTModule) -> DiTSimulator:
    actions = ActionSpace("discrete", 4, ("a", "b", "c", "d"))
    return DiTSimulator(learner.tokenizer, learner.dynamics, learner.outcomes, actions, sampling=learner.sampling)


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_sample_equals_a_rollout_of_the_simulator(objective):
    learner, clips = module(objective).eval(), batch()
    world = simulator(learner)
    state, _ = world.reset(clips.frames[:, :2], 0, clips.actions[:, :1])
    drawn = []
    for i in range(1, FRAMES - 1):
        state, out = world.step(state, clips.actions[:, i])
        drawn.append(out.frame)
    sample = learner.sample(clips)
    assert torch.equal(sample[:, :2], clips.frames[:, :2])
    assert (sample[:, 2:].int() - torch.stack(drawn, dim=1).int()).abs().max() <= 1  # rounding of a pixel at a half


def test_sample_of_a_clip_shorter_than_the_context_generates_its_last_frame():
    learner = module(context_frames=8).eval()
    sample = learner.sample(batch(frames=3))
    assert torch.equal(sample[:, :2], batch(frames=3).frames[:, :2])
    assert not torch.equal(sample[:, 2], batch(frames=3).frames[:, 2])


def test_bidirectional_networks_train_on_and_sample_whole_clips():
    learner = module(dynamics=network(causal=False), context="noisy")
    assert all(x.isfinite().all() for x in gradients(learner, batch()))
    learner.eval()
    sample = learner.sample(batch())
    assert sample.shape == batch().frames.shape and torch.equal(sample[:, :2], batch().frames[:, :2])
    assert torch.equal(sample, learner.sample(batch()))
    other = replace(batch(), actions=(batch().actions + 1) % 4)
    assert not torch.equal(sample[:, 2:], learner.sample(other)[:, 2:])


def test_encoded_clips_give_the_same_loss_as_raw_clips():
    learner = module()
    latents = learner.tokenizer.encode(frames_to_float(batch().frames))
    assert equal(gradients(learner, batch()), gradients(learner, batch(frames=FRAMES, latents=latents)))
    assert equal(gradients(learner, batch()), gradients(learner, replace(batch(), frames=None, latents=latents)))


def test_video_without_actions_trains_on_latents_of_several_frames():
    dynamics = dit(grid=(4, 4), channels=4, num_actions=0, frames_per_latent=2)
    learner = module(tokenizer=compressing_autoencoder(), dynamics=dynamics)
    video = torch.randint(0, 256, (2, 9, 8, 8, 3), dtype=torch.uint8)
    assert all(x.isfinite().all() for x in gradients(learner, ClipBatch(frames=video)))
    assert learner.eval().sample(ClipBatch(frames=video)).shape == video.shape


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"grid": (2, 2)}, {}, r"dynamics.grid=\(2, 2\) but the tokenizer's: \(4, 4\)"),
        ({"channels": 3}, {}, "dynamics.channels=3 but the tokenizer's: 12"),
        ({"causal": False}, {}, "set context=noisy for causal=False"),
        ({"prediction": "v"}, {}, "dynamics.prediction='v', but the objective needs 'velocity'"),
        ({"num_step_sizes": 3}, {}, "num_step_sizes=3 is for ShortcutForcing"),
        ({}, {"context_frames": 0}, "context_frames=0"),
        ({}, {"action_dropout": 1.5}, "action_dropout=1.5"),
        ({}, {"context_noise": 1.0}, "context_noise"),
        ({}, {"sampling_steps": 0}, "steps must be 1 or more"),
        ({"frames_per_latent": 4}, {}, "dynamics.frames_per_latent=4 but the tokenizer's: 1"),
        ({}, {"tokenizer": compressing_autoencoder()}, "dynamics.frames_per_latent=1 but the tokenizer's: 2"),
    ],
)
def test_rejects_mismatched_parts(changes, settings, message):
    with pytest.raises(ValueError, match=message):
        module(dynamics=dit(**{"grid": (4, 4), "channels": 12, **changes}), **settings)


def test_rejects_a_discrete_tokenizer_and_suggests_genie(tmp_path):
    save_component(tokenizer(), tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=r"needs continuous latents, and this tokenizer has a codebook of 36.*genie"):
        module(tokenizer=str(tmp_path))


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        (batch(frames=1), "clips of 1 latent frames: dynamics need at least 2"),
        (batch(actions=None), "these shards hold no actions"),
        (batch(actions=torch.zeros(3, FRAMES, 3)), r"integers \[b, t\], got torch.float32 \[3, 6, 3\]"),
        (batch(actions=torch.full((3, FRAMES), 9)), "actions run from 9 to 9, but dynamics.num_actions=4"),
        (batch(latents=torch.zeros(3, FRAMES, 4, 4, 5)), r"latents must be \[b, t, 4, 4, 12\], got"),
        (batch(latents=torch.tensor([0.0, torch.nan, 0.0]).view(3, 1, 1, 1, 1).expand(3, FRAMES, 4, 4, 12)), r"\[1\]"),
        (replace(batch(), frames=torch.zeros(3, FRAMES, 9, 8, 3, dtype=torch.uint8)), r"video must be \[b, t, 3, 8, 8"),
    ],
)
def test_rejects_mismatched_data(clips, message):
    with pytest.raises(ValueError, match=message):
        module()(clips)


def test_sink_and_memory_frames_require_clips_longer_than_the_window():
    for kept in ({"sink_frames": 1}, {"memory_frames": 1}):
        with pytest.raises(ValueError, match=f"clips of {FRAMES} latent frames never show.*raise data.clip_length"):
            module(dynamics=dit(grid=(4, 4), channels=12, window=FRAMES, **kept))(batch())
        assert module(dynamics=dit(grid=(4, 4), channels=12, window=FRAMES - 1, **kept))(batch())[0].isfinite()


def test_outcome_heads_require_rewards():
    with pytest.raises(ValueError, match=r"need rewards and actions: name them in data\.fields"):
        module(outcomes=True)(batch())


def test_pretrained_weights_are_loaded(tmp_path):
    save_component(world := network(), tmp_path / "dynamics")
    mine = network(seed=9)
    assert not torch.equal(mine.embed.weight, world.embed.weight)
    save_component(heads := randomize(RewardTerminationHeads(width=32, hidden=16), seed=4), tmp_path / "outcomes")
    learner = module(dynamics=mine, pretrained=str(tmp_path), outcomes=True)
    for loaded, saved in ((mine, world), (learner.outcomes, heads)):
        assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in saved.state_dict().items())


def test_a_pretrained_network_goes_on_over_latents_of_several_frames(tmp_path):
    """Input and output layers are initialized randomly; the rest is that of the world over single frames."""
    save_component(world := network(), tmp_path / "dynamics")
    tokenizer = compressing_autoencoder()
    mine = network(seed=9, channels=4, frames_per_latent=2)
    own, theirs = {name: value.clone() for name, value in mine.state_dict().items()}, world.state_dict()
    module(dynamics=mine, pretrained=str(tmp_path), tokenizer=tokenizer)
    new = ("embed.", "head.", "pool_actions.")
    for name, value in mine.state_dict().items():
        assert torch.equal(value, own[name] if name.startswith(new) else theirs[name]), name


@pytest.mark.parametrize("pooling", ["learned", "mean"])
def test_a_pretrained_network_goes_on_with_a_wider_pooling_of_actions(tmp_path, pooling):
    """Its predictions are those of the pretrained one at first; the way back is refused."""
    over_two = {"channels": 4, "frames_per_latent": 2}
    save_component(world := network(**over_two, action_pooling=pooling), tmp_path / "dynamics")
    mine = network(seed=9, **over_two, action_pooling="concatenate")
    module(dynamics=mine, pretrained=str(tmp_path), tokenizer=compressing_autoencoder())
    actions = torch.tensor([[0, 1, 2, 1], [2, 2, 0, 1]])
    expected, found = (x.embed_previous_actions(actions, 2, 3) for x in (world, mine))
    assert expected[0, 1].std() > 0 and not torch.equal(expected[0, 1], expected[1, 1])
    torch.testing.assert_close(found, expected)
    save_component(mine, tmp_path / "wide" / "dynamics")
    with pytest.raises(ComponentError, match="action_pooling='concatenate' there"):
        module(
            dynamics=network(**over_two, action_pooling=pooling),
            pretrained=str(tmp_path / "wide"),
            tokenizer=compressing_autoencoder(),
        )


def test_rejects_continuous_actions_of_another_size():
    learner = module(dynamics=network(num_actions=0, action_dims=3))
    with pytest.raises(ValueError, match=r"actions must be \[b, t, 3\].*got torch.float32 \[3, 6, 2\]"):
        learner(batch(actions=torch.zeros(3, FRAMES, 2)))


def test_rejects_invalid_objectives():
    for make, message in (
        (lambda: ShortcutForcing(finest=6), "finest=6 must be a power of two"),
        (lambda: ShortcutForcing(bootstrap=2), "bootstrap=2 must be between 0 and 1"),
        (
            lambda: check(ShortcutForcing(finest=8), prediction="clean", num_step_sizes=3),
            "needs dynamics.num_step_sizes=4",
        ),
        (lambda: check(ShortcutForcing(finest=4), num_step_sizes=3), "the objective needs 'clean'"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def check(objective: DiffusionObjective, **changes) -> None:
    objective.check(network(**changes))
