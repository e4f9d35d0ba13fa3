"""Loading pretrained weights: all are copied except those listed as new, and any other mismatch is an error."""

from __future__ import annotations

import pytest
import torch
from factories import dit, tokenizer

from vwm.core.components import (
    ComponentError,
    copy_weights,
    load_component,
    load_pretrained_weights,
    save_component,
)
from vwm.tokenizers.space_time_tokenizer import SpaceTimeTokenizer


def copied_weights(network) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def test_all_weights_except_new_ones_are_copied(tmp_path):
    save_component(dit(seed=1, num_actions=4), tmp_path / "world")
    source, target = copied_weights(dit(seed=1, num_actions=4)), dit(seed=2, num_actions=3)
    before = copied_weights(target)
    load_pretrained_weights(target, tmp_path / "world", new=("embed_action.", "no_action"), settings=("num_actions",))
    for key, value in target.state_dict().items():
        is_new = key.startswith(("embed_action.", "no_action"))
        assert torch.equal(value, (before if is_new else source)[key]), key
    assert not torch.equal(before["embed.weight"], source["embed.weight"])
    assert all(p.requires_grad for p in target.parameters())


def test_copying_from_a_network_equals_loading_from_its_folder(tmp_path):
    source, loaded, copied = dit(seed=1), dit(seed=2), dit(seed=2)
    save_component(source, tmp_path / "world")
    load_pretrained_weights(loaded, tmp_path / "world", new=("embed.",))
    copy_weights(copied, source, "it", new=("embed.",))
    assert all(torch.equal(value, copied_weights(loaded)[key]) for key, value in copied.state_dict().items())
    assert not torch.equal(copied.state_dict()["embed.weight"], source.state_dict()["embed.weight"])
    with pytest.raises(ComponentError, match="it: window=4 there and 5 here"):
        copy_weights(dit(window=5), source, "it")


@pytest.mark.parametrize(
    ("changes", "allowed", "message"),
    [
        ({"window": 5}, {}, "window=4 there and 5 here"),  # a setting that changes no shape
        ({"num_actions": 3}, {"settings": ("num_actions",)}, r"another shape: \['embed_action.table.weight'\]"),
        ({"num_step_sizes": 3}, {"settings": ("num_step_sizes",)}, r"missing weights: \['embed_step.weight'\]"),
        ({"num_actions": 0}, {"settings": ("num_actions",)}, r"unexpected weights: \['embed_action.table.weight'\]"),
    ],
)
def test_mismatches_are_reported_and_no_weight_is_copied(tmp_path, changes, allowed, message):
    save_component(dit(seed=1), tmp_path / "world")
    target = dit(seed=2, **changes)
    before = copied_weights(target)
    with pytest.raises(ComponentError, match=message):
        load_pretrained_weights(target, tmp_path / "world", **allowed)
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())
    with pytest.raises(ComponentError, match=r"there is no config\.json"):
        load_pretrained_weights(target, tmp_path / "nothing")


def test_checking_a_folder_draws_no_random_numbers(tmp_path):
    save_component(tokenizer(), tmp_path / "tokenizer")
    torch.manual_seed(0)
    SpaceTimeTokenizer.from_pretrained(tmp_path / "tokenizer", low_cpu_mem_usage=False)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_component(tmp_path / "tokenizer")
    assert torch.equal(torch.rand(3), expected)
