"""The latent action model: causality, the information bottleneck, and actions found in a known world."""

import pytest
import torch
import torch.nn.functional as F
from factories import latent_action


def video(frames: int = 8) -> torch.Tensor:
    return torch.rand(2, frames, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double() * 2 - 1


@pytest.mark.parametrize(
    "changes",
    [{"codebook": [2, 2]}, {"codebook": 6}, {"action_dims": 3}, {"codebook": 6, "chosen_by": "class", "sees": "pairs"}],
    ids=str,
)
def test_an_action_depends_on_frames_up_to_the_next_one(changes):
    model = latent_action(**changes).double().eval()
    x = video()
    changed = x.clone()
    changed[:, 5:] = -changed[:, 5:]
    before, after, streamed = model.infer(x), model.infer(changed), model.infer(x[:, :5])
    for name in ("codes", "actions"):
        whole, other, part = (getattr(actions, name)[:, :4] for actions in (before, after, streamed))
        assert torch.equal(whole, other)  # actions 0..3 lead to frames 1..4
        torch.testing.assert_close(whole, part, rtol=0, atol=1e-10)
    assert before.actions.shape == ((2, 7, 3) if model.continuous else (2, 7))
    assert before.actions.max() <= (1 if model.continuous else model.num_actions - 1)


@pytest.mark.parametrize("sees", ["past", "first"])
def test_a_prediction_depends_only_on_past_frames_and_actions(sees):
    model = latent_action(decoder_context=sees).double().eval()
    x, codes = video(), model.infer(video()).codes
    changed = x.clone()
    changed[:, 4:] = -changed[:, 4:]
    idle = codes.new_zeros(2, 8, 16)
    assert torch.equal(model.predict(x, idle)[:, :4], model.predict(changed, idle)[:, :4])
    moved = codes.clone()
    moved[:, 3] = -moved[:, 3]
    a, b = model.predict(x[:, :-1], codes), model.predict(x[:, :-1], moved)
    assert torch.equal(a[:, :3], b[:, :3]) and not torch.allclose(a[:, 3], b[:, 3])
    if sees == "first":
        other = x.clone()
        other[:, 1:] = 0
        assert torch.equal(model.predict(x[:, :-1], codes), model.predict(other[:, :-1], codes))


def test_an_untrained_model_copies_the_last_frame():
    from vwm.models.genie.latent_action import LatentActionModel

    torch.manual_seed(0)
    model = LatentActionModel((16, 16), 8, [2, 2], width=16, depth=1, heads=2, window=4).double()
    predicted, _ = model(video())
    assert torch.equal(predicted, video()[:, :-1])


@pytest.mark.parametrize(
    ("changes", "steps", "lr"),
    [({"codebook": [2]}, 100, 3e-3), ({"action_dims": 4}, 200, 1e-2)],
    ids=["code", "numbers"],
)
def test_learns_the_two_actions_of_a_moving_bar(changes, steps, lr):
    """A bar that steps left or right at random: after a short training the action gives the direction."""
    generator = torch.Generator().manual_seed(0)

    def world(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        moves = torch.randint(0, 2, (batch,), generator=generator)
        places = torch.stack((torch.full_like(moves, 7), 6 + 2 * moves), dim=1)
        columns = torch.arange(16)
        inside = (columns >= places[..., None]) & (columns < places[..., None] + 3)
        frames = inside[:, :, None, None, :].float().expand(-1, -1, 3, 16, -1) * 2 - 1
        return frames.contiguous(), moves

    model = latent_action(**changes, width=32, depth=1, patch_size=16).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    for _ in range(steps):
        frames, _ = world(16)
        predicted, actions = model(frames)
        loss = F.mse_loss(predicted, frames[:, 1:]) + actions.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    frames, moves = world(64)
    found = model.eval().infer(frames).actions[:, 0].reshape(64, -1)
    agree = ((found > 0) == (moves > 0)[:, None]).float().mean(dim=0)  # by dimension
    assert torch.maximum(agree, 1 - agree).max() == 1


def test_rejects_a_single_frame():
    with pytest.raises(ValueError, match="between two frames"):
        latent_action().infer(video(1).float())
