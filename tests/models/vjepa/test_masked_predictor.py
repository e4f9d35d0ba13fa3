"""Invariants of the masked predictor, for every position encoding and release."""

import pytest
import torch
from vjepa_models import FRAMES, WIDTH, predictor, random, tokens

from vwm.core.components import load_component, save_component
from vwm.models.vjepa.masked_predictor import MaskedPredictor
from vwm.nn.recomputation import recompute_blocks

TOKENS = 4 * 2 * 3
KINDS = {
    "rope": {},
    "tiled-rope": {"tiled_rope": True},
    "sincos": {"positions": "sincos", "uniform_power": True},
    "swiglu": {"mlp": "swiglu"},
    "2.1": {
        "num_feature_layers": 2,
        "output_width": 32,
        "modality_embeddings": True,
        "predict_context": True,
        "rope_reference_grid": (5, 5),
    },
}


@pytest.fixture(params=list(KINDS))
def network(request):
    return predictor(**KINDS[request.param]).eval()


def make_inputs(network, k: int = 7, m: int = 5, batch: int = 2):
    keep, targets = tokens(batch, TOKENS, k, m)
    return random(batch, k, WIDTH * network.config.num_feature_layers), keep, targets


@torch.no_grad()
def test_the_order_of_tokens_does_not_matter(network):
    context, keep, targets = make_inputs(network)
    expected = network(context, keep, targets)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    torch.testing.assert_close(network(context[:, order], keep[:, order], targets), expected, rtol=0, atol=1e-12)
    order = torch.tensor([4, 2, 0, 1, 3])
    torch.testing.assert_close(network(context, keep, targets[:, order]), expected[:, order], rtol=0, atol=1e-12)


@torch.no_grad()
def test_clips_of_a_batch_are_independent(network):
    context, keep, targets = make_inputs(network, batch=3)
    each = [network(context[i : i + 1], keep[i : i + 1], targets[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(network(context, keep, targets), torch.cat(each), rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_prediction_depends_on_its_position_and_on_the_context(network):
    context, keep, targets = make_inputs(network)
    predicted = network(context, keep, targets)
    positions = torch.cat((torch.arange(TOKENS).expand(2, -1), keep), dim=1)
    unused = [[n for n in row.tolist() if row.tolist().count(n) == 1] for row in positions]
    other_targets = torch.tensor([row[-5:] for row in unused])
    assert not torch.allclose(predicted, network(context, keep, other_targets))
    assert not torch.allclose(predicted, network(random(*context.shape, seed=9), keep, targets))
    assert predicted.std(dim=1).min() > 1e-3  # and differs between positions


def test_mask_tokens_start_at_zero_and_the_selected_one_is_used():
    torch.manual_seed(0)
    assert not MaskedPredictor().mask_embed.any()
    network = predictor(num_mask_tokens=3, mask_token_index=2)
    context, keep, targets = make_inputs(network)
    network(context, keep, targets, mask_token_index=1).square().sum().backward()
    assert network.mask_embed.grad.abs().amax(dim=1).gt(0).tolist() == [False, True, False]
    assert torch.equal(network(context, keep, targets), network(context, keep, targets, mask_token_index=2))
    assert not torch.allclose(network(context, keep, targets), network(context, keep, targets, mask_token_index=0))
    with pytest.raises(ValueError, match=r"mask_token_index=3 must be 0..2"):
        network(context, keep, targets, mask_token_index=3)
    with pytest.raises(ValueError, match="mask_token_index=3 must be less than num_mask_tokens=3"):
        predictor(num_mask_tokens=3, mask_token_index=3)


@torch.no_grad()
def test_clips_may_have_another_length():
    network = predictor().eval()
    context, keep, targets = make_inputs(network)
    torch.testing.assert_close(
        network(context, keep, targets, frames=FRAMES + 4), network(context, keep, targets), rtol=0, atol=1e-12
    )
    assert network(context, keep, targets + 12, frames=FRAMES + 4).isfinite().all()
    assert network.grid(FRAMES + 4) == (6, 2, 3) and network.grid() == (4, 2, 3)


@torch.no_grad()
def test_predict_all_contains_the_predictions_of_the_targets():
    network = predictor(**KINDS["2.1"]).eval()
    context, keep, targets = make_inputs(network)
    masked, context_predictions = network.predict_all(context, keep, targets)
    torch.testing.assert_close(masked, network(context, keep, targets), rtol=0, atol=1e-12)
    assert masked.shape == (2, 5, 64) and context_predictions.shape == (2, 7, 64)
    with pytest.raises(ValueError, match="predict_context=False"):
        predictor().predict_all(*make_inputs(predictor()))


def test_recomputation_does_not_change_gradients(network):
    results = []
    for recomputation in ("none", "selective", "full"):
        network.train().zero_grad()
        recompute_blocks(network, recomputation)
        loss = network(*make_inputs(network)).square().mean()
        loss.backward()
        results.append((loss, [p.grad for p in network.parameters() if p.grad is not None]))
    for loss, gradients in results[1:]:
        assert torch.equal(results[0][0], loss)
        assert all(torch.equal(a, b) for a, b in zip(results[0][1], gradients, strict=True))


@torch.no_grad()
def test_a_saved_predictor_loads_equal(network, tmp_path):
    network = network.float()
    save_component(network, tmp_path / "predictor")
    loaded = load_component(tmp_path / "predictor")
    context, keep, targets = make_inputs(network)
    assert torch.equal(loaded(context.float(), keep, targets), network(context.float(), keep, targets))
