"""The laws of the video tokenizer, for both kinds of codebook."""

import pytest
import torch
from models import tokenizer

from vwm.nn.parts import save_part
from vwm.tokenizer.load import load_tokenizer

FRAMES = 9


@pytest.fixture(params=[[4, 3, 3], 36], ids=["fsq", "vq"])
def network(request):
    return tokenizer(request.param).double().eval()


def video() -> torch.Tensor:
    return torch.rand(2, FRAMES, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("chunks", [[1] * FRAMES, [FRAMES], [5, 4], [1, 6, 2]])
def test_streaming_is_parallel_past_the_window(network, chunks):
    x = video()
    tokens, decoded = network.encode(x), network.decode(network.encode(x))
    encoder, decoder, start = network.init_encoder(2), network.init_decoder(2), 0
    for length in chunks:
        here = slice(start, start + length)
        encoder, some = network.encode_step(encoder, x[:, here])
        assert torch.equal(some, tokens[:, here])
        decoder, shown = network.decode_step(decoder, some)
        torch.testing.assert_close(shown, decoded[:, here], rtol=0, atol=1e-10)
        start += length


def test_tokens_do_not_depend_on_later_frames(network):
    x = video()
    changed = x.clone()
    changed[:, 5:] = -changed[:, 5:]
    assert torch.equal(network.encode(x)[:, :5], network.encode(changed)[:, :5])
    assert not torch.equal(network.encode(x)[:, 5:], network.encode(changed)[:, 5:])


def test_forward_is_encode_then_decode(network):
    out = network(video())
    assert torch.equal(out.latents, network.encode(video())) and out.latents.shape == (2, FRAMES, 4, 4)
    torch.testing.assert_close(out.video, network.decode(out.latents), rtol=0, atol=1e-6)


def test_saved_is_loaded(network, tmp_path):
    save_part(network.float(), tmp_path / "tokenizer")
    again = load_tokenizer(tmp_path)
    assert torch.equal(network(video().float()).video, again(video().float()).video)
    assert not any(p.requires_grad for p in again.parameters())


def test_errors_say_what_to_do(network, tmp_path):
    with pytest.raises(FileNotFoundError, match="vwm export"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"\[b, t, 3, 16, 16\]"):
        network.encode(video()[..., :8])
    with pytest.raises(ValueError, match="patch_size=5 must divide"):
        type(network)(image_size=(16, 16), patch_size=5)
