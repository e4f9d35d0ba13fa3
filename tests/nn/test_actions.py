"""Embeddings of actions: parts that are unknown have no influence, and are told apart from known ones."""

import pytest
import torch
from factories import composite_parts, composite_space, randomize

from vwm.core.spaces import ActionSpace
from vwm.nn.actions import check_action_space, embedded_action_space, make_action_embedding

WIDTH = 6
SETTINGS = {
    "discrete": {"num_actions": 3},
    "continuous": {"action_dims": 2},
    "composite": {"action_parts": composite_parts()},
}


def draw(space: ActionSpace, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if space.is_discrete:
        return torch.randint(space.size, (2, 5), generator=generator)
    return space.from_flat(torch.rand(2, 5, space.size, generator=generator) * 2 - 1)


@pytest.mark.parametrize("kind", SETTINGS)
def test_every_action_has_a_vector_of_its_own(kind):
    embedding = randomize(make_action_embedding(WIDTH, **SETTINGS[kind]))
    actions, unknown = draw(embedding.space), torch.ones(WIDTH)
    embedding.check(actions)
    known = torch.tensor([True, False])[:, None].expand(2, 5)
    embedded = embedding.embed(actions, known, unknown)
    assert torch.equal(embedded[0], embedding(actions)[0]) and (embedded[1] == 1).all()
    assert not torch.equal(embedding(actions), embedding(draw(embedding.space, seed=1)))
    embedding.init_constant(torch.arange(WIDTH).float())
    torch.testing.assert_close(embedding(actions), torch.arange(WIDTH).expand(2, 5, -1).float())


def test_unknown_parts_have_their_own_vectors_and_no_influence():
    embedding = randomize(make_action_embedding(WIDTH, **SETTINGS["composite"]))
    actions, unknown = draw(embedding.space), torch.full((WIDTH,), 7.0)
    known = torch.ones(2, 5, 3, dtype=torch.bool)
    assert torch.equal(embedding.embed(actions, known, unknown), embedding(actions))
    for part, columns in enumerate(embedding.space.slices.values()):
        hidden = known.clone()
        hidden[..., part] = False
        changed = actions.clone()
        changed[..., columns] = (changed[..., columns] + 1) % 2
        assert torch.equal(embedding.embed(actions, hidden, unknown), embedding.embed(changed, hidden, unknown))
        assert not torch.equal(embedding.embed(actions, known, unknown), embedding.embed(changed, known, unknown))
        assert not torch.equal(embedding.embed(actions, hidden, unknown), embedding(actions))
    assert (embedding.embed(actions, ~known, unknown) == 7).all()


def test_spaces_are_named_by_the_recording():
    embedding = make_action_embedding(
        WIDTH, action_parts=[{"kind": p["kind"], "size": p["size"]} for p in composite_parts()]
    )
    space = embedded_action_space(embedding, {"action_parts": composite_parts()})
    assert space == composite_space()
    check_action_space(embedding, space)
    assert embedded_action_space(embedding, {}).names[:2] == ("choice", "keys.0")
    other = [{"kind": "axes", "size": 7}]
    assert embedded_action_space(embedding, {"action_parts": other}).names[0] == "choice"
    with pytest.raises(
        ValueError, match=r"axes \(axes of 7\) named, but the dynamics takes composite actions of choice"
    ):
        check_action_space(embedding, embedded_action_space(make_action_embedding(WIDTH, action_parts=other), {}))
    with pytest.raises(ValueError, match="7 continuous actions named, but the dynamics takes 7 composite ones"):
        check_action_space(embedding, ActionSpace("continuous", 7))


def test_rejects_two_kinds_of_actions_and_actions_of_another_kind():
    with pytest.raises(ValueError, match="set one of num_actions=2, action_dims=3"):
        make_action_embedding(WIDTH, num_actions=2, action_dims=3)
    assert make_action_embedding(WIDTH) is None
    embedding = make_action_embedding(WIDTH, **SETTINGS["composite"])
    with pytest.raises(ValueError, match=r"actions must be \[b, t, 7\] of floats .*got torch.int64 \[2, 5\]"):
        embedding(torch.zeros(2, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="'color' must be a whole number"):
        embedding.check(torch.full((1, 1, 7), 0.5))
