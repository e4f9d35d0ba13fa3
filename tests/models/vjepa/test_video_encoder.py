"""Invariants of the video encoder, for every position encoding, feed-forward layer and release."""

import pytest
import torch
from vjepa_models import DEPTH, FRAMES, KINDS, PATCH, SIZE, WIDTH, encoder, random, tokens

from vwm.core.components import load_component, save_component
from vwm.models.vjepa.video_encoder import VideoEncoder
from vwm.nn.recomputation import recompute_blocks

VIDEO = (2, FRAMES, 3, *SIZE)
TOKENS = 4 * 2 * 3


@pytest.fixture(params=list(KINDS))
def network(request):
    return encoder(**KINDS[request.param]).eval()


@torch.no_grad()
def test_kept_tokens_are_returned_in_the_given_order(network):
    video = random(*VIDEO).tanh()
    (order,) = tokens(2, TOKENS, TOKENS)
    torch.testing.assert_close(
        network(video, order), network(video).gather(1, order[..., None].expand(-1, -1, WIDTH)), rtol=0, atol=1e-10
    )


@torch.no_grad()
def test_dropped_tokens_have_no_effect(network):
    video = random(*VIDEO).tanh()
    (keep,) = tokens(2, TOKENS, 7)
    is_kept = torch.zeros(2, TOKENS, dtype=torch.bool).scatter(1, keep, True).unflatten(1, network.grid(FRAMES))
    pixels = is_kept.repeat_interleave(2, 1).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)[:, :, None]
    other = torch.where(pixels, video, random(*VIDEO, seed=1))
    assert torch.equal(network(video, keep), network(other, keep))
    assert not torch.allclose(network(video), network(other))


@torch.no_grad()
def test_tokens_are_ordered_by_time_then_row_then_column(network):
    video = random(*VIDEO).tanh()
    changed = video.clone()
    changed[0, 4:6, :, 8:16, 16:24] = 0  # the third tubelet, second row, third column
    index = 2 * 6 + 1 * 3 + 2
    others = torch.tensor([n for n in range(TOKENS) if n != index]).expand(2, -1)
    assert torch.equal(network(video, others), network(changed, others))
    alone = torch.tensor([[index], [index]])
    assert not torch.equal(network(video, alone)[0], network(changed, alone)[0])


@torch.no_grad()
def test_kept_tokens_do_not_depend_on_the_length_of_the_clip(network):
    video = random(*VIDEO).tanh()
    (keep,) = tokens(2, TOKENS // 2, 5)
    torch.testing.assert_close(network(video, keep), network(video[:, :4], keep), rtol=0, atol=1e-12)


@torch.no_grad()
def test_rope_depends_on_relative_positions_only_and_tiled_rope_does_not():
    video = random(1, FRAMES, 3, *SIZE)
    later = video.roll(2, dims=1)
    keep, shifted = torch.arange(12)[None], torch.arange(6, 18)[None]
    for tiled in (False, True):
        network = encoder(tiled_rope=tiled).eval()
        difference = (network(video, keep) - network(later, shifted)).abs().max()
        assert difference > 1e-3 if tiled else difference < 1e-10


@torch.no_grad()
def test_tokens_depend_on_their_positions():
    constant_video = torch.ones(1, FRAMES, 3, *SIZE, dtype=torch.float64)  # tokens that differ only in their position
    assert encoder(positions="sincos").eval()(constant_video).std(dim=1).max() > 1e-3
    for tiled in (False, True):  # attention over equal values cannot distinguish positions
        network = encoder(tiled_rope=tiled).eval()
        assert network(constant_video).std(dim=1).max() < 1e-10
        video = random(1, FRAMES, 3, *SIZE)
        assert (network(video).mean(dim=1) - network(video.flip(1)).mean(dim=1)).abs().max() > 1e-3


@torch.no_grad()
def test_clips_may_exceed_the_configured_length_with_rope_but_not_with_sincos():
    video = random(1, FRAMES + 4, 3, *SIZE)
    assert encoder()(video).shape == (1, 36, WIDTH)
    with pytest.raises(ValueError, match=r"12 frames are more than the 8"):
        encoder(positions="sincos")(video)


@torch.no_grad()
def test_an_image_is_encoded_as_a_repeated_frame_or_by_its_own_embedding():
    image = random(2, 1, 3, *SIZE).tanh()
    network = encoder().eval()
    torch.testing.assert_close(network(image), network(image.repeat(1, 2, 1, 1, 1)), rtol=0, atol=1e-12)
    assert network.num_tokens(1) == 6 == network(image).shape[1]
    network = encoder(**KINDS["2.1"]).eval()
    assert network(image).shape == (2, 6, WIDTH)
    assert not torch.allclose(network(image), network(image.repeat(1, 2, 1, 1, 1)))


@torch.no_grad()
def test_pixel_normalization_in_the_encoder_equals_normalizing_the_video():
    settings = KINDS["imagenet"]
    network, plain = encoder(**settings).eval(), encoder().eval()
    plain.load_state_dict(network.state_dict())
    video = random(*VIDEO).tanh()
    mean, std = (
        torch.tensor(settings[name], dtype=torch.float64)[:, None, None] for name in ("pixel_mean", "pixel_std")
    )
    (keep,) = tokens(2, TOKENS, 9)
    expected = plain(((video + 1) / 2 - mean) / std, keep)
    torch.testing.assert_close(network(video, keep), expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_the_last_layer_features_are_the_output(network):
    video = random(*VIDEO).tanh()
    (keep,) = tokens(2, TOKENS, 9)
    first, last, repeated = network.layer_features(video, [0, -1, 0], keep)
    torch.testing.assert_close(last, network(video, keep), rtol=0, atol=0)
    assert first is repeated
    outputs = []
    handle = network.blocks[0].register_forward_hook(lambda block, inputs, output: outputs.append(output))
    network(video, keep)
    handle.remove()
    assert torch.equal(first, network.feature_norms["0"](outputs[0]) if "0" in network.feature_norms else outputs[0])
    assert network.layer_features(video, []) == []
    with pytest.raises(ValueError, match=r"layer_indices=\[3\] must be indices of the 3 layers"):
        network.layer_features(video, [DEPTH])


def test_recomputation_does_not_change_gradients(network):
    video = random(*VIDEO).tanh()
    (keep,) = tokens(2, TOKENS, 9)
    results = []
    for recomputation in ("none", "selective", "full"):
        network.train().zero_grad()
        recompute_blocks(network, recomputation)
        loss = network(video, keep).square().mean()
        loss.backward()
        results.append((loss, [p.grad for p in network.parameters() if p.grad is not None]))
    for loss, gradients in results[1:]:
        assert torch.equal(results[0][0], loss)
        assert all(torch.equal(a, b) for a, b in zip(results[0][1], gradients, strict=True))


def test_trains_after_a_first_call_in_inference_mode():
    network = encoder(**KINDS["imagenet"], depth=1, frames=6)  # sizes that no other test uses: no table is cached yet
    video = random(1, 6, 3, *SIZE).tanh()
    (keep,) = tokens(1, 18, 5)
    with torch.inference_mode():
        network(video)
        network(video, keep)
    for kept_tokens in (None, keep):
        network(video, kept_tokens).sum().backward()


@torch.no_grad()
def test_a_saved_encoder_loads_equal(network, tmp_path):
    network = network.float()
    save_component(network, tmp_path / "encoder")
    loaded = load_component(tmp_path / "encoder")
    video = random(*VIDEO).tanh().float()
    assert torch.equal(loaded(video), network(video))
    assert loaded.grid() == network.grid() == (4, 2, 3) and loaded.num_tokens() == TOKENS


@torch.no_grad()
def test_initial_output_weights_shrink_with_depth():
    torch.manual_seed(0)
    network = VideoEncoder(width=192, depth=4, heads=3)
    for number, block in enumerate(network.blocks, start=1):
        for last in (block.attn.proj, block.mlp.fc2):
            assert abs(float(last.weight.std()) / (0.02 / (2 * number) ** 0.5) - 1) < 0.05
        assert abs(float(block.attn.qkv.weight.std()) / 0.02 - 1) < 0.05


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": (16, 20)}, "patch_size=8 must divide image_size=16x20"),
        ({"frames": 7}, "7 frames must be 1 or a multiple of tubelet=2"),
        ({"heads": 5}, "heads=5 must divide width=48"),
        ({"heads": 12}, "48 have 4 channels"),
        ({"positions": "learned"}, "positions='learned' must be one of rope, sincos"),
        ({"mlp": "relu"}, "mlp='relu' must be one of gelu, swiglu"),
        ({"feature_layers": [2]}, r"feature_layers=\[2\] must be indices of layers before the last, 0..1"),
    ],
)
def test_rejects_invalid_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        encoder(**settings)


def test_rejects_videos_of_a_wrong_shape():
    network = encoder()
    with pytest.raises(ValueError, match=r"video must be \[b, frames, 3, 16, 24\], got \[1, 8, 3, 24, 16\]"):
        network(random(1, 8, 3, 24, 16))
    with pytest.raises(ValueError, match="3 frames must be 1 or a multiple of tubelet=2"):
        network(random(1, 3, 3, *SIZE))
