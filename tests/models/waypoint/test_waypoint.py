"""Waypoint 1: what it remembers, what it reads, and its published files with strict names."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from published_worlds import waypoint_networks, waypoint_world, write_waypoint
from safetensors.torch import load_file, save_file

from vwm.core.components import rebuild_network
from vwm.core.spaces import ActionSpace
from vwm.core.weight_mapping import PretrainedWeightsError
from vwm.models.waypoint.autoencoder import WaypointAutoencoder
from vwm.models.waypoint.memory import LayerMemory
from vwm.models.waypoint.network import WaypointDiT
from vwm.models.waypoint.published import load_waypoint, load_waypoint_autoencoder
from vwm.models.waypoint.simulator import KEY_CODES, WaypointSimulator, keyboard_and_mouse


@pytest.mark.parametrize(("slots", "stride"), [(2, 1), (3, 1), (2, 2), (2, 3)])
def test_a_frame_attends_to_the_last_remembered_ones_and_to_itself(slots: int, stride: int):
    """Keys hold the number of their frame; two worlds of a batch are at different frames."""
    memory = LayerMemory.empty(2, 1, slots, 1, 1, torch.zeros(1))
    for time in range(14):
        frame = torch.tensor([time, time + 5])
        own = frame.float().view(2, 1, 1, 1)
        keys, _, mask = memory.attended(own, own, frame, stride)
        for world, now in enumerate(frame.tolist()):
            first = 0 if world == 0 else 5
            kept = [past for past in range(first, now) if past % stride == 0]
            # a frame that takes a slot does not attend to what it replaces
            limit = slots - 1 if now % stride == 0 else slots
            visible = kept[-limit:] if limit else []
            seen = keys[world, 0, :, 0][mask[world, 0, 0]].tolist()
            assert sorted(seen) == [*map(float, visible), float(now)]
        memory = memory.remember(own, own, frame, stride)


def test_a_world_of_one_block_forgets_frames_beyond_its_slots():
    tokenizer, dynamics = waypoint_networks()
    dynamics = rebuild_network(dynamics, depth=1, global_every=2, global_offset=1)
    world = WaypointSimulator(tokenizer, dynamics, keyboard_and_mouse())
    context = torch.randint(0, 256, (1, 5, 12, 20, 3), dtype=torch.uint8)
    action = torch.zeros(1, world.spec.actions.size)

    def latent(frames: torch.Tensor) -> torch.Tensor:
        return world.step(world.reset(frames)[0], action)[1].latent

    older, newer = context.clone(), context.clone()
    older[:, :4] = 255 - older[:, :4]  # two slots: the frame before the last is the one that is replaced
    newer[:, 4] = 255 - newer[:, 4]
    assert torch.equal(latent(older), latent(context)) and not torch.equal(latent(newer), latent(context))


def test_actions_become_the_buttons_of_the_network():
    world = waypoint_world()
    space = world.spec.actions
    action = torch.zeros(1, space.size)
    for name in ("keys.W", "keys.jump", "keys.attack"):
        action[0, space.names.index(name)] = 1
    action[0, space.slices["mouse"]] = torch.tensor([0.5, -0.25])
    action[0, space.slices["wheel"]] = 2
    row = world._network_action(action)[0]
    assert row[:2].tolist() == [0.5, -0.25] and row[-1] == -1
    assert row[2:-1].nonzero().flatten().tolist() == [1, 32, 87] and len(row) == 259
    assert len(set(KEY_CODES.values())) == len(KEY_CODES)


def test_the_prompt_is_read_and_zeros_are_none():
    world = waypoint_world()
    state, _ = world.reset(torch.zeros(1, 1, 12, 20, 3, dtype=torch.uint8))
    action = torch.zeros(1, world.spec.actions.size)
    latent = world.step(state, action)[1].latent
    with torch.no_grad():
        world.dynamics.prompt.zero_()
    silent = world.step(state, action)[1].latent
    assert not torch.equal(silent, latent)
    for block in world.dynamics.transformer.blocks:
        block.prompt_cross_attn = None
    torch.testing.assert_close(world.step(state, action)[1].latent, silent)


def test_the_networks_have_the_published_sizes():
    """Those of Waypoint-1-Small's config, counted on the authors' class (shared weights once, without null_emb)."""
    with torch.device("meta"):
        dynamics, tokenizer = WaypointDiT(), WaypointAutoencoder()
    assert sum(weight.numel() for weight in dynamics.parameters()) - dynamics.prompt.numel() == 2_302_999_488
    assert tokenizer.grid == (32, 32) and dynamics.tokens == (16, 16)
    blocks = dynamics.transformer.blocks
    assert [block.prompt_cross_attn is not None for block in blocks] == [number % 3 == 0 for number in range(22)]
    assert dynamics.strides[:5] == [8, 1, 1, 1, 8] and set(dynamics.slots) == {16}
    assert "transformer.blocks.21.attn.gate_proj.weight" in dynamics.state_dict()
    assert tuple(dynamics.ctrl_emb.mlp.fc1.weight.shape) == (12800, 259)


def test_published_files_load_to_equal_networks(tmp_path: Path):
    write_waypoint(tmp_path)
    tokenizer, dynamics = waypoint_networks()
    found = load_waypoint_autoencoder(tmp_path)
    for name, value in tokenizer.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value)
    assert (found.square, found.image_size) == (512, (360, 640))
    settings = yaml.safe_load((tmp_path / "config.yaml").read_text())
    settings |= {"height": 128, "width": 128}  # tokens of the autoencoder of two resolutions
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    world = load_waypoint(tmp_path)
    loaded = world.simulator.dynamics
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in dynamics.state_dict().items())
    names = [name for name in dynamics.config if name != "grid" and not name.startswith("_")]
    assert {name: loaded.config[name] for name in names} == {name: dynamics.config[name] for name in names}
    assert (world.license, world.simulator.spec.fps) == ("apache-2.0", 60.0)


def test_what_is_wrong_with_the_files_is_named(tmp_path: Path):
    with pytest.raises(PretrainedWeightsError, match=r"config\.yaml: there is no such file"):
        load_waypoint(tmp_path)
    write_waypoint(tmp_path)
    weights, config = load_file(tmp_path / "model.safetensors"), tmp_path / "config.yaml"

    def message(changes: dict[str, object], left_out: str = "", settings: dict[str, object] | None = None) -> str:
        whole = {name: value for name, value in {**weights, **changes}.items() if name != left_out}
        save_file(whole, tmp_path / "model.safetensors")
        before = config.read_text()
        config.write_text(yaml.safe_dump({**yaml.safe_load(before), **(settings or {})}))
        with pytest.raises(PretrainedWeightsError) as caught:
            load_waypoint(tmp_path)
        config.write_text(before)
        return str(caught.value)

    shared = "transformer.blocks.1.cond_head.cond_proj.2.weight"
    assert f"{shared} differs" in message({shared: torch.zeros(32, 32)})
    assert "missing: transformer.blocks.0.attn.k_proj.weight" in message({}, "transformer.blocks.0.attn.k_proj.weight")
    assert "not used: extra" in message({"extra": torch.zeros(1)})
    assert "out_norm.fc.weight [2] instead of" in message({"out_norm.fc.weight": torch.zeros(2)})
    assert "value_residual=True is not supported" in message({}, settings={"value_residual": True})
    assert "d_model must be a whole number" in message({}, settings={"d_model": None})
    assert "scheduler_sigmas must be a list" in message({}, settings={"scheduler_sigmas": 4})
    save_file({"prompt": torch.zeros(3, 5)}, tmp_path / "prompt.safetensors")
    assert "must be [tokens, 16], got [3, 5]" in message({})


def test_rejects_what_does_not_fit():
    tokenizer, dynamics = waypoint_networks()
    with pytest.raises(ValueError, match=re.escape("the dynamics takes [8, 8] x 4")):
        WaypointSimulator(tokenizer, rebuild_network(dynamics, grid=(8, 8)), keyboard_and_mouse())
    with pytest.raises(ValueError, match="got 4 discrete actions"):
        WaypointSimulator(tokenizer, dynamics, ActionSpace("discrete", 4))
    for changes in ({"grid": (3, 4)}, {"heads": 3}, {"sigmas": (1.0, 0.5)}, {"sigmas": (0.5, 1.0, 0.0)}):
        with pytest.raises(ValueError, match="must"):
            rebuild_network(dynamics, **changes)
    with pytest.raises(ValueError, match="square=9 must be a multiple of 2"):
        WaypointAutoencoder(
            square=9, encoder_widths=(8, 16), encoder_blocks=(1,), decoder_widths=(8, 16), decoder_blocks=(1,)
        )
