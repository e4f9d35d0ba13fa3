"""The published files of Dreamer 4 in PyTorch: strict names and shapes, tasks, and what is wrong with a file."""

import re
from pathlib import Path

import pytest
import torch
from published_worlds import dreamer4_networks, dreamer4_policy, write_dreamer4

from vwm.core.weight_mapping import PretrainedWeightsError
from vwm.models.dreamer4.agent_heads import Dreamer4PolicyHead
from vwm.models.dreamer4.network import Dreamer4Dynamics
from vwm.models.dreamer4.published import load_dreamer4
from vwm.models.dreamer4.tokenizer import Dreamer4Tokenizer

LINEAR = ("weight", "bias")


def layer_names(prefix: str, depth: int) -> set[str]:
    """The names of a transformer with attention in time in every layer."""
    parts = [f"{axis}.attn.{part}.{kind}" for axis in ("space", "time") for part in ("qkv", "out") for kind in LINEAR]
    parts += [f"mlp.{part}.{kind}" for part in ("fc_in", "fc_out") for kind in LINEAR]
    parts += [f"norm{number}.scale" for number in (1, 2, 3)]
    return {f"{prefix}transformer.layers.{layer}.{part}" for layer in range(depth) for part in parts}


def test_the_networks_have_the_published_names_and_sizes():
    """Those of the first generation with the authors' defaults, counted on their classes."""
    with torch.device("meta"):
        tokenizer, dynamics = Dreamer4Tokenizer(), Dreamer4Dynamics()
    names = layer_names("encoder.", 8) | layer_names("decoder.", 8)
    names |= {"encoder.mae.mask_token", "encoder.latents", "decoder.patch_queries"}
    for part in ("encoder.patch_proj", "encoder.bottleneck_proj", "decoder.up_proj", "decoder.patch_head"):
        names |= {f"{part}.{kind}" for kind in LINEAR}
    assert set(tokenizer.state_dict()) == names
    names = layer_names("", 8) | {"register_tokens", "action_encoder.base", "step_embed.weight", "signal_embed.weight"}
    for part in ("spatial_proj", "action_encoder.fc1", "action_encoder.fc2", "flow_x_head"):
        names |= {f"{part}.{kind}" for kind in LINEAR}
    assert set(dynamics.state_dict()) == names | {"agents"}
    assert sum(weight.numel() for weight in tokenizer.parameters()) == 21_361_488
    assert sum(weight.numel() for weight in dynamics.parameters()) - dynamics.agents.numel() == 42_642_496
    assert tuple(dynamics.signal_embed.weight.shape) == (9, 512)
    names = {f"{part}.{kind}" for part in ("projector.fc_in", "projector.fc_out", "out") for kind in LINEAR}
    with torch.device("meta"):
        head = Dreamer4PolicyHead()  # the authors' defaults: 8 actions of 16 numbers, the perceptron 4 / 3 as wide
    shapes = {name: tuple(weight.shape) for name, weight in head.state_dict().items()}
    assert set(shapes) == names | {"pool_query", "pool_kv.weight"}
    assert (shapes["projector.fc_in.weight"], shapes["out.weight"]) == ((1364, 512), (128, 512))


@pytest.mark.parametrize("rotary", [False, True], ids=["dreamer4", "mmbench2"])
def test_published_files_load_to_equal_networks(rotary: bool, tmp_path: Path):
    instruction = torch.tensor([1.0, -2.0, 0.5])
    write_dreamer4(tmp_path, rotary, instruction if rotary else None)
    tokenizer, dynamics, reward = dreamer4_networks(rotary)
    world = load_dreamer4(tmp_path, "reach" if rotary else "")
    simulator = world.simulator
    policy = dreamer4_policy() if rotary else None
    parts = ((simulator.tokenizer, tokenizer), (simulator.reward, reward), (simulator.trained_policy, policy))
    for ours, theirs in parts:
        assert (ours is None) == (theirs is None)
        if ours is not None:
            pairs = zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True)
            assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
    state, expected = simulator.dynamics.state_dict(), dynamics.state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected if name != "agents")
    torch.testing.assert_close(state["agents"], expected["agents"] if rotary else torch.zeros(2, 16))
    kept = ("latents", "channels", "packing", "heads", "time_every", "registers", "agent_attention", "rotary")
    assert {name: simulator.dynamics.config[name] for name in kept} == {name: dynamics.config[name] for name in kept}
    assert simulator.has_trained_policy == rotary
    assert simulator.dynamics.window == 25 and world.license == "mit"
    assert simulator.spec.actions.size == (3 if rotary else 16)
    assert tuple(simulator.sampling) == ((8, 0.01, 0.125) if rotary else (2, 0.0, 0.0))
    assert ("mmbench2-models" in world.origin) == rotary


def test_what_is_wrong_with_the_files_is_named(tmp_path: Path):
    with pytest.raises(PretrainedWeightsError, match=r"no tokenizer\.pt or tokenizer_ckpt\.pt"):
        load_dreamer4(tmp_path)
    write_dreamer4(tmp_path, True, torch.ones(3))
    file = tmp_path / "dynamics.pt"
    whole = torch.load(file)

    def message(task: str = "", **changes: object) -> str:
        torch.save({**whole, **changes}, file)
        with pytest.raises(ValueError, match=re.escape(str(tmp_path))) as caught:
            load_dreamer4(tmp_path, task)
        return str(caught.value)

    name = "_orig_mod.transformer.layers.1.time.attn.qkv.bias"
    weights = dict(whole["dynamics"])
    assert "missing: transformer.layers.1.time.attn.qkv.bias" in message(
        dynamics={key: value for key, value in weights.items() if key != name}
    )
    assert "qkv.bias [5] instead of [48]" in message(dynamics={**weights, name: torch.zeros(5)})
    assert "not used: extra" in message(dynamics={**weights, "extra": torch.zeros(1)})
    assert "no weights of this name" in message(dynamics=None)
    head = dict(whole["policy_head"])
    assert "policy_head: " in message(policy_head={"out.weight": torch.zeros(1)})
    assert "not used: extra" in message(policy_head={**head, "extra": torch.zeros(1)})
    assert "out.weight [48, 16] instead of" in message(args={**whole["args"], "bc_act_dim": 5})
    assert "has no pool_query" in message(rew_head={"out.weight": torch.zeros(1)})
    assert "no task 'reech' (did you mean reach?)" in message("reech") or "reach" in message("reech")
    (tmp_path / "tasks.json").write_text('{"reach": {"action_dim": 3, "text_embedding": [1, 2]}}')
    assert "takes instructions of 3 numbers" in message("reach")
    (tmp_path / "tasks.json").unlink()
    assert "take it from the authors' code" in message("reach")
