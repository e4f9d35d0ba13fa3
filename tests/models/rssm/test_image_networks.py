"""Image networks: fast implementations equal the plain ones, and all sizes that fit work."""

import pytest
import torch
import torch.nn.functional as F

from vwm.models.rssm.image_networks import (
    DreamerV3ImageDecoder,
    DreamerV3ImageEncoder,
    PlainImageDecoder,
    PlainImageEncoder,
    UpsampleConv2d,
)


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_upsampling_convolution_equals_a_convolution_over_repeated_pixels(kernel):
    torch.manual_seed(0)
    layer = UpsampleConv2d(3, 2, kernel).double()
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    repeated = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    y, expected = layer(x), F.conv2d(repeated, layer.weight, layer.bias, padding=kernel // 2)
    torch.testing.assert_close(y, expected)
    output_grad, inputs = torch.randn_like(y), (x, layer.weight, layer.bias)
    for grad, expected_grad in zip(
        *(torch.autograd.grad((z * output_grad).sum(), inputs) for z in (y, expected)), strict=True
    ):
        torch.testing.assert_close(grad, expected_grad)


def test_an_encoder_layer_is_convolution_pooling_norm_and_activation():
    torch.manual_seed(0)
    encoder = DreamerV3ImageEncoder((8, 4), depth=2, mults=(1,)).double()
    torch.nn.init.normal_(encoder.norms[0].weight)
    x = torch.randn(3, 3, 8, 4, dtype=torch.float64)
    y = F.max_pool2d(F.conv2d(x, encoder.layers[0].weight, encoder.layers[0].bias, padding=2), 2)
    y = y / (y.square().mean(1, keepdim=True) + 1e-6).sqrt() * encoder.norms[0].weight[:, None, None]
    torch.testing.assert_close(encoder(x), F.silu(y).permute(0, 2, 3, 1).flatten(1))
    assert encoder.embedding_size == 4 * 2 * 2


@pytest.mark.parametrize("max_pool", [True, False])
def test_supports_images_of_many_shapes(max_pool):
    for size, mults in (((16, 16), (1, 2)), ((24, 8), (2, 3, 4))):
        encoder = DreamerV3ImageEncoder(size, depth=2, mults=mults, max_pool=max_pool)
        decoder = DreamerV3ImageDecoder(size, 8, 5, width=4, blocks=2, depth=2, mults=mults)
        assert encoder(torch.randn(3, 3, *size)).shape == (3, encoder.embedding_size)
        images = decoder(torch.randn(3, 13))
        assert images.shape == (3, 3, *size) and -0.5 <= images.min() and images.max() <= 0.5


def test_decoding_depends_on_all_features_and_blocks_have_separate_channels():
    torch.manual_seed(0)
    decoder = DreamerV3ImageDecoder((8, 8), 8, 5, width=4, blocks=4, depth=4, mults=(2,))
    features = torch.randn(1, 13)
    images = decoder(features)
    for i in (0, 7, 8, 12):
        changed = features.clone()
        changed[0, i] += 1
        assert not torch.equal(decoder(changed), images)
    small = decoder.deter_projection(torch.tensor([[1.0, 1, 0, 0, 0, 0, 0, 0]]))[0, 0].view(4, 4, 4, 2)
    assert small[0].any() and not small[1:].any()


def test_plain_networks_take_64x64_pixels():
    encoder, decoder = PlainImageEncoder(depth=2), PlainImageDecoder(7, depth=2)
    assert encoder(torch.randn(2, 3, 64, 64)).shape == (2, encoder.embedding_size) == (2, 64)
    assert decoder(torch.randn(2, 7)).shape == (2, 3, 64, 64)


def test_rejects_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="20x16 pixels cannot be halved 3 times"):
        DreamerV3ImageEncoder((20, 16), mults=(1, 2, 3))
    with pytest.raises(ValueError, match="blocks=8 must divide deter=12"):
        DreamerV3ImageDecoder((16, 16), 12, 4)
