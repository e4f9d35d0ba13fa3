"""Invariants of sink frames and memory frames: one rule in parallel and in streams, a bounded cache, no last frame."""

from __future__ import annotations

import itertools

import pytest
import torch
from factories import randomize

from vwm.nn.attention_kernels import KeyValueCache
from vwm.nn.attention_span import AttentionSpan
from vwm.nn.video_transformer import VideoTransformer, grid_coordinates

SPANS = [
    AttentionSpan(4),
    AttentionSpan(4, sink_frames=2),
    AttentionSpan(3, memory_frames=3, memory_every=2),
    AttentionSpan(1, sink_frames=1, memory_frames=2, memory_every=3),
    AttentionSpan(5, sink_frames=3, memory_frames=2, memory_every=4),
    AttentionSpan(2, sink_frames=6, memory_frames=1, memory_every=1),
]
COORDINATES = grid_coordinates(1, 2)


def attended(span: AttentionSpan, position: int) -> set[int]:
    """The frames to which a frame attends, as the documentation says it."""
    window = set(range(max(0, position - span.window + 1), position + 1))
    left = [frame for frame in range(position + 1) if frame not in window]
    sinks = {frame for frame in left if frame < span.sink_frames}
    newest = range(position - span.reach + 1, position + 1)
    memory = {frame for frame in left if frame in newest and frame % span.memory_every == 0 and frame not in sinks}
    assert len(memory) <= span.memory_frames
    return window | sinks | memory


def make_network(span: AttentionSpan, **changes) -> VideoTransformer:
    """A network with a single layer of time attention, so that its receptive field is the span itself."""
    torch.manual_seed(0)
    settings = {"width": 16, "depth": 2, "heads": 2, **changes}
    return randomize(VideoTransformer(window=span, **settings)).double().eval()


def make_clip(frames: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, frames, 2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("span", SPANS, ids=str)
def test_frames_attend_to_window_sinks_and_memory_in_parallel_and_in_streams(span):
    frames = 40
    positions = torch.arange(frames)
    found = [set(row.nonzero().flatten().tolist()) for row in span.attends(positions, positions)]
    assert found == [attended(span, p) for p in range(frames)]
    held, start = [], 0
    for length in (1, 1, 7, 1, 2, 1, 1, 15, 1, 1, 1, 8):
        stream = span.stream(torch.tensor([start]), length)
        keys, mask = stream.key_positions[0], stream.mask[0, 0, 0]
        for row, position in zip(mask, stream.positions[0].tolist(), strict=True):
            seen = keys[row].tolist()
            assert len(seen) == len(set(seen)) and set(seen) == attended(span, position)
        held.append(keys[:-length])
        after = span.slot_positions(torch.tensor([start + length]))[0]
        cached, new = (
            KeyValueCache(*(part.double()[None, None, None, :, None],) * 2) for part in keys.tensor_split([-length])
        )
        kept = span.kept_slots(stream).keep(cached, new).keys.flatten()
        assert torch.equal(kept[after >= 0], after[after >= 0].double())
        start += length
    assert {len(keys) for keys in held} == {span.slots}


def test_a_new_frame_takes_the_slot_of_the_oldest_and_all_others_stay():
    span = AttentionSpan(6)
    slots = [span.slot_positions(torch.tensor([count]))[0] for count in range(40)]
    for count, (before, after) in enumerate(itertools.pairwise(slots)):
        assert (before != after).sum() == 1 and after[before != after].item() == count
        cache = KeyValueCache(*(before.double()[None, None, None, :, None] * sign for sign in (1, -1)))
        new = KeyValueCache(*(torch.full((1, 1, 1, 1, 1), count * sign, dtype=torch.double) for sign in (1, -1)))
        kept = span.kept_slots(span.stream(torch.tensor([count]), 1)).keep(cache, new)
        assert torch.equal(kept.keys.flatten(), after.double()) and torch.equal(kept.values, -kept.keys)


@pytest.mark.parametrize("attention", ["factored", "full"])
def test_a_frame_changes_those_that_attend_to_it_only(attention):
    span, frames = SPANS[4], 24
    network, x = make_network(span, attention=attention, **({"depth": 1} if attention == "full" else {})), make_clip(24)
    plain = network(x, COORDINATES)
    for position in (0, 2, 3, 4, 8, 9, 16):
        changed = x.clone()
        changed[:, position] = -changed[:, position]
        differs = (network(changed, COORDINATES) - plain).abs().amax(dim=(0, 2, 3)) > 1e-9
        assert differs.tolist() == [position in attended(span, p) for p in range(frames)]


@pytest.mark.parametrize("attention", ["factored", "full"])
def test_a_thousand_steps_equal_the_parallel_pass_with_a_cache_that_does_not_grow(attention):
    span, frames = AttentionSpan(3, sink_frames=2, memory_frames=2, memory_every=5), 1000
    network, x = make_network(span, width=8, attention=attention), make_clip(frames)[..., :8]
    starts = torch.tensor([0, 1, 2, 3, 4, *range(5, 900, 35), *range(900, frames + 1)])
    state, parts, sizes = network.init_state(1, 2), [], set()
    with torch.no_grad():
        for start, stop in zip(starts.tolist(), starts[1:].tolist(), strict=False):
            y, state = network.step(x[:, start:stop], state, COORDINATES)
            parts.append(y)
            sizes |= {cache.keys.shape[3] for cache in state.blocks}
        whole = network(x[:, :200], COORDINATES)
        positions = torch.arange(frames - 30, frames)  # with its sinks and memory, the end of the long clip
        kept = torch.cat((torch.arange(2), torch.arange(frames - 60, frames)))
        end = network(x[:, kept], COORDINATES, positions=kept)[:, -len(positions) :]
    streamed = torch.cat(parts, dim=1)
    assert sizes == {span.slots}
    torch.testing.assert_close(streamed[:, :200], whole, rtol=0, atol=1e-10)
    torch.testing.assert_close(streamed[:, positions], end, rtol=0, atol=1e-10)


def test_the_distance_to_the_sinks_stops_growing():
    """Where window, memory and sinks hold the same pictures, a frame is predicted equally after any number of steps."""
    span = AttentionSpan(4, sink_frames=2, memory_frames=2, memory_every=3)
    network, period = make_network(span), make_clip(span.reach + 2)
    kept = [torch.cat((torch.arange(2), torch.arange(end - span.reach, end))) for end in (60, 6000, 60_000_000)]
    early, late, very_late = (network(period, COORDINATES, positions=k)[:, -1] for k in kept)
    torch.testing.assert_close(late, early, rtol=0, atol=1e-9)
    torch.testing.assert_close(very_late, early, rtol=0, atol=1e-6)
    near = network(period, COORDINATES, positions=torch.arange(span.reach + 2))[:, -1]  # just where the growth ends
    torch.testing.assert_close(near, early, rtol=0, atol=1e-9)


def test_learns_to_recall_what_the_window_has_lost():
    """Frames 0 and 3 hold a sign each; the last of eight frames asks for one of them."""
    torch.manual_seed(0)

    def ask(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, signs = torch.zeros(count, 8, 2, 16), torch.randint(0, 2, (count, 2)) * 2.0 - 1
        x[:, [0, 3], :, 0] = signs[..., None]
        asked = torch.randint(0, 2, (count,))
        x[:, 0, :, 1], x[:, 3, :, 2], x[range(count), -1, :, 1 + asked] = 1, 1, 1
        return x, signs[range(count), asked]

    network = make_network(AttentionSpan(2, sink_frames=1, memory_frames=1, memory_every=3)).float().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(120):
        x, sign = ask(32)
        loss = (network(x, COORDINATES)[:, -1].mean(dim=1)[:, 0] - sign).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, sign = ask(256)
    found = network(x, COORDINATES)[:, -1].mean(dim=1)[:, 0].sign()
    assert (found == sign).float().mean() > 0.9  # 0.5 without sink or memory
