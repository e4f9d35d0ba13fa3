"""Training an action-conditioned predictor: losses, gradient flow, and what prevents collapse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from factories import action_predictor, composite_parts, composite_space, jepa_parts, randomize

from vwm.core.components import ComponentError, save_component
from vwm.core.spaces import ActionSpace
from vwm.data.clips import ClipBatch
from vwm.models.vjepa.action_conditioned_module import ActionConditionedJEPAModule, AntiCollapseConfig
from vwm.models.vjepa.collapse_regularizers import SIGReg, VarianceCovarianceRegularizer
from vwm.models.vjepa.conv_encoder import ConvFrameEncoder
from vwm.models.vjepa.inverse_dynamics import InverseDynamicsModel
from vwm.models.vjepa.latent_decoder import LatentDecoder
from vwm.models.vjepa.latent_projector import LatentProjector
from vwm.models.vjepa.simulator import VJEPAACSimulator
from vwm.models.vjepa.video_encoder import VideoEncoder
from vwm.nn.optimizer import OptimizerConfig

FRAMES = 6
EVERYTHING = AntiCollapseConfig(VarianceCovarianceRegularizer(), smoothness_weight=0.5, inverse_dynamics_weight=0.5)


def make_module(parts: dict | None = None, **settings) -> ActionConditionedJEPAModule:
    """Make a module with random weights, since a zero-initialized branch would have no effect."""
    parts = jepa_parts(**{k: settings.pop(k) for k in ("pooling", "proprioception_dims", "allow_unknown_actions",
    "num_actions", "action_dims", "action_parts", "window")
                          if k in settings}) | (parts or {})  # fmt: skip
    learner = ActionConditionedJEPAModule(
        **parts, optimizer=OptimizerConfig(), **{"anti_collapse": EVERYTHING, **settings}
    )
    if learner.inverse_dynamics is not None:
        randomize(learner.inverse_dynamics)
    return learner.train()


def make_batch(clips: int = 3, frames: int = FRAMES, **more) -> ClipBatch:
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (clips, frames, 8, 8, 3), dtype=torch.uint8, generator=generator)
    return ClipBatch(**{"frames": video, "actions": torch.randint(0, 4, (clips, frames), generator=generator), **more})


def save_frozen_encoder(folder, encoder=None) -> str:
    save_component(encoder or jepa_parts()["encoder"], folder / "encoder")
    return str(folder)


def compute_gradients(
    learner: ActionConditionedJEPAModule, clips: ClipBatch, part: str = ""
) -> dict[str, torch.Tensor]:
    learner.zero_grad()
    torch.manual_seed(1)
    learner(clips)[0].backward()
    return {n: p.grad.clone() for n, p in learner.named_parameters() if p.grad is not None and n.startswith(part)}


def gradients_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("loss", ["l1", "l2"])
@torch.no_grad()
def test_losses_equal_an_independent_computation(loss):
    """The rollout is computed by the parallel path on the true frames followed by its own predictions."""
    learner = make_module(loss_type=loss, rollout_steps=3, rollout_context_frames=2).eval()
    clips = make_batch()
    z, dynamics = learner.encode_latents(clips.frames), learner.dynamics

    def error(predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        return (predicted - true).abs().mean() if loss == "l1" else (predicted - true).square().mean()

    teacher_forced = error(dynamics(z[:, :-1], clips.actions[:, :-1]), z[:, 1:])
    latents = z[:, :2]
    for i in range(3):
        latents = torch.cat((latents, dynamics(latents, clips.actions[:, : 2 + i])[:, -1:]), dim=1)
    rollout = error(latents[:, 2:], z[:, 2:5])
    inverse_dynamics = learner.inverse_dynamics(z, clips.actions[:, :-1], torch.ones(3, 5).bool())
    total, logs = learner(clips)
    torch.testing.assert_close(logs["prediction_loss"], teacher_forced, rtol=1e-5, atol=0)
    torch.testing.assert_close(logs["rollout_loss"], rollout, rtol=1e-5, atol=0)
    torch.testing.assert_close(logs["smoothness_loss"], z.diff(dim=1).square().mean(), rtol=1e-5, atol=0)
    torch.testing.assert_close(logs["inverse_dynamics_loss"], inverse_dynamics, rtol=1e-5, atol=0)
    named = sum(logs[f"{name}_loss"] for name in ("prediction", "rollout", "variance", "decoder"))
    rest = 0.04 * logs["covariance_loss"] + 0.5 * (logs["smoothness_loss"] + logs["inverse_dynamics_loss"])
    torch.testing.assert_close(total, named + rest, rtol=1e-5, atol=0)


def test_every_weight_gets_a_gradient():
    learner = make_module(
        proprioception_dims=2, allow_unknown_actions=True, proprioception_dropout=0.5, action_dropout=0.3
    )
    gradients = compute_gradients(learner, make_batch(clips=8, state=torch.randn(8, FRAMES, 2)))
    assert set(gradients) == {name for name, _ in learner.named_parameters()}
    assert all(g.isfinite().all() for g in gradients.values())


def test_a_frozen_encoder_gets_no_gradient_and_stays_in_evaluation_mode(tmp_path):
    learner = make_module({"encoder": save_frozen_encoder(tmp_path)}, anti_collapse=EVERYTHING)
    assert not learner.encoder.training and learner.dynamics.training
    gradients = compute_gradients(learner, make_batch())
    assert {name.split(".")[0] for name in gradients} == {"projector", "dynamics", "decoder", "inverse_dynamics"}
    assert "encoder" not in learner.networks()
    plain = LatentProjector((2, 2), 4, "none", latent_width=0, norm="layer")
    parts = jepa_parts(latent_width=4) | {"encoder": str(tmp_path), "projector": plain, "decoder": None}
    learner = ActionConditionedJEPAModule(**parts, optimizer=OptimizerConfig())
    assert not learner.encode_latents(make_batch().frames).requires_grad
    assert {name.split(".")[0] for name in compute_gradients(learner, make_batch())} == {"dynamics"}


def test_the_decoder_has_no_gradient_in_other_parts():
    clips = make_batch()
    with_decoder, without_decoder = make_module(), make_module({"decoder": None})
    for part in ("encoder", "projector", "dynamics", "inverse_dynamics"):
        assert gradients_equal(
            compute_gradients(with_decoder, clips, part), compute_gradients(without_decoder, clips, part)
        )


def test_reconstruction_trains_the_latents_by_its_weight():
    clips = make_batch(frames=2)
    plain, weighted = (
        make_module(rollout_steps=0, anti_collapse=AntiCollapseConfig(reconstruction_weight=w)) for w in (0.0, 3.0)
    )
    without = compute_gradients(plain, clips, "encoder")
    found = compute_gradients(weighted, clips, "encoder")
    torch.manual_seed(1)
    decoding = plain._decoding_loss(plain.encode_latents(clips.frames), clips.frames)
    alone = torch.autograd.grad(decoding, [*plain.encoder.parameters()])
    for (name, gradient), part in zip(found.items(), alone, strict=True):
        torch.testing.assert_close(gradient, without[name] + 3 * part, msg=name)
    assert max(part.abs().max() for part in alone) > 1e-5


def test_stop_target_gradient_trains_the_encoder_through_inputs_only():
    settings = {"rollout_steps": 0, "anti_collapse": None, "loss_type": "l2"}
    clips = make_batch()
    with_target_gradient, without_target_gradient = (
        compute_gradients(make_module(stop_target_gradient=s, **settings), clips, "encoder") for s in (False, True)
    )
    learner = make_module(**settings)
    z = learner.encode_latents(clips.frames)
    learner.zero_grad()
    (learner.dynamics(z[:, :-1], clips.actions[:, :-1]) - z[:, 1:].detach()).square().mean().backward()
    expected = {n: p.grad for n, p in learner.named_parameters() if n.startswith("encoder")}
    assert not gradients_equal(with_target_gradient, without_target_gradient)
    for name, grad in without_target_gradient.items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("allow_unknown_actions", [False, True])
def test_only_actions_of_labeled_clips_have_an_effect(allow_unknown_actions):
    clips = make_batch(labeled=torch.tensor([True, False, True]))

    def has_effect(world: int) -> bool:
        others = clips.actions.clone()
        others[world] = (others[world] + 1) % 4
        learner = make_module(allow_unknown_actions=allow_unknown_actions)
        return not gradients_equal(
            compute_gradients(learner, clips), compute_gradients(learner, replace(clips, actions=others))
        )

    assert [has_effect(world) for world in range(3)] == [True, False, True]


@pytest.mark.parametrize("allow_unknown_actions", [False, True])
def test_only_composite_actions_of_which_every_part_is_known_have_an_effect(allow_unknown_actions):
    rows = composite_space().from_flat(torch.rand(2, FRAMES, 7, generator=torch.Generator().manual_seed(1)) * 2 - 1)
    clips = make_batch(2, actions=rows, known_parts=torch.tensor([[True, True, True], [True, False, True]]))
    settings = {"num_actions": 0, "action_parts": composite_parts(), "allow_unknown_actions": allow_unknown_actions}

    def has_effect(world: int) -> bool:
        others = rows.clone()
        others[world] = rows[1 - world]
        gradients = (
            compute_gradients(make_module(**settings), given) for given in (clips, replace(clips, actions=others))
        )
        return not gradients_equal(*gradients)

    assert [has_effect(world) for world in range(2)] == [True, False]


def test_dropout_of_actions_and_proprioception_applies_in_training_only():
    clips = make_batch(state=torch.randn(3, FRAMES, 2))
    others = replace(clips, actions=(clips.actions + 1) % 4, state=-clips.state)
    settings = {"proprioception_dims": 2, "allow_unknown_actions": True, "rollout_steps": 0, "anti_collapse": None}
    learner = make_module(**settings, action_dropout=1.0, proprioception_dropout=1.0)
    assert gradients_equal(compute_gradients(learner, clips), compute_gradients(learner, others))
    assert float(learner(clips)[1]["prediction_loss"]) == 0  # latents after a dropped action have no loss
    learner.eval()
    assert not gradients_equal(compute_gradients(learner, clips), compute_gradients(learner, others))


def make_moving_clips(clips: int, frames: int = 4, generator=None) -> ClipBatch:
    """A bright column that an action moves to the right by 0 to 3 pixels."""
    actions = torch.randint(0, 4, (clips, frames), generator=generator)
    position = torch.randint(0, 8, (clips, 1), generator=generator) + torch.cat(
        (torch.zeros(clips, 1, dtype=torch.int64), actions[:, :-1].cumsum(1)), dim=1
    )
    video = (torch.arange(8) == (position % 8)[..., None])[:, :, None, :, None].expand(-1, -1, 8, -1, 3)
    return ClipBatch(frames=(video * 255).byte(), actions=actions)


def make_untrained_module(terms: AntiCollapseConfig | None, **settings) -> ActionConditionedJEPAModule:
    torch.manual_seed(0)
    parts = jepa_parts("flatten", decoder=False, residual=True, action_conditioning="modulation")
    parts["encoder"], parts["projector"] = ConvFrameEncoder((8, 8), [8, 8]), LatentProjector((2, 2), 8, "flatten", 8)
    return ActionConditionedJEPAModule(
        **parts, optimizer=OptimizerConfig(), anti_collapse=terms, loss_type="l2", **settings
    ).train()


def train(learner: ActionConditionedJEPAModule, steps: int) -> None:
    optimizer, generator = torch.optim.Adam(learner.parameters(), lr=3e-3), torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        learner(make_moving_clips(32, generator=generator))[0].backward()
        optimizer.step()
    learner.eval()


@pytest.mark.parametrize(
    ("terms", "keeps_variance"),
    [
        (None, False),
        (AntiCollapseConfig(VarianceCovarianceRegularizer(5, 1), inverse_dynamics_weight=1.0), True),
        (AntiCollapseConfig(SIGReg(1.0, num_slices=32), inverse_dynamics_weight=1.0), True),
    ],
)
def test_a_trained_encoder_collapses_without_anti_collapse_terms(terms, keeps_variance):
    learner = make_untrained_module(terms)
    clips = make_moving_clips(64, generator=torch.Generator().manual_seed(5))

    def spread() -> float:
        with torch.no_grad():
            return float(learner.encode_latents(clips.frames)[:, 0].std(dim=0).mean())

    before = spread()
    train(learner, 100)
    assert (spread() > before) if keeps_variance else (spread() < 0.3 * before)
    if keeps_variance:  # the model can be planned in: better than predicting no change, and sensitive to actions
        with torch.no_grad():
            diagnostics = learner._dynamics_diagnostics(clips)
        assert diagnostics["open_loop"] < 0.5 < 2 < diagnostics["shuffle_ratio"]


def test_sample_equals_a_rollout_of_the_simulator():
    learner, clips = make_module(context_frames=2).eval(), make_batch()
    parts = {name: getattr(learner, name) for name in VJEPAACSimulator.NETWORK_NAMES}
    world = VJEPAACSimulator(**parts, actions=ActionSpace("discrete", 4))
    state, frame = world.reset(clips.frames[:, :2], 0, clips.actions[:, :1])
    frames = [frame]
    for i in range(1, FRAMES - 1):
        state, output = world.step(state, clips.actions[:, i])
        frames.append(output.frame)
    sample = learner.sample(clips)
    assert sample.shape == clips.frames.shape
    assert (sample[:, 1:].int() - torch.stack(frames, dim=1).int()).abs().max() <= 1  # rounding of a pixel at a half


@pytest.mark.parametrize("pool", ["none", "flatten"])
def test_samples_without_a_decoder_are_in_false_colors(pool):
    sample = make_module({"decoder": None}, pooling=pool).eval().sample(make_batch())
    assert sample.shape == make_batch().frames.shape and sample.dtype == torch.uint8 and sample.float().std() > 0


def test_a_video_encoder_encodes_each_frame_independently(tmp_path):
    torch.manual_seed(0)
    encoder = randomize(VideoEncoder((8, 8), 4, tubelet=2, patch_size=4, width=16, depth=1, heads=2))
    projector = LatentProjector((2, 2), 16, "none", latent_width=0, norm="layer")
    parts = jepa_parts(latent_width=16, normalize_output=True) | {"projector": projector, "decoder": None}
    parts["encoder"] = save_frozen_encoder(tmp_path, encoder)
    learner = ActionConditionedJEPAModule(**parts, optimizer=OptimizerConfig())
    frames = make_batch().frames
    latents = learner.encode_latents(frames)
    assert latents.shape == (3, FRAMES, 4, 16)
    other = frames.clone()
    other[:, 2] = 255 - other[:, 2]
    is_changed = (learner.encode_latents(other) - latents).abs().amax(dim=(0, 2, 3)) > 1e-6
    assert is_changed.tolist() == [False, False, True, False, False, False]
    torch.testing.assert_close(latents.var(-1, unbiased=False), torch.ones(3, FRAMES, 4), rtol=0, atol=1e-3)
    assert learner(make_batch())[0].isfinite()


@pytest.mark.parametrize("pool", ["none", "mean", "attention", "flatten"])
@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
@pytest.mark.parametrize("hidden", [0, 6])
def test_projections_have_their_shape_and_in_eval_mode_treat_frames_independently(pool, norm, hidden):
    torch.manual_seed(0)
    projector = LatentProjector((2, 3), 4, pool, latent_width=5, hidden=hidden, norm=norm)
    features = torch.randn(3, 4, 6, 4)
    n = projector.latent_grid[0] * projector.latent_grid[1]
    assert projector(features).shape == (3, 4, n, 5) and n == (6 if pool == "none" else 1)
    projector.eval()
    torch.testing.assert_close(projector(features)[1:2, 2:3], projector(features[1:2, 2:3]), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"features must be \[b, t, 6, 4\], got \[3, 4, 5, 4\]"):
        projector(features[:, :, :5])


@pytest.mark.parametrize("hidden", [0, 6])
def test_batch_norm_output_has_unit_variance(hidden):
    projector = LatentProjector((2, 2), 4, "mean", latent_width=6, hidden=hidden, norm="batch")
    outputs: list[torch.Tensor] = []
    projector.batch_norm.register_forward_hook(lambda _, __, output: outputs.append(output))
    projector(torch.randn(16, 4, 4, 4))
    torch.testing.assert_close(outputs[0].var(0, unbiased=False), torch.ones(6), rtol=0, atol=1e-2)


@pytest.mark.parametrize("space", [ActionSpace("discrete", 4), ActionSpace("continuous", 2), composite_space()])
def test_inverse_dynamics_learns_the_actions(space):
    torch.manual_seed(0)
    network, known = InverseDynamicsModel(8, space, hidden=32), torch.ones(64, 2, dtype=torch.bool)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(120):
        actions = (
            torch.randint(4, (64, 2)) if space.is_discrete else space.from_flat(torch.rand(64, 2, space.size) * 2 - 1)
        )
        columns = actions[..., None].float() if space.is_discrete else actions
        steps = torch.nn.functional.pad(columns, (0, 8 - columns.shape[-1]))
        latents = torch.cat((torch.zeros(64, 1, 8), steps.cumsum(1)), dim=1)[:, :, None] + torch.randn(64, 1, 1, 8)
        loss = network(latents, actions, known)
        first = loss.item() if _ == 0 else first  # noqa: F821
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < first / 2
    assert network(latents, actions, ~known) == 0


@pytest.mark.parametrize(("grid", "size"), [((1, 1), (8, 16)), ((2, 4), (8, 16)), ((2, 2), (8, 8))])
def test_each_token_is_decoded_at_its_position(grid, size):
    torch.manual_seed(0)
    decoder = LatentDecoder(size, grid, 6, [4, 4])
    latents = torch.randn(1, 2, grid[0] * grid[1], 6)
    images = decoder(latents)
    assert images.shape == (1, 2, 3, *size)
    if grid != (1, 1):
        other = latents.clone()
        other[:, :, 0] += 1
        is_changed = (decoder(other) - images).abs().amax(dim=(0, 1, 2)) > 1e-6
        assert is_changed[0, 0] and not is_changed[-1].any() and not is_changed[:, -1].any()


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"dynamics": {"latent_width": 5}}, {}, "dynamics.latent_width=5 but the projector's: 8. Set"),
        ({"dynamics": {"grid": (1, 1)}}, {}, r"dynamics.grid=\(1, 1\) but the projector's latents: \(2, 2\)"),
        ({"projector": ((2, 2), 7, "none", 8)}, {}, "projector.width=7 but the encoder's width: 4"),
        ({"projector": ((4, 4), 4, "none", 8)}, {}, r"projector.grid=\(4, 4\) but the encoder's tokens: \(2, 2\)"),
        ({"decoder": ((16, 16), (2, 2), 8, [4, 4])}, {}, r"decoder.image_size=\(16, 16\) but the encoder's"),
        ({}, {"action_dropout": 2.0}, "action_dropout=2.0 must be between 0 and 1"),
        ({}, {"action_dropout": 0.5}, "set dynamics.allow_unknown_actions to true"),
        ({}, {"rollout_steps": -1}, "rollout_steps=-1 must be 0 or more"),
        ({}, {"rollout_context_frames": 0}, "rollout_context_frames=0"),
        (
            {"decoder": None},
            {"anti_collapse": AntiCollapseConfig(reconstruction_weight=1.0)},
            "reconstruction_weight needs a decoder",
        ),
    ],
)
def test_rejects_mismatched_parts(changes, settings, message):
    parts = jepa_parts() | {"dynamics": action_predictor(**changes.get("dynamics", {}))}
    parts |= {"projector": LatentProjector(*changes["projector"])} if "projector" in changes else {}
    if "decoder" in changes:
        parts["decoder"] = changes["decoder"] and LatentDecoder(*changes["decoder"])
    with pytest.raises(ValueError, match=message):
        ActionConditionedJEPAModule(**parts, optimizer=OptimizerConfig(), **settings)


def test_rejects_missing_encoders_and_anti_collapse_terms_for_frozen_ones(tmp_path):
    with pytest.raises(ComponentError, match=r"there is no config\.json"):
        make_module({"encoder": str(tmp_path / "nowhere")})
    save_component(jepa_parts()["decoder"], tmp_path / "other" / "encoder")
    with pytest.raises(ComponentError, match="holds a LatentDecoder, which is no encoder"):
        make_module({"encoder": str(tmp_path / "other")})
    plain = LatentProjector((2, 2), 4, "none", latent_width=0, norm="layer")
    with pytest.raises(ValueError, match="a frozen encoder cannot collapse"):
        make_module(
            jepa_parts(latent_width=4, decoder=False) | {"encoder": save_frozen_encoder(tmp_path), "projector": plain}
        )
    with pytest.raises(ValueError, match="2 doublings of a grid"):
        LatentDecoder((8, 8), (3, 3), 6, [4, 4])
    with pytest.raises(ValueError, match="3 stages have a stride of 8"):
        ConvFrameEncoder((12, 8), [4, 4, 4])


@pytest.mark.parametrize(
    ("clips", "settings", "message"),
    [
        (make_batch(frames=1), {}, "clips of 1 frames: dynamics need at least 2"),
        (make_batch(frames=3), {"rollout_steps": 4}, "need clips of 5 frames, these have 3: raise data.clip_length"),
        (make_batch(actions=None), {}, "these clips have none: name them in data.fields"),
        (make_batch(actions=torch.zeros(3, FRAMES, 2)), {}, r"integers \[b, t\], got torch.float32 \[3, 6, 2\]"),
        (make_batch(actions=torch.full((3, FRAMES), 9)), {}, "actions run from 9 to 9"),
        (make_batch(), {"action_dims": 2}, r"actions must be \[b, t, 2\]"),
        (
            make_batch(),
            {"proprioception_dims": 2},
            "proprioception_dims=2, but the state of a frame in these clips has none: name state in",
        ),
        (make_batch(state=torch.zeros(3, FRAMES, 5)), {"proprioception_dims": 2}, "has 5 numbers"),
        (
            replace(make_batch(), frames=torch.zeros(3, FRAMES, 9, 8, 3, dtype=torch.uint8)),
            {},
            r"video must be \[b, t, 3, 8",
        ),
    ],
)
def test_rejects_mismatched_data(clips, settings, message):
    with pytest.raises(ValueError, match=message):
        make_module(**settings)(clips)
