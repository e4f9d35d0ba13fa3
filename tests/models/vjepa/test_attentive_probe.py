"""The attentive probe."""

import pytest
import torch
from factories import randomize
from vjepa_models import random

from vwm.core.components import load_component, save_component
from vwm.models.vjepa.attentive_probe import AttentiveClassifier, AttentivePooler


@pytest.fixture(params=[1, 3])
def probe(request):
    torch.manual_seed(0)
    return randomize(AttentiveClassifier(width=24, classes=5, heads=4, depth=request.param)).double().eval()


@torch.no_grad()
def test_the_order_of_features_does_not_matter(probe):
    features = random(2, 9, 24)
    logits = probe(features)
    assert logits.shape == (2, 5)
    torch.testing.assert_close(probe(features.flip(1)), logits, rtol=0, atol=1e-12)
    assert not torch.allclose(probe(random(2, 9, 24, seed=1)), logits)


def test_every_weight_gets_a_gradient(probe):
    probe(random(2, 9, 24)).square().sum().backward()
    without_gradient = [name for name, p in probe.named_parameters() if p.grad is None or not p.grad.any()]
    assert without_gradient == [
        name for name in without_gradient if name.endswith(("qkv.bias", "kv.bias"))
    ]  # attention does not depend on a shift of all keys


@torch.no_grad()
def test_each_query_pools_a_different_vector():
    torch.manual_seed(0)
    pooler = AttentivePooler(24, 4, queries=3).double()
    pooled = pooler(random(2, 9, 24))
    assert pooled.shape == (2, 3, 24) and pooled.std(dim=1).min() > 0
    with pytest.raises(ValueError, match="depth=0 must be at least 1"):
        AttentivePooler(24, 4, depth=0)


@torch.no_grad()
def test_a_loaded_probe_equals_the_saved_one(probe, tmp_path):
    probe = probe.float()
    save_component(probe, tmp_path / "probe")
    features = random(2, 9, 24).float()
    assert torch.equal(load_component(tmp_path / "probe")(features), probe(features))
