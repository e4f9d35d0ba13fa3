"""Invariants of the dynamics: training equals streaming, and sampling is a function of its seed."""

import pytest
import torch
from factories import dynamics

from vwm.core.seeds import world_seeds
from vwm.core.states import select_worlds
from vwm.models.genie.dynamics import MaskGITDynamics
from vwm.models.genie.sampling import MaskGITSampling, masked_token_count, sample_token_frame
from vwm.nn.code_embedding import CodeEmbedding, CodeLogits, level_indices
from vwm.nn.finite_scalar_codebook import FiniteScalarCodebook

FRAMES = 9


def clip(frames: int = FRAMES):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 36, (2, frames, 16), generator=generator)
    return tokens, torch.randint(0, 4, (2, frames - 1), generator=generator)


@pytest.mark.parametrize(
    ("conditioning", "options"),
    [("add", {}), ("prepend", {}), ("prepend", {"copy_previous": True}), ("add", {"codebook_levels": [4, 3, 3]})],
)
@pytest.mark.parametrize("frames", [4, FRAMES])
def test_training_on_a_clean_context_equals_streaming(conditioning, options, frames):
    """Also past the window of 4."""
    model = dynamics(conditioning=conditioning, **options).double().eval()
    tokens, actions = clip(frames)
    mask = torch.rand(2, frames - 1, 16, generator=torch.Generator().manual_seed(1)) < 0.6
    parallel = model(tokens, actions, mask)
    state = model.observe(model.init_state(2), tokens[:, :1], None)
    for t in range(1, frames):
        hidden = tokens[:, t : t + 1].masked_fill(mask[:, t - 1 : t], model.mask_token)
        lead = actions[:, t - 1 : t]
        torch.testing.assert_close(
            model.predict_logits(state, hidden, lead)[:, 0], parallel[:, t - 1], rtol=0, atol=1e-10
        )
        state = model.observe(state, tokens[:, t : t + 1], lead)


@pytest.mark.parametrize("context", ["clean", "masked"])
@pytest.mark.parametrize("conditioning", ["add", "prepend"])
def test_features_in_training_equal_those_of_streaming(context, conditioning):
    """For every frame and any mask; and computing them does not change the logits."""
    model = dynamics(conditioning=conditioning, context=context).double().eval()
    tokens, actions = clip()
    mask = torch.rand(2, FRAMES - 1, 16, generator=torch.Generator().manual_seed(1)) < 0.6
    out = model.forward_with_features(tokens, actions, mask)
    torch.testing.assert_close(out.logits, model(tokens, actions, mask), rtol=0, atol=1e-10)
    state, features = model.observe_with_features(model.init_state(2), tokens[:, :1], None)
    played = [features]
    for t in range(1, FRAMES):
        state, features = model.observe_with_features(state, tokens[:, t : t + 1], actions[:, t - 1 : t])
        played.append(features)
    torch.testing.assert_close(torch.cat(played, dim=1), out.features, rtol=0, atol=1e-10)


def test_a_new_network_that_copies_predicts_the_previous_frame():
    """At even odds, whatever the number of codes; a token that nothing precedes is not copied."""
    sizes = {"codebook_size": 36, "tokens_per_frame": 16, "num_actions": 4, "width": 16, "depth": 2, "heads": 2}
    model = MaskGITDynamics(**sizes, window=4, copy_previous=True).double().eval()
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    tokens, actions = clip(3)
    state = model.observe(model.init_state(2), tokens[:, :1], None)
    state = model.observe(state, tokens[:, 1:2], actions[:, :1])
    hidden = torch.full_like(tokens[:, :1], model.mask_token)
    probability = model.predict_logits(state, hidden, actions[:, 1:])[:, 0].softmax(-1)
    copied = probability.gather(-1, tokens[:, 1, :, None])[..., 0]
    torch.testing.assert_close(copied, torch.full_like(copied, 36 / (36 + 35)))
    first = model.predict_logits(model.init_state(2), hidden, None).softmax(-1)
    torch.testing.assert_close(first, torch.full_like(first, 1 / 36))
    with pytest.raises(ValueError, match="copy_previous=true requires context=clean"):
        dynamics(copy_previous=True, context="masked")


def test_codes_of_one_level_share_weights_of_fsq_codes():
    """With weights of levels that are the values of FSQ's dimensions, embeddings are the codes of the quantizer."""
    levels = [4, 3, 3]
    quantizer = FiniteScalarCodebook(levels, width=3)
    embed, head = CodeEmbedding(levels, 3), CodeLogits(levels, 3)
    values = torch.zeros(sum(levels), 3)
    for code in range(36):
        for dimension, row in enumerate(level_indices(torch.tensor(code), levels).tolist()):
            values[row, dimension] = quantizer.codes[code, dimension]
    for layer in (embed, head):
        torch.nn.init.zeros_(layer.weight)
        layer.level_weight.data = values
    codes = torch.arange(36)
    torch.testing.assert_close(embed(codes), quantizer.codes)
    assert not embed(torch.tensor(36)).any()  # the mask token shares nothing
    x = torch.randn(2, 3)
    torch.testing.assert_close(head(x), x @ quantizer.codes.T + head.bias)
    with pytest.raises(ValueError, match=r"codebook_levels=\[4, 3\] make 12 codes, not codebook_size=36"):
        dynamics(codebook_levels=[4, 3])


def test_a_masked_context_equals_streaming_over_the_masked_tokens():
    model = dynamics(context="masked").double().eval()
    tokens, actions = clip()
    mask = torch.rand(2, FRAMES - 1, 16, generator=torch.Generator().manual_seed(1)) < 0.6
    hidden = torch.cat((tokens[:, :1], tokens[:, 1:].masked_fill(mask, model.mask_token)), dim=1)
    state, parts = model.observe(model.init_state(2), hidden[:, :1], None), []
    for t in range(1, FRAMES):
        parts.append(model.predict_logits(state, hidden[:, t : t + 1], actions[:, t - 1 : t])[:, 0])
        state = model.observe(state, hidden[:, t : t + 1], actions[:, t - 1 : t])
    torch.testing.assert_close(torch.stack(parts, 1), model(tokens, actions, mask), rtol=0, atol=1e-10)


@pytest.mark.parametrize("context", ["clean", "masked"])
def test_logits_do_not_depend_on_masked_or_later_tokens(context):
    """Logits of a fully masked frame do not change with its true tokens or those of later frames."""
    model = dynamics(context=context).double().eval()
    tokens, actions = clip()
    mask = torch.ones(2, FRAMES - 1, 16, dtype=torch.bool)
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 36
    before, after = model(tokens, actions, mask), model(changed, actions, mask)
    assert torch.equal(before[:, :5], after[:, :5])  # frames 1..5: frame 5's own tokens are hidden from it
    if context == "clean":
        assert not torch.allclose(before[:, 5], after[:, 5])


def test_an_action_changes_the_next_frame_and_no_earlier_one():
    model = dynamics().double().eval()
    tokens, actions = clip()
    mask = torch.ones(2, FRAMES - 1, 16, dtype=torch.bool)
    changed = actions.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 4
    differs = (model(tokens, actions, mask) - model(tokens, changed, mask)).abs().amax(dim=(0, 2, 3)) > 1e-9
    assert differs.tolist()[:4] == [False, False, False, True]


def test_cached_sampling_equals_parallel_logits():
    """Draw frames with the cache, then check each draw against logits of the uncached parallel path."""
    model = dynamics().double().eval()
    tokens, actions = clip()
    state = model.observe(model.init_state(2), tokens[:, :1], None)
    drawn = [tokens[:, :1]]
    for t in range(FRAMES - 1):
        state, frame = sample_token_frame(
            model, state, actions[:, t : t + 1], world_seeds(t, 2), MaskGITSampling(1, temperature=0)
        )
        drawn.append(frame[:, None])
    sequence = torch.cat(drawn, dim=1)
    logits = model(sequence, actions, torch.ones(2, FRAMES - 1, 16, dtype=torch.bool))
    assert torch.equal(logits.argmax(-1), sequence[:, 1:])


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_sampling_depends_on_the_seed_and_not_on_the_batch(steps):
    model = dynamics().double().eval()
    tokens, actions = clip()
    state = model.observe(model.init_state(2), tokens[:, :1], None)
    seeds, sampling = world_seeds(5, 2), MaskGITSampling(steps)
    _, both = sample_token_frame(model, state, actions[:, :1], seeds, sampling)
    _, again = sample_token_frame(model, state, actions[:, :1], seeds, sampling)
    _, alone = sample_token_frame(model, select_worlds(state, torch.tensor([1])), actions[1:, :1], seeds[1:], sampling)
    _, other = sample_token_frame(model, state, actions[:, :1], seeds + 1, sampling)
    assert torch.equal(both, again) and torch.equal(both[1:], alone) and not torch.equal(both, other)
    assert (both < model.codebook_size).all()  # no token stays masked


def test_sampled_tokens_have_the_predicted_probabilities():
    model = dynamics(depth=1).double().eval()
    tokens, actions = clip()
    one = select_worlds(model.observe(model.init_state(2), tokens[:, :1], None), torch.tensor([0]))
    many = select_worlds(one, torch.zeros(4000, dtype=torch.int64))
    _, frames = sample_token_frame(
        model, many, actions[:1, :1].expand(4000, 1), world_seeds(0, 4000), MaskGITSampling(1, temperature=1.0)
    )
    hidden = torch.full((1, 1, 16), model.mask_token)
    p = model.predict_logits(one, hidden, actions[:1, :1])[0, 0].softmax(-1)
    seen = torch.nn.functional.one_hot(frames, 36).double().mean(0)
    assert (seen - p).abs().max() < 5 * (0.25 / 4000) ** 0.5


def test_the_masking_schedule_decreases_to_zero():
    for steps in (1, 2, 8, 25):
        hidden = [masked_token_count(64, s, steps) for s in range(1, steps + 1)]
        assert hidden == sorted(hidden, reverse=True) and hidden[-1] == 0 and all(h < 64 for h in hidden)


def test_continuous_actions_change_the_logits():
    model = dynamics(continuous=True, num_actions=2).double().eval()
    tokens, _ = clip()
    actions = torch.zeros(2, FRAMES - 1, 2, dtype=torch.float64)
    mask = torch.ones(2, FRAMES - 1, 16, dtype=torch.bool)
    assert not torch.allclose(model(tokens, actions, mask), model(tokens, actions + 1, mask))


def test_one_rate_a_sample():
    model = dynamics(min_mask_rate=0.0)
    masks = []
    predict = model._predict
    model._predict = lambda *arguments: (masks.append(arguments[-1]), predict(*arguments))[1]
    torch.manual_seed(0)
    tokens, actions = clip()
    model.loss(tokens.repeat(32, 1, 1), actions.repeat(32, 1))
    assert masks[0].float().mean((1, 2)).std() > 0.2  # a rate a batch would make these all alike


def test_wrong_options_name_the_value():
    with pytest.raises(ValueError, match="conditioning='film'"):
        dynamics(conditioning="film")
    with pytest.raises(ValueError, match="context='dirty'"):
        dynamics(context="dirty")
