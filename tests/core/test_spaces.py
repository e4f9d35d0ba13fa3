"""Action spaces: their parts, their JSON, and the flat space that stands for a composite one."""

import json

import pytest
import torch
from factories import composite_space

from vwm.core.action_parts import ActionPart, read_action_parts
from vwm.core.spaces import ActionSpace


def test_a_composite_space_has_the_columns_of_its_parts():
    axes = ActionPart("axes", 2, names=("gas", "brake"), rest=(-1, -1))
    space = ActionSpace.composite(*composite_space().parts, axes)
    assert space.names[:3] == ("color", "keys.left", "keys.right") and space.names[-1] == "axes.brake"
    assert (space.size, space.shape, space.dtype) == (9, (9,), torch.float32)
    assert space.rest == (0,) * 7 + (-1, -1) and composite_space().rest == ()
    assert space.slices["mouse"] == slice(5, 7)
    assert str(composite_space()) == "composite actions of color (choice of 3), keys (keys of 4), mouse (pointer of 2)"


@pytest.mark.parametrize(
    "space",
    [
        composite_space(),
        ActionSpace("discrete", 2, ("a", "b"), latent=True),
        ActionSpace("continuous", 2, ("a", "b"), rest=(0.0, -1.0)),
    ],
)
def test_json_keeps_a_space(space):
    saved = json.loads(json.dumps(space.to_json()))
    assert ActionSpace.from_json(saved) == space
    assert ("parts" in saved) == space.is_composite
    if not space.is_composite:
        assert list(saved) == ["kind", "size", "names", "latent", "rest"]


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ([{"kind": "lever"}], "must be one of choice, keys, axes, pointer, got 'lever'"),
        ([{"kind": "keys", "size": 2.5}], r"size of action part 'keys' must lie in 1\.\."),
        ([{"kind": "keys", "size": 10**9}], r"size of action part 'keys' must lie in 1\.\."),
        ([{"kind": "pointer", "size": 3}], "a pointer has 2 columns"),
        ([{"kind": "keys", "size": 2, "names": ["a", "a"]}], "must be 2 different texts"),
        ([{"kind": "keys", "size": 2, "names": "ab"}], "names of an action part must be a list of texts"),
        ([{"kind": "keys", "size": 1, "rest": [0.5]}], "rest of action part 'keys' must be one number"),
        ([{"kind": "axes", "size": 1, "rest": [2]}], "rest of action part 'axes' must be one number"),
        ([{"kind": "axes", "size": 1, "rest": ["x"]}], "must be a list of numbers"),
        ([{"kind": "axes", "color": 1}], "must be an object with kind, size, name, names and rest"),
        ([{"kind": "axes", "name": 1}], "kind and name of an action part must be texts"),
        ([{"kind": "pointer"}, {"kind": "pointer"}], "must have different names, got pointer, pointer"),
        ({}, "must be a list of action parts"),
    ],
)
def test_rejects_invalid_parts(saved, message):
    with pytest.raises(ValueError, match=message):
        read_action_parts(saved)


def test_rejects_parts_that_do_not_fit_the_space():
    with pytest.raises(ValueError, match="discrete, continuous or composite"):
        ActionSpace("mixed", 2)
    for space in ({"kind": "composite", "size": 3}, {"kind": "discrete", "size": 2, "parts": (ActionPart("pointer"),)}):
        with pytest.raises(ValueError, match="a composite space has parts"):
            ActionSpace(**space)


def test_every_combination_of_choices_and_keys_is_enumerated():
    space = ActionSpace.composite(
        ActionPart("keys", 2, names=("left", "up")), ActionPart("choice", 3, names=tuple("abc"))
    )
    discrete = space.enumerated
    assert (discrete.kind, discrete.size, discrete.names[0]) == ("discrete", 12, "no key, a")
    rows = space.from_enumerated(torch.arange(12))
    space.check_rows(rows)
    assert len(rows.unique(dim=0)) == 12 and space.from_enumerated(torch.tensor([[11], [4]])).shape == (2, 1, 3)
    assert rows[10].tolist() == [1, 1, 1] and discrete.names[10] == "left+up, b"
    assert discrete.enumerated is discrete and torch.equal(discrete.from_enumerated(torch.arange(3)), torch.arange(3))
    many = ActionSpace.composite(ActionPart("keys", 11))
    for other, message in (
        (many, "2048 combinations are more than 1024"),
        (ActionSpace("continuous", 2), "2 continuous actions cannot be enumerated"),
        (ActionSpace.composite(ActionPart("keys", 2), ActionPart("pointer")), "because pointer is continuous"),
    ):
        with pytest.raises(ValueError, match=message):
            _ = other.enumerated


def test_the_flat_space_stands_for_every_action():
    space = composite_space()
    assert space.flat.kind == "continuous" and space.flat.names == space.names and space.flat.flat == space.flat
    uniform = torch.rand(4000, space.size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    actions = space.from_flat(uniform)
    space.check_rows(actions)
    assert torch.bincount(actions[:, 0].long()).tolist() == pytest.approx([4000 / 3] * 3, rel=0.1)
    assert actions[:, 1:5].mean(0).tolist() == pytest.approx([0.5] * 4, abs=0.05)
    assert torch.equal(actions[:, 5:], uniform[:, 5:])
    assert torch.equal(space.from_flat(space.to_flat(actions)), actions)
    assert space.from_flat(torch.zeros(space.size)).tolist() == [1, 0, 0, 0, 0, 0, 0]  # no key is held at 0
    for end in (-1.0, 1.0):
        space.check_rows(space.from_flat(torch.full((2, 5, space.size), end)))
    plain = ActionSpace("continuous", 7)
    assert plain.flat is plain and plain.from_flat(uniform) is uniform is plain.to_flat(uniform)
