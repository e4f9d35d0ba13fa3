"""The RSSM: streaming equals the parallel path, and the first step of an episode resets the state."""

import pytest
import torch
from factories import randomize

from vwm.core.states import concatenate_states, map_state, select_worlds
from vwm.models.rssm.rssm import RSSM, RSSMState, flatten_rssm_states, last_rssm_state

KINDS = {
    "planet": {"cell": "gru", "classes": 0, "norm": "none", "activation": "elu", "prior_layers": 1},
    "dreamer-v2": {"cell": "norm_gru", "unimix": 0.0, "norm": "none", "activation": "elu", "prior_layers": 1},
    "dreamer-v3": {"cell": "block_gru"},
}
B, T, E = 3, 7, 5


@pytest.fixture(params=list(KINDS))
def rssm(request) -> RSSM:
    return make_rssm(**KINDS[request.param])


def make_rssm(**changes) -> RSSM:
    torch.manual_seed(0)
    small = {"num_actions": 3, "embedding_size": E, "deter": 8, "hidden": 6, "stoch": 4, "classes": 3, "blocks": 2}
    return randomize(RSSM(**{**small, **changes})).double()


def make_sequences(rssm: RSSM, seed: int = 0, batch: int = B):
    generator = torch.Generator().manual_seed(seed)
    embed = torch.randn(batch, T, E, dtype=torch.float64, generator=generator)
    action = torch.randint(0, 3, (batch, T), generator=generator)
    is_first = torch.zeros(batch, T, dtype=torch.bool)
    is_first[0, 0] = is_first[1, 3] = True
    draw = torch.rand if rssm.config.classes else torch.randn
    return embed, action, is_first, draw(batch, T, 4, dtype=torch.float64, generator=generator)


def mid_episode_state(rssm: RSSM, batch: int = B) -> RSSMState:
    """A state in the middle of an episode."""
    embed, action, is_first, noise = make_sequences(rssm, seed=9, batch=batch)
    return map_state(torch.Tensor.detach, last_rssm_state(rssm.observe(embed, action, is_first, noise=noise)[0]))


def assert_all_close(one, other) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_streaming_equals_parallel(rssm):
    embed, action, is_first, noise = make_sequences(rssm)
    states, priors = rssm.observe(embed, action, is_first, mid_episode_state(rssm), noise)
    state = mid_episode_state(rssm)
    for t in range(T):
        state, prior = rssm.observe_step(state, embed[:, t], is_first[:, t], noise[:, t])
        state = rssm.with_action(state, action[:, t])
        assert_all_close((*state, prior), (*(part[:, t] for part in states), priors[:, t]))
    early, _ = rssm.observe(embed[:, :4], action[:, :4], is_first[:, :4], mid_episode_state(rssm), noise[:, :4])
    late, _ = rssm.observe(embed[:, 4:], action[:, 4:], is_first[:, 4:], last_rssm_state(early), noise[:, 4:])
    assert_all_close([torch.cat(parts, dim=1) for parts in zip(early, late, strict=True)], states)


def test_results_do_not_depend_on_the_batch(rssm):
    embed, action, is_first, noise = make_sequences(rssm)
    states, priors = rssm.observe(embed, action, is_first, mid_episode_state(rssm), noise)
    for i in range(B):
        index = torch.tensor([i])
        alone = rssm.observe(
            embed[index], action[index], is_first[index], select_worlds(mid_episode_state(rssm), index), noise[index]
        )
        assert_all_close((*alone[0], alone[1]), (*select_worlds(states, index), priors[index]))


def test_the_first_step_of_an_episode_resets_the_state(rssm):
    embed, action, _, noise = make_sequences(rssm)
    is_first = torch.zeros(B, T, dtype=torch.bool)
    is_first[:, 3] = True
    nan_state = RSSMState(*(torch.full_like(part, torch.nan) for part in mid_episode_state(rssm)))
    embed[0, :3] = torch.inf
    states, priors = rssm.observe(embed, action, is_first, nan_state, noise)
    assert states.deter[:, :3].isnan().all() and priors[:, 3:].isfinite().all()
    embed[:, :3], action[:, :3] = 0, 0
    other_states, other_priors = rssm.observe(embed, action, is_first, None, noise)
    for a, b in zip((*states, priors), (*other_states, other_priors), strict=True):
        assert torch.equal(a[:, 3:], b[:, 3:])
    for first in (is_first[:, 3:], torch.zeros_like(is_first[:, 3:])):
        fresh, expected = rssm.observe(embed[:, 3:], action[:, 3:], first, None, noise[:, 3:])
        assert_all_close((*(part[:, 3:] for part in states), priors[:, 3:]), (*fresh, expected))
    (step, _), init = rssm.observe_step(nan_state, embed[:, 3], is_first[:, 3], noise[:, 3]), rssm.init_state(B)
    assert_all_close([step.stoch], [fresh.stoch[:, 0]])
    assert not init.deter.any() and not init.action.any()


def test_an_action_changes_only_later_states(rssm):
    embed, action, _, noise = make_sequences(rssm)
    is_first = torch.zeros(B, T, dtype=torch.bool)
    states, priors = rssm.observe(embed, action, is_first, None, noise)
    action[:, 3] = (action[:, 3] + 1) % 3
    other_states, other_priors = rssm.observe(embed, action, is_first, None, noise)
    assert torch.equal(states.deter[:, :4], other_states.deter[:, :4]) and torch.equal(
        priors[:, :4], other_priors[:, :4]
    )
    assert (states.deter[:, 4] != other_states.deter[:, 4]).any(-1).all()
    by_last_action = [
        rssm.observe(embed, action, is_first, rssm.with_action(mid_episode_state(rssm), torch.full((B,), a)), noise)[0]
        for a in (0, 1)
    ]
    assert (by_last_action[0].deter[:, 0] != by_last_action[1].deter[:, 0]).any(-1).all()


def test_imagination_equals_the_prior_of_observation(rssm):
    embed, action, _, noise = make_sequences(rssm)
    states, priors = rssm.observe(embed, action, torch.zeros(B, T, dtype=torch.bool), None, noise)
    imagined = rssm.imagine_step(flatten_rssm_states(states), action.flatten(), noise.flatten(0, 1))
    assert_all_close([imagined.deter.view(B, T, -1)[:, :-1]], [states.deter[:, 1:]])
    assert_all_close([imagined.parameters.unflatten(0, (B, T))[:, :-1]], [priors[:, 1:]])
    assert_all_close(
        rssm.prior_step(flatten_rssm_states(states), noise.flatten(0, 1)), imagined
    )  # the states hold their actions
    replayed = rssm.state_from_replay(imagined.deter, imagined.stoch, action.flatten())
    assert_all_close(
        [rssm.prior_step(replayed, noise.flatten(0, 1)).deter],
        [rssm.imagine_step(imagined, action.flatten(), noise.flatten(0, 1)).deter],
    )
    assert rssm.features(states).shape == (B, T, rssm.feature_size)
    assert concatenate_states([imagined, replayed]).deter.shape[0] == 2 * B * T


def test_default_noise_comes_from_torchs_generator(rssm):
    embed, action, is_first, _ = make_sequences(rssm)
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(rssm.observe(embed, action, is_first)[0].stoch)
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_every_weight_gets_a_gradient(rssm):
    embed, action, is_first, noise = make_sequences(rssm)
    states, priors = rssm.observe(embed, action, is_first, None, noise)
    (rssm.features(states).square().sum() + rssm.stochastic.kl_divergence(states.parameters, priors).sum()).backward()
    assert all(p.grad is not None and p.grad.any() for p in rssm.parameters())


def test_cells_equal_their_equations():
    """Each cell's formula, written out over plain matrices."""
    generator = torch.Generator().manual_seed(1)
    deter, stoch, action = (torch.randn(B, n, dtype=torch.float64, generator=generator) for n in (8, 12, 3))

    def layer(module, *inputs):
        x = (
            sum(x @ part.weight.T for x, part in zip(inputs, module.input_projections, strict=True))
            + module.input_projections[0].bias
        )
        rms = x.square().mean(-1, keepdim=True).add(1e-6).rsqrt()
        return torch.nn.functional.silu(x * rms * module.norm.weight)

    cell = make_rssm().recurrent_cell
    common = [
        layer(cell.deter_projection, deter),
        layer(cell.stoch_projection, stoch),
        layer(cell.action_projection, action),
    ]
    recurrent = deter @ torch.block_diag(*cell.block_recurrence.weight).T + cell.block_recurrence.bias[0]
    mixed = (
        torch.cat(common, dim=-1) @ torch.cat([part.weight for part in cell.mixing_layer.input_projections], dim=1).T
        + recurrent
    )
    mixed = mixed + cell.mixing_layer.input_projections[0].bias
    mixed = mixed * mixed.square().mean(-1, keepdim=True).add(1e-6).rsqrt() * cell.mixing_layer.norm.weight
    x = torch.nn.functional.silu(mixed)
    gates = [x @ torch.block_diag(*(w.chunk(3)[i] for w in cell.gates.weight)).T + cell.gates.bias[i] for i in range(3)]
    update = (gates[2] - 1).sigmoid()
    expected = update * (gates[0].sigmoid() * gates[1]).tanh() + (1 - update) * deter
    torch.testing.assert_close(cell(deter, stoch, cell.project_action(action)), expected)

    cell = make_rssm(**KINDS["dreamer-v2"]).recurrent_cell
    first, second = cell.input.input_projections
    x = torch.nn.functional.elu(stoch @ first.weight.T + first.bias + action @ second.weight.T)
    projected = torch.cat((x, deter), dim=-1) @ cell.gates.weight.T
    projected = (projected - projected.mean(-1, keepdim=True)) / (
        projected.var(-1, unbiased=False, keepdim=True) + 1e-3
    ).sqrt()
    reset, candidate, update = (projected * cell.norm.weight + cell.norm.bias).chunk(3, dim=-1)
    update = (update - 1).sigmoid()
    expected = update * (reset.sigmoid() * candidate).tanh() + (1 - update) * deter
    torch.testing.assert_close(cell(deter, stoch, cell.project_action(action)), expected)

    cell = make_rssm(**KINDS["planet"]).recurrent_cell
    first, second = cell.input.input_projections
    x = torch.nn.functional.elu(stoch[:, :4] @ first.weight.T + first.bias + action @ second.weight.T)
    assert isinstance(cell.cell, torch.nn.GRUCell)
    torch.testing.assert_close(cell(deter, stoch[:, :4], cell.project_action(action)), cell.cell(x, deter))


def test_actions_are_encoded_as_floats():
    assert torch.equal(
        make_rssm().encode_action(torch.tensor([[2, 0]])), torch.eye(3, dtype=torch.float64)[[2, 0]][None]
    )
    rssm = make_rssm(num_actions=0, action_dims=2)
    action = torch.tensor([[0.5, -3.0], [2.0, 1.0]])
    assert torch.equal(rssm.encode_action(action), torch.tensor([[0.5, -1.0], [1.0, 1.0]], dtype=torch.float64))
    with pytest.raises(ValueError, match=r"floats \[\.\.\., 2\], got torch.int64"):
        rssm.encode_action(torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"integers in 0\.\.2, got torch.float32"):
        make_rssm().encode_action(torch.zeros(3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_dims": 2}, "num_actions=3, action_dims=2"),
        ({"num_actions": 0}, "num_actions=0, action_dims=0"),
        ({"cell": "lstm"}, "cell='lstm'"),
        ({"blocks": 3}, "blocks=3 must divide deter=8"),
        ({"norm": "batch"}, "norm='batch'"),
        ({"prior_layers": 0}, "prior_layers=0"),
    ],
)
def test_rejects_invalid_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        make_rssm(**changes)
