"""LoRA: begins as the pretrained network, moves only what it should, and merges into plain weights exactly."""

import pytest
import torch
from factories import dit, dynamics
from torch import nn

from vwm.nn.lora import LoRAConfig, LoRALinear, merge_lora, prepare_finetuning


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 5, bias=False)).double()


def moved(part: nn.Module) -> None:
    """As if it had been trained: B, which begins at zero, is random."""
    with torch.no_grad():
        for name, parameter in part.named_parameters():
            if name.endswith("lora_b"):
                parameter.normal_()


def test_it_is_the_papers_formula_and_begins_as_the_pretrained_network():
    plain, adapted, x = network(), network(), torch.randn(3, 6, dtype=torch.float64)
    LoRAConfig(rank=2, alpha=3.0, targets=("0",)).apply_to(adapted)
    assert torch.equal(adapted(x), plain(x))
    moved(adapted)
    low = adapted[0]
    weight = plain[0].weight + 3.0 / 2 * low.lora_b @ low.lora_a
    expected = plain[2](nn.functional.gelu(x @ weight.T + plain[0].bias))
    torch.testing.assert_close(adapted(x), expected, rtol=0, atol=1e-12)


def test_merged_is_unmerged():
    for made, targets in ((dynamics(), ("qkv", "out", "mlp.0", "mlp.2")), (dit(), ("qkv", "up", "down", "modulation"))):
        plain_keys = set(made.state_dict())
        made = made.double().eval()
        LoRAConfig(rank=3, targets=targets).apply_to(made)
        moved(made)
        assert any(isinstance(part, LoRALinear) for part in made.modules())
        x = torch.randn(2, 5, made.places.shape[0], made.places.shape[1], dtype=torch.float64)
        further = ()
        if made.transformer.__class__.__name__ == "VideoTransformer":
            further = (made.coordinates, torch.randn(2, 5, x.shape[-1], dtype=torch.float64))
        unmerged = made.transformer(x, *further)
        merge_lora(made)
        assert set(made.state_dict()) == plain_keys
        assert not any(isinstance(part, LoRALinear) for part in made.modules())
        torch.testing.assert_close(made.transformer(x, *further), unmerged, rtol=0, atol=1e-10)


@pytest.mark.parametrize("how", ["frozen", "lora", "trained"])
def test_only_what_may_move_gets_a_gradient(how):
    made = network()
    prepare_finetuning(made, how, LoRAConfig(rank=2, targets=("0",)) if how == "lora" else None)
    free = {name for name, parameter in made.named_parameters() if parameter.requires_grad}
    expected = {"frozen": set(), "lora": {"0.lora_a", "0.lora_b"}, "trained": {"0.weight", "0.bias", "2.weight"}}
    assert free == expected[how]
    if free:
        made(torch.randn(3, 6, dtype=torch.float64)).square().sum().backward()
        assert all((parameter.grad is not None) == (name in free) for name, parameter in made.named_parameters())


def test_a_target_is_the_whole_end_of_a_name():
    made = dynamics()
    LoRAConfig(targets=("out",)).apply_to(made)
    adapted = {name for name, part in made.named_modules() if isinstance(part, LoRALinear)}
    assert adapted == {f"transformer.blocks.{i}.{kind}.out" for i in range(2) for kind in ("space", "time")}


def test_wrong_settings_name_the_value():
    with pytest.raises(ValueError, match=r"no linear layer is called 'q'; choose from head, mlp\.0, mlp\.2, out, qkv"):
        LoRAConfig(targets=("q",)).apply_to(dynamics())
    with pytest.raises(ValueError, match=r"lora\.rank must be 1 or more, got 0"):
        LoRAConfig(rank=0).apply_to(dynamics())
    with pytest.raises(ValueError, match="adapt='frozen' uses none"):
        prepare_finetuning(dynamics(), "frozen", LoRAConfig())
