"""LoRA starts as the pretrained network, trains only what it should, and merges into plain weights exactly."""

import pytest
import torch
from factories import dit, dynamics
from torch import nn

from vwm.nn.lora import LoRAConfig, LoRALinear, merge_lora, prepare_finetuning


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 5, bias=False)).double()


def randomize_lora_b(module: nn.Module) -> None:
    """Randomize B, which starts at zero, as if it had been trained."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("lora_b"):
                parameter.normal_()


def test_output_equals_the_papers_formula_and_starts_as_the_pretrained_network():
    plain, adapted, x = make_network(), make_network(), torch.randn(3, 6, dtype=torch.float64)
    LoRAConfig(rank=2, alpha=3.0, targets=("0",)).apply_to(adapted)
    assert torch.equal(adapted(x), plain(x))
    randomize_lora_b(adapted)
    layer = adapted[0]
    weight = plain[0].weight + 3.0 / 2 * layer.lora_b @ layer.lora_a
    expected = plain[2](nn.functional.gelu(x @ weight.T + plain[0].bias))
    torch.testing.assert_close(adapted(x), expected, rtol=0, atol=1e-12)


def test_merging_does_not_change_the_output():
    for network, targets in (
        (dynamics(), ("qkv", "out", "mlp.0", "mlp.2")),
        (dit(), ("qkv", "up", "down", "modulation")),
    ):
        plain_keys = set(network.state_dict())
        network = network.double().eval()
        LoRAConfig(rank=3, targets=targets).apply_to(network)
        randomize_lora_b(network)
        assert any(isinstance(part, LoRALinear) for part in network.modules())
        x = torch.randn(2, 5, network.places.shape[0], network.places.shape[1], dtype=torch.float64)
        extra_inputs = ()
        if network.transformer.__class__.__name__ == "VideoTransformer":
            extra_inputs = (network.coordinates, torch.randn(2, 5, x.shape[-1], dtype=torch.float64))
        unmerged = network.transformer(x, *extra_inputs)
        merge_lora(network)
        assert set(network.state_dict()) == plain_keys
        assert not any(isinstance(part, LoRALinear) for part in network.modules())
        torch.testing.assert_close(network.transformer(x, *extra_inputs), unmerged, rtol=0, atol=1e-10)


@pytest.mark.parametrize("mode", ["frozen", "lora", "trained"])
def test_only_trainable_parameters_get_a_gradient(mode):
    network = make_network()
    prepare_finetuning(network, mode, LoRAConfig(rank=2, targets=("0",)) if mode == "lora" else None)
    trainable = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    expected = {"frozen": set(), "lora": {"0.lora_a", "0.lora_b"}, "trained": {"0.weight", "0.bias", "2.weight"}}
    assert trainable == expected[mode]
    if trainable:
        network(torch.randn(3, 6, dtype=torch.float64)).square().sum().backward()
        assert all(
            (parameter.grad is not None) == (name in trainable) for name, parameter in network.named_parameters()
        )


def test_targets_match_whole_components_at_the_end_of_a_name():
    network = dynamics()
    LoRAConfig(targets=("out",)).apply_to(network)
    adapted = {name for name, part in network.named_modules() if isinstance(part, LoRALinear)}
    assert adapted == {f"transformer.blocks.{i}.{kind}.out" for i in range(2) for kind in ("space", "time")}


def test_rejects_invalid_settings():
    with pytest.raises(ValueError, match=r"no linear layer is called 'q'; choose from head, mlp\.0, mlp\.2, out, qkv"):
        LoRAConfig(targets=("q",)).apply_to(dynamics())
    with pytest.raises(ValueError, match=r"lora\.rank must be 1 or more, got 0"):
        LoRAConfig(rank=0).apply_to(dynamics())
    with pytest.raises(ValueError, match="adapt='frozen' uses none"):
        prepare_finetuning(dynamics(), "frozen", LoRAConfig())
