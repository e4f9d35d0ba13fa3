"""The latent action model: causality, the information bottleneck, and actions found in a known world."""

import pytest
import torch
import torch.nn.functional as F
from factories import latent_action


def video(frames: int = 8) -> torch.Tensor:
    return torch.rand(2, frames, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double() * 2 - 1


@pytest.mark.parametrize("codebook", [[2, 2], 6], ids=["fsq", "vq"])
def test_an_action_depends_on_frames_up_to_the_next_one(codebook):
    model = latent_action(codebook=codebook).double().eval()
    x = video()
    changed = x.clone()
    changed[:, 5:] = -changed[:, 5:]
    before, after = model.infer(x).codes, model.infer(changed).codes
    assert torch.equal(before[:, :4], after[:, :4])  # actions 0..3 lead to frames 1..4
    assert model.infer(x).indices.shape == (2, 7) and model.infer(x).indices.max() < model.num_actions


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


def test_learns_the_two_actions_of_a_moving_bar():
    """A bar that steps left or right at random: after a short training the code gives the direction."""
    generator = torch.Generator().manual_seed(0)

    def world(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        moves = torch.randint(0, 2, (batch,), generator=generator)
        places = torch.stack((torch.full_like(moves, 7), 6 + 2 * moves), dim=1)
        columns = torch.arange(16)
        inside = (columns >= places[..., None]) & (columns < places[..., None] + 3)
        frames = inside[:, :, None, None, :].float().expand(-1, -1, 3, 16, -1) * 2 - 1
        return frames.contiguous(), moves

    model = latent_action(codebook=[2], width=32, depth=1, patch_size=16).train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(100):
        frames, _ = world(16)
        predicted, actions = model(frames)
        loss = F.mse_loss(predicted, frames[:, 1:]) + actions.commitment
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    frames, moves = world(64)
    agree = (model.eval().infer(frames).indices[:, 0] == moves).float().mean().item()
    assert max(agree, 1 - agree) == 1


def test_rejects_a_single_frame():
    with pytest.raises(ValueError, match="between two frames"):
        latent_action().infer(video(1).float())
