"""Hyperparameter sweeps trained in one pass, and their probe heads."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vwm.eval.probe_heads import AttentiveProbeHeads, ProbeHeads, ProbeHeadType, make_probe_heads
from vwm.eval.probe_sweep import SweepSettings, per_head_loss, train_probe_sweep

pytestmark = pytest.mark.usefixtures("narrow_heads")
SWEEP = SweepSettings(learning_rates=(1e-2, 1e-3), weight_decays=(0.01, 0.8), epochs=3, batch_size=8, seed=5)


def make_splits(classes: bool = False, clips: int = 20) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
    """Tokens and labels of the training and validation splits, and tokens of the test split; float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, clips, 6, 10, dtype=torch.float64, generator=generator)
    y = x[..., 0, :2] + 0.1 * torch.randn(3, clips, 2, dtype=torch.float64, generator=generator)
    labels = (y[..., 0] > 0).long() + (y[..., 1] > 0).long() if classes else y
    return (x[0], labels[0]), (x[1], labels[1]), x[2]


def make_heads(probe: ProbeHeadType, copies: int, blocks: int = 1, outputs: int = 2) -> ProbeHeads:
    return make_probe_heads(probe, copies, 6, 10, outputs, blocks, seed=3).double()


@pytest.mark.parametrize(("probe", "blocks"), [("linear", 1), ("attentive", 1), ("attentive", 3)])
@pytest.mark.parametrize("classes", [False, True])
def test_a_head_in_a_sweep_trains_as_it_does_alone(probe: ProbeHeadType, blocks: int, classes: bool) -> None:
    outputs = 3 if classes else 2
    train, val, test = make_splits(classes)
    together = make_heads(probe, 4, blocks, outputs)
    swept = train_probe_sweep(together, train, val, test, SWEEP)
    single_results = []
    for i, (rate, decay) in enumerate(SWEEP.pairs):
        single = make_heads(probe, 1, blocks, outputs)
        result = train_probe_sweep(
            single, train, val, test, SWEEP._replace(learning_rates=(rate,), weight_decays=(decay,))
        )
        for a, b in zip(together.parameters(), single.parameters(), strict=True):
            torch.testing.assert_close(a[i], b[0], rtol=0, atol=1e-10)
        torch.testing.assert_close(swept.losses[:, i], result.losses[:, 0], rtol=0, atol=1e-10)
        single_results.append((float(result.losses.min()), result))
    _, best = min(single_results, key=lambda pair: pair[0])
    assert (swept.learning_rate, swept.weight_decay, swept.epoch) == (best.learning_rate, best.weight_decay, best.epoch)
    torch.testing.assert_close(swept.predictions, best.predictions, rtol=0, atol=1e-10)


def test_a_single_head_is_trained_like_a_plain_torch_loop() -> None:
    """The same training with one nn.Linear, torch's AdamW and cosine schedule."""
    (x, y), val, test = make_splits()
    settings = SweepSettings(learning_rates=(3e-3,), weight_decays=(0.4,), epochs=4, batch_size=8, seed=2)
    stack = make_heads("linear", 1)
    plain = nn.Linear(10, 2).double()
    with torch.no_grad():
        plain.weight.copy_(stack.linear.weight[0].T)
        plain.bias.copy_(stack.linear.bias[0])
    train_probe_sweep(stack, (x, y), val, test, settings)
    groups = [{"params": [plain.weight], "weight_decay": 0.4}, {"params": [plain.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4 * 3)
    generator = torch.Generator().manual_seed(2)
    for _ in range(4):
        for rows in torch.randperm(len(x), generator=generator).split(8):
            optimizer.zero_grad()
            F.mse_loss(plain(x[rows].mean(dim=1)), y[rows]).backward()
            optimizer.step()
            schedule.step()
    torch.testing.assert_close(stack.linear.weight[0].T, plain.weight, rtol=0, atol=1e-12)
    torch.testing.assert_close(stack.linear.bias[0], plain.bias, rtol=0, atol=1e-12)


def test_the_folded_attention_equals_cross_attention() -> None:
    """Compare with keys and values projected per token and softmax attention, in float64 to 1e-12."""
    stack = make_heads("attentive", 2)
    assert isinstance(stack, AttentiveProbeHeads)
    with torch.no_grad():
        for w in stack.parameters():
            w.add_(0.1 * torch.randn(w.shape, dtype=w.dtype, generator=torch.Generator().manual_seed(w.ndim)))
    x = torch.randn(3, 6, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for i in range(2):
        tokens = x + stack.position_embedding[i]
        keys = torch.einsum("bnd,hcd->bhnc", tokens, stack.keys[i])
        values = torch.einsum("bnd,hdc->bhnc", tokens, stack.values[i])
        query = stack.query[i][None, :, None].expand(3, -1, -1, -1)
        expected = F.scaled_dot_product_attention(query, keys, values)[:, :, 0].flatten(1)
        torch.testing.assert_close(stack._attend_to_tokens(x)[i], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("probe", "blocks"), [("linear", 1), ("attentive", 1), ("attentive", 4)])
def test_predictions_for_a_clip_do_not_depend_on_the_batch(probe: ProbeHeadType, blocks: int) -> None:
    stack, (_, _, test) = make_heads(probe, 2, blocks), make_splits()
    alone = torch.cat([stack(test[i : i + 1]) for i in range(4)], dim=1)
    torch.testing.assert_close(stack(test)[:, :4], alone, rtol=0, atol=1e-12)


def test_an_attentive_head_reads_a_single_token_that_mean_pooling_hides() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 256, 12, 8, generator=generator)
    y = x[:, :, 7, :1] * 1.0
    settings = SweepSettings(learning_rates=(5e-3,), weight_decays=(0.01,), epochs=20, batch_size=32)
    error = {}
    for probe in ("attentive", "linear"):
        stack = make_probe_heads(probe, 1, 12, 8, 1, 1, seed=0)
        swept = train_probe_sweep(stack, (x[0], y[0]), (x[1], y[1]), x[2], settings)
        error[probe] = float((swept.predictions - y[2]).square().mean() / y[2].var())
    assert error["attentive"] < 0.3 and error["linear"] > 0.8


def test_the_weights_of_the_best_epoch_are_kept() -> None:
    """With labels of pure noise the validation loss is best early, while the training loss keeps falling."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 24, 2, 16, generator=generator)
    y = torch.randn(3, 24, 1, generator=generator)
    settings = SweepSettings(learning_rates=(3e-2,), weight_decays=(0.0,), epochs=30, batch_size=8)
    stack = make_probe_heads("attentive", 1, 2, 16, 1, 1, seed=0)
    swept = train_probe_sweep(stack, (x[0], y[0]), (x[1], y[1]), x[1], settings)
    error = float((swept.predictions - y[1]).square().mean())
    assert swept.epoch < 30 and error < float(swept.losses[-1, 0])
    assert math.isclose(error, float(swept.losses.min()), rel_tol=1e-4)


def test_a_diverged_head_is_not_selected() -> None:
    train, val, test = make_splits()
    swept = train_probe_sweep(
        make_heads("linear", 2), train, val, test, SWEEP._replace(learning_rates=(1e-2, 1e200), weight_decays=(0.1,))
    )
    assert swept.learning_rate == 1e-2 and swept.losses[:, 1].isinf().any() and swept.predictions.isfinite().all()


def test_per_head_losses_equal_torch() -> None:
    predictions = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    classes, values = torch.tensor([0, 1, 3, 2, 2]), torch.randn(5, 4).double()
    for i, (a, b) in enumerate(
        zip(per_head_loss(predictions, classes), per_head_loss(predictions, values), strict=True)
    ):
        torch.testing.assert_close(a, F.cross_entropy(predictions[i], classes))
        torch.testing.assert_close(b, F.mse_loss(predictions[i], values))


def test_making_heads_leaves_the_torch_generator_unchanged() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    heads = make_heads("attentive", 3)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(w[0], w[i]) for w in heads.parameters() for i in (1, 2))
