"""Beginning from another network's weights: all are taken but those that are named, and nothing is taken in silence."""

from __future__ import annotations

import pytest
import torch
from factories import dit

from vwm.core.components import ComponentError, copy_weights, load_pretrained_weights, save_component


def weights(network) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def test_every_weight_is_taken_but_the_new_ones(tmp_path):
    save_component(dit(seed=1, num_actions=4), tmp_path / "world")
    theirs, mine = weights(dit(seed=1, num_actions=4)), dit(seed=2, num_actions=3)
    before = weights(mine)
    load_pretrained_weights(mine, tmp_path / "world", new=("embed_action.", "no_action"), settings=("num_actions",))
    for key, value in mine.state_dict().items():
        kept = key.startswith(("embed_action.", "no_action"))
        assert torch.equal(value, (before if kept else theirs)[key]), key
    assert not torch.equal(before["embed.weight"], theirs["embed.weight"])
    assert all(p.requires_grad for p in mine.parameters())


def test_a_network_at_hand_gives_its_weights_as_its_folder_does(tmp_path):
    theirs, read, taken = dit(seed=1), dit(seed=2), dit(seed=2)
    save_component(theirs, tmp_path / "world")
    load_pretrained_weights(read, tmp_path / "world", new=("embed.",))
    copy_weights(taken, theirs, "it", new=("embed.",))
    assert all(torch.equal(value, weights(read)[key]) for key, value in taken.state_dict().items())
    assert not torch.equal(taken.state_dict()["embed.weight"], theirs.state_dict()["embed.weight"])
    with pytest.raises(ComponentError, match="it: window=4 there and 5 here"):
        copy_weights(dit(window=5), theirs, "it")


@pytest.mark.parametrize(
    ("changes", "allowed", "message"),
    [
        ({"window": 5}, {}, "window=4 there and 5 here"),  # a setting that no weight tells
        ({"num_actions": 3}, {"settings": ("num_actions",)}, r"another shape: \['embed_action.tables.0.weight'\]"),
        ({"num_step_sizes": 3}, {"settings": ("num_step_sizes",)}, r"missing weights: \['embed_step.weight'\]"),
        ({"num_actions": 0}, {"settings": ("num_actions",)}, r"unexpected weights: \['embed_action.tables.0.weight'\]"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_taken(tmp_path, changes, allowed, message):
    save_component(dit(seed=1), tmp_path / "world")
    mine = dit(seed=2, **changes)
    before = weights(mine)
    with pytest.raises(ComponentError, match=message):
        load_pretrained_weights(mine, tmp_path / "world", **allowed)
    assert all(torch.equal(value, before[key]) for key, value in mine.state_dict().items())
    with pytest.raises(ComponentError, match=r"there is no config\.json"):
        load_pretrained_weights(mine, tmp_path / "nothing")
