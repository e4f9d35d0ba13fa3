"""Mixtures of data sets, of buckets, of ends of episodes and of rewards: exact shares, in a pure order."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from vwm.cli.config_arguments import expand_arguments
from vwm.data.clip_folders import make_clip_dataset
from vwm.data.clip_order import ClipOrder, NotEnoughClipsError
from vwm.data.clips import ClipDataset
from vwm.data.datamodule import ClipLoader, VideoDataModule
from vwm.data.episode import Episode
from vwm.data.mixed_order import ClipSource, MixedOrder, whole_weights
from vwm.data.mixtures import EpisodeBuckets, MixtureOptions, count_drawn
from vwm.data.shard_index import EpisodeIndexEntry, ShardIndex, load_shard_index, shard_index_path
from vwm.data.shard_reading import is_terminated
from vwm.data.shards import ShardWriter


def write(folder: Path, lengths: list[int], value: int, side: int = 4, ended: bool = True, **meta) -> str:
    """Write one shard per five episodes. Frame i of an episode holds ``value`` and i.

    If ``ended``, every second one terminated, and every seventh action from the third one on was rewarded.
    """
    for first in range(0, len(lengths), 5):
        with ShardWriter(folder / f"shard-{first:06d}.tar") as writer:
            for number, length in enumerate(lengths[first : first + 5], first):
                frames = np.zeros((length, side, side, 3), np.uint8)
                frames[..., 0], frames[:, ..., 1] = value, np.arange(length)[:, None, None]
                terminated = ended and number % 2 == 0
                scores = {"scores": {"quality": number / 10}}
                actions = np.arange(length)
                rewards = np.where(actions % 7 == 3, -1, 0).astype(np.float32) if ended else None
                episode = Episode(frames, actions, rewards, meta=scores | meta, terminated=terminated)
                writer.write(f"{value}-{number}", episode)
    return str(folder)


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    a = write(tmp_path / "a", [9, 14, 8, 30, 11, 5, 21], 1)
    b = write(tmp_path / "b", [40, 12, 7], 2)
    return [a, b, write(tmp_path / "c", [13] * 12, 3, ended=False)]


def drawn_sets(clips: ClipDataset, count: int) -> list[int]:
    """The data set of each of the first clips of a training."""
    epochs = (divmod(i, len(clips.order)) for i in range(count))
    return [int(clips.shards[a.shard].episodes[a.episode].key[0]) for a in (clips.order.address(*e) for e in epochs)]


@pytest.mark.parametrize(("weights", "whole"), [((3, 1), (3, 1)), ((0.5, 0.25, 1.75), (2, 1, 7)), ((10, 30), (1, 3))])
def test_every_period_holds_the_exact_shares(folders: list[str], weights: tuple[float, ...], whole: tuple[int]) -> None:
    clips = make_clip_dataset(dict(zip(folders, weights, strict=False)), 4, seed=5)  # type: ignore[arg-type]
    sets, period = drawn_sets(clips, 300), sum(whole)
    for first in range(0, 300 - period, period):
        assert Counter(sets[first : first + period]) == {i + 1: n for i, n in enumerate(whole)}
    assert len({tuple(sets[i : i + period]) for i in range(0, 300 - period, period)}) > 2  # they take turns at random
    assert len(clips.order) == sum(len(make_clip_dataset(f, 4).order) for f in folders[: len(whole)])
    other = make_clip_dataset(dict(zip(folders, weights, strict=False)), 4, seed=6)  # type: ignore[arg-type]
    assert sets != drawn_sets(other, 300)


def test_a_pass_over_a_data_set_has_each_of_its_clips_once(folders: list[str]) -> None:
    clips = make_clip_dataset({folders[0]: 1, folders[2]: 4}, 4)
    size = len(make_clip_dataset(folders[2], 4).order)
    found = [clips.order.address(*divmod(i, len(clips.order))) for i in range(5 * size)]
    of_c = [a[:3] for a in found if clips.shards[a.shard].episodes[a.episode].key[0] == "3"]
    assert len(of_c) == 4 * size  # four passes
    starts = {(a.shard, a.episode): 0 for a in found}
    for begin in range(0, 4 * size, size):
        one = of_c[begin : begin + size]
        assert len(set(one)) == size
        counts = Counter((shard, episode) for shard, episode, _ in one)
        assert set(counts.values()) == {13 // 4} and len(counts) == 12 <= len(starts)
    assert of_c[:size] != of_c[size : 2 * size]


def test_without_weights_every_clip_of_all_comes_once(folders: list[str]) -> None:
    clips = make_clip_dataset(folders, 4)
    assert isinstance(clips.order, ClipOrder)
    sets = Counter(drawn_sets(clips, len(clips.order)))
    assert sets == {i + 1: len(make_clip_dataset(f, 4).order) for i, f in enumerate(folders)}


@pytest.mark.parametrize("share", [0.2, 0.25, 1.0])
def test_ends_of_terminated_episodes_have_their_share(folders: list[str], share: float) -> None:
    clips = make_clip_dataset(folders[0], 4, seed=2, fields=("frames", "terminated"), mixture=MixtureOptions(share))
    period = Fraction(str(share)).denominator
    usual = make_clip_dataset(folders[0], 4)
    assert len(clips.order) == (4 if share == 1 else len(usual.order))
    assert isinstance(clips.order, MixedOrder)
    seen, places = Counter[int](), Counter[int]()
    for i in range(20 * period):
        address = clips.order.address(*divmod(i, len(clips.order)))
        if clips.order.sources[clips.order._turns(i // period)[0][i % period]].name.startswith("ends"):
            seen[address.episode + 5 * address.shard] += 1
            clip = clips.read(address)
            assert clip["terminated"].sum() == 1
            places[int(clip["terminated"].argmax())] += 1
    assert sum(seen.values()) == round(20 * period * share) and set(places) == {0, 1, 2, 3}
    assert set(seen) <= {0, 2, 4, 6} and max(seen.values()) - min(seen.values()) <= 1  # each as often


def test_ends_of_latents_cover_the_last_action() -> None:
    """With k frames per latent, a clip starts at a whole latent, and its steps reach the end of the episode."""
    for frames in range(9, 40):
        entry = EpisodeIndexEntry("e", frames, 4, 4, 0, {}, terminated=True)
        shards = [ShardIndex("s", 0, "h", (entry,))]
        start = ClipOrder(shards, 9, shuffle=False, frames_per_latent=4, only_ends=True).address(0, 0).start
        assert start % 4 == 0 and start + 8 <= frames - 1 < start + 8 + 4
        order = ClipOrder(shards, 9, frames_per_latent=4, only_ends=True)
        starts = {order.address(epoch, 0).start for epoch in range(40)}
        assert starts == {start, start + 4, start + 8}  # the end is in the last, the middle or the first latent


def test_a_clip_runs_past_the_end_of_its_episode(folders: list[str]) -> None:
    """What follows repeats the last frame, with actions 0 and unknown rewards; short episodes have such clips, too."""
    fields = ("frames", "actions", "rewards", "terminated")
    clips = make_clip_dataset(folders[0], 8, fields=fields, mixture=MixtureOptions(1.0))
    assert isinstance(clips.order, MixedOrder) and len(clips.order) == 4
    lengths, places = set(), set()
    for epoch in range(30):
        for i in range(4):
            address = clips.order.address(epoch, i)
            clip = clips.read(address)
            length = clips.shards[address.shard].episodes[address.episode].frames
            inside = length - address.start
            assert 1 <= inside <= 8
            steps = address.start + np.arange(8)
            assert clip["frames"][:, 0, 0, 1].tolist() == np.minimum(steps, length - 1).tolist()
            assert clip["actions"].tolist() == np.where(steps < length, steps, 0).tolist()
            rewards = np.where(steps < length, np.where(steps % 7 == 3, -1, 0), np.nan)
            np.testing.assert_array_equal(clip["rewards"], rewards)
            assert clip["terminated"].tolist() == (steps == length - 1).tolist()
            lengths.add(length)
            places.add(inside)
    assert lengths == {9, 8, 11, 21} and places == set(range(1, 9))
    short = make_clip_dataset(folders[0], 16, fields=fields, mixture=MixtureOptions(1.0))
    assert {short.read(short.order.address(0, i))["rewards"].shape for i in range(4)} == {(16,)}


def test_a_training_without_a_share_of_ends_says_what_it_learns_of_them(folders: list[str], capsys) -> None:
    options = {"clip_length": 4, "batch_size": 2, "workers": 0, "val_fraction": 0.0}
    for path, more, noted in (
        (folders[0], {"fields": ["frames", "terminated"]}, True),
        (folders[0], {"fields": ["frames", "terminated"], "ends_share": 0.5}, False),
        (folders[0], {"fields": ["frames"]}, False),
        (folders[2], {"fields": ["frames", "terminated"]}, False),
    ):
        VideoDataModule(path, **options, **more).train_dataloader()
        assert ("4 episodes terminated, and clips hold" in capsys.readouterr().out) == noted


def test_ends_come_from_data_sets_that_have_them(folders: list[str]) -> None:
    weights = {folders[0]: 1, folders[2]: 1}
    clips = make_clip_dataset(weights, 4, mixture=MixtureOptions(0.5))
    assert isinstance(clips.order, MixedOrder) and isinstance(clips.order.sources[1].order, ClipOrder)
    assert Counter(drawn_sets(clips, 40)) == {1: 20, 3: 20}
    drawn = count_drawn(clips.order, 0, 40)
    assert drawn[f"{folders[0]}, ends of episodes"] == 10 and drawn[folders[2]] == 20
    with pytest.raises(NotEnoughClipsError, match=r"ends_share is 0\.5, but no training episode terminated"):
        make_clip_dataset(folders[2], 4, mixture=MixtureOptions(0.5))


@pytest.mark.parametrize("ends", [None, 0.25])
def test_clips_around_rewards_have_their_share(folders: list[str], ends: float | None) -> None:
    mixture = MixtureOptions(ends, rewards_share=0.4)
    clips = make_clip_dataset(folders[0], 4, seed=2, fields=("frames", "rewards"), mixture=mixture)
    assert len(clips.order) == len(make_clip_dataset(folders[0], 4).order)
    assert isinstance(clips.order, MixedOrder)
    source = next(source for source in clips.order.sources if source.name == "around rewards")
    passes = [[clips.read(source.order.address(epoch, i)) for i in range(len(source.order))] for epoch in range(12)]
    rewarded = [1 + (length - 4) // 7 for length in (9, 14, 8, 30, 11, 5, 21)]
    assert [len(one) for one in passes] == [sum(rewarded)] * 12  # each reward once a pass
    places = Counter(int(np.argmax(clip["rewards"] != 0)) for one in passes for clip in one)
    assert set(places) == {0, 1, 2, 3} and all((clip["rewards"] != 0).sum() == 1 for one in passes for clip in one)
    assert len({int(clip["frames"][0, 0, 0, 1]) for one in passes for clip in one}) > 10
    drawn = count_drawn(clips.order, 0, 200)
    assert drawn["around rewards"] == 80 and drawn.get("ends of episodes", 0) == 200 * (ends or 0)


def test_clips_of_labeled_episodes_have_their_share(folders: list[str]) -> None:
    """Of the seven episodes, a third are two; their clips are half of all, and the others come as before."""
    mixture = MixtureOptions(labeled_share=0.5, rewards_share=0.25)
    fields = ("frames", "actions", "rewards")
    clips = make_clip_dataset(folders[0], 4, fields=fields, labeled_fraction=0.3, mixture=mixture)
    assert isinstance(clips.order, MixedOrder) and len(clips.order) == len(make_clip_dataset(folders[0], 4).order)
    drawn = count_drawn(clips.order, 0, 200)
    assert (drawn["labeled"], drawn["around rewards"]) == (100, 50)
    source = next(source for source in clips.order.sources if source.name == "labeled")
    passed = [clips.read(source.order.address(0, i)) for i in range(len(source.order))]
    assert all(clip["labeled"] and clip["actions"].any() for clip in passed)
    same = make_clip_dataset(folders[0], 4, fields=fields, labeled_fraction=0.3)
    every = [same.read(same.order.address(0, i)) for i in range(len(same.order))]
    starts = [sorted(int(c["frames"][0, 0, 0, 1]) for c in found if c["labeled"]) for found in (passed, every)]
    assert len(starts[0]) == len(starts[1]) > 2  # each labeled clip once a pass


def test_labels_come_from_data_sets_that_have_them(folders: list[str]) -> None:
    with pytest.raises(
        NotEnoughClipsError, match=r"labeled_share is 0\.5, but the actions of no .*labeled_fraction 0\)"
    ):
        make_clip_dataset(folders[0], 4, labeled_fraction=0.0, mixture=MixtureOptions(labeled_share=0.5))
    message = r"ends_share 0\.5 and data\.labeled_share 0\.6 are more than all"
    with pytest.raises(ValueError, match=message):
        VideoDataModule(folders[0], ends_share=0.5, labeled_share=0.6)
    VideoDataModule(folders[0], ends_share=0.1, rewards_share=0.7, labeled_share=0.2)  # exactly all of them


def test_a_reward_between_latents_is_in_a_clip_of_whole_latents(tmp_path: Path) -> None:
    """With k frames per latent, the latent that an action leads from or into is in the clip that it is drawn for."""
    from vwm.data.mixtures import _find_rewarded

    path = write(tmp_path / "a", [30], 1)
    (shard,) = make_clip_dataset(path, 4).shards
    entry = shard.episodes[0]
    events = _find_rewarded(f"{path}/shard-000000.tar", entry, 4)
    assert events.tolist() == [1, 3, 5, 6]  # of the actions 3, 10, 17, 24: latent n holds the frames 4 n - 3 to 4 n
    for epoch in range(5):
        order = ClipOrder([shard], 9, frames_per_latent=4, events=[[events]])
        starts = [order.address(epoch, i).start for i in range(4)]
        assert all(start % 4 == 0 and start + 9 <= 30 for start in starts)
        held = [{e for e in events.tolist() if start <= 4 * e <= start + 8} for start in starts]
        assert set.union(*held) == set(events.tolist())


def test_rewards_come_from_data_sets_that_have_them(folders: list[str]) -> None:
    clips = make_clip_dataset({folders[0]: 1, folders[2]: 1}, 4, mixture=MixtureOptions(rewards_share=0.5))
    assert Counter(drawn_sets(clips, 40)) == {1: 20, 3: 20}
    drawn = count_drawn(clips.order, 0, 40)
    assert drawn[f"{folders[0]}, around rewards"] == 10 and drawn[folders[2]] == 20
    with pytest.raises(NotEnoughClipsError, match=r"rewards_share is 0\.5, but no action of .* was rewarded"):
        make_clip_dataset(folders[2], 4, mixture=MixtureOptions(rewards_share=0.5))
    with pytest.raises(ValueError, match=r"ends_share 0\.5 and data\.rewards_share 0\.6 are more than all"):
        VideoDataModule(folders[0], ends_share=0.5, rewards_share=0.6)


def test_an_index_of_before_does_not_say_what_terminated(folders: list[str]) -> None:
    usual = make_clip_dataset(folders[0], 4, mixture=MixtureOptions(0.5))
    for shard in usual.paths:
        index = load_shard_index(shard)
        assert [e.terminated for e in index.episodes] == [e.key[-1] in "0246" for e in index.episodes]
        text = Path(shard_index_path(shard)).read_text()
        assert '"terminated": true' in text and '"quality"' in text
    stripped = [
        ShardIndex(
            s.tar, s.size, s.hash, tuple(EpisodeIndexEntry(e.key, e.frames, 4, 4, 0, e.members) for e in s.episodes)
        )
        for s in usual.shards
    ]
    entries = [(path, e) for path, shard in zip(usual.paths, stripped, strict=True) for e in shard.episodes]
    assert [is_terminated(path, e) for path, e in entries] == [True, False] * 3 + [True]


@pytest.mark.parametrize(("by", "edges"), [("frames", [9, 20]), ("seconds", [0.6, 4 / 3]), ("quality", [0.15, 0.35])])
def test_buckets_have_their_weights(tmp_path: Path, by: str, edges: list[float]) -> None:
    folder = write(tmp_path / "a", [9, 14, 8, 30, 11, 5, 21], 1, fps=15)
    clips = make_clip_dataset(folder, 4, mixture=MixtureOptions(None, EpisodeBuckets(by, edges, [0, 1, 3])))
    values = {
        "frames": lambda e: e.frames,
        "seconds": lambda e: e.frames / 15,
        "quality": lambda e: e.scores["quality"],
    }
    found: Counter[int] = Counter()
    for i in range(80):
        address = clips.order.address(*divmod(i, len(clips.order)))
        value = values[by](clips.shards[address.shard].episodes[address.episode])
        found[sum(value >= edge for edge in edges)] += 1
    assert found == {1: 20, 2: 60}


def test_a_bucket_that_no_episode_fills_is_named(folders: list[str]) -> None:
    def mix(path, weights, by="frames"):
        return make_clip_dataset(path, 4, mixture=MixtureOptions(None, EpisodeBuckets(by, [100], weights)))

    with pytest.raises(NotEnoughClipsError, match="draws from frames from 100 with weight 1, where no"):
        mix(folders[0], [1, 1])
    assert len(mix(folders[0], [1, 0]).order) == len(make_clip_dataset(folders[0], 4).order)
    with pytest.raises(ValueError, match=r"1-0 has no beauty \(its scores are \{'quality': 0\.0\}\)"):
        mix(folders[0], [1, 1], by="beauty")
    for edges, weights in (([], [1]), ([2, 1], [1, 1, 1]), ([1], [1]), ([1], [0, 0]), ([1], [1, -1])):
        with pytest.raises(ValueError, match=r"data\.buckets: "):
            EpisodeBuckets("frames", edges, weights)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
def test_batches_do_not_depend_on_workers_ranks_and_resumes(folders: list[str]) -> None:
    options = MixtureOptions(0.2, EpisodeBuckets("frames", [10], [1, 2]), 0.3)

    def loader(size: int = 4, **where) -> ClipLoader:
        weights = {folders[0]: 3, folders[1]: 1, folders[2]: 0.5}
        return ClipLoader(make_clip_dataset(weights, 4, seed=9, mixture=options), size, **where)

    def frames(batches) -> list[torch.Tensor]:
        return [torch.cat((b.frames.flatten(1), b.actions, b.seed[:, None]), dim=1) for b in batches]

    def endless(one: ClipLoader):
        while True:
            yield from one

    plain = loader()
    expected = frames(islice(endless(plain), 40))
    assert plain.global_batches // len(plain) >= 2  # over several epochs
    assert all(map(torch.equal, frames(islice(endless(loader(workers=3)), 40)), expected))
    ranks = [frames(islice(endless(loader(2, rank=r, world_size=2)), 40)) for r in range(2)]
    assert all(torch.equal(torch.cat(parts), whole) for *parts, whole in zip(*ranks, expected, strict=True))
    resumed = loader()
    resumed.load_state_dict({**plain.state_dict(), "global_batches": 32})
    assert all(map(torch.equal, frames(islice(endless(resumed), 8)), expected[32:]))
    # the report counts what was read
    drawn = plain.count_drawn()
    values = torch.cat(expected)[:, 0].int().tolist()
    assert [drawn[folder] for folder in folders] == [values.count(i) for i in (1, 2, 3)]


def test_other_weights_are_another_order(folders: list[str]) -> None:
    state = ClipLoader(make_clip_dataset({folders[0]: 3, folders[1]: 1}, 4), 2).state_dict()
    for weights, options in (
        ({folders[0]: 2, folders[1]: 1}, (None,)),
        ({folders[0]: 3, folders[1]: 1}, (0.2,)),
        ({folders[0]: 3, folders[1]: 1}, (None, None, 0.2)),
    ):
        loader = ClipLoader(make_clip_dataset(weights, 4, mixture=MixtureOptions(*options)), 2)
        with pytest.raises(ValueError, match="the shards or their weights differ"):
            loader.load_state_dict(state)
    ClipLoader(make_clip_dataset({folders[0]: 6, folders[1]: 2}, 4), 2).load_state_dict(state)


def test_validation_has_every_held_out_clip_once(folders: list[str]) -> None:
    data = VideoDataModule({folders[0]: 9, folders[2]: 1}, 4, 1, workers=0, val_fraction=0.4)
    held_out = VideoDataModule([folders[0], folders[2]], 4, 1, workers=0, val_fraction=0.4)
    one, other = data.val_dataloader(), held_out.val_dataloader()
    assert isinstance(one, ClipLoader) and isinstance(other, ClipLoader)
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(one, other, strict=True))


def test_data_sets_that_do_not_fit_are_named(tmp_path: Path) -> None:
    base = write(tmp_path / "base", [9, 9], 1, fps=15, action_names=["left", "right"])
    others = {
        "frames of 4x4 pixels, .*large has frames of 6x6": {"folder": "large", "side": 6},
        "has 15 frames per second, .*fast has 30 frames": {"folder": "fast", "fps": 30},
        "the actions left, right, .*named has the actions up, down": {
            "folder": "named",
            "action_names": ["up", "down"],
        },
    }
    for said, changes in others.items():
        other = write(tmp_path / changes.pop("folder"), [9], 2, **({"fps": 15} | changes))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=said):
            make_clip_dataset([base, other], 4)
    folder = tmp_path / "continuous"
    with ShardWriter(folder / "shard-000000.tar") as writer:
        writer.write("e", Episode(np.zeros((9, 4, 4, 3), np.uint8), np.zeros((9, 2), np.float32)))
    with pytest.raises(ValueError, match=r"discrete actions, .*continuous has continuous actions of 2 dimensions"):
        make_clip_dataset([base, str(folder)], 4)
    make_clip_dataset([base, str(folder)], 4, fields=("frames",))
    unlabeled = tmp_path / "unlabeled"
    with ShardWriter(unlabeled / "shard-000000.tar") as writer:
        writer.write("e", Episode(np.zeros((9, 4, 4, 3), np.uint8)))
    clips = make_clip_dataset({base: 1, str(unlabeled): 1}, 4)  # its clips count as unlabeled
    assert {bool(clips[i]["labeled"]) for i in range(4)} == {True, False}


def test_weights_and_paths_that_are_refused(folders: list[str]) -> None:
    for path, said in (
        ({folders[0]: 0}, "must be a number above 0, got 0"),
        ({folders[0]: float("nan")}, "must be a number above 0"),
        ([folders[0], folders[0]], "must name different data sets"),
        ([], "must name different data sets"),
    ):
        with pytest.raises(ValueError, match=said):
            make_clip_dataset(path, 4)
    with pytest.raises(ValueError, match="more than 1,000,000: round them"):
        whole_weights([Fraction("0.3333333333"), Fraction("0.6666666667")])
    order = ClipOrder([ShardIndex("s", 0, "h", (EpisodeIndexEntry("e", 9, 4, 4, 0, {}),))], 4)
    with pytest.raises(IndexError, match="outside an epoch of 2 clips"):
        MixedOrder([ClipSource("a", order, Fraction(1))], 0).address(0, 2)


def test_the_command_line_takes_several_folders_and_weights(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("a: 1\n")
    key = "--data.init_args.path"

    def expand(*words: str) -> list[str]:
        return expand_arguments("fit", ["-c", str(config), *words])[2:]

    assert expand("--data", "a", "--steps", "3") == [f"{key}=a", "--trainer.max_steps", "3"]
    assert expand("--data", "s3://x/a:3", "b:1.5", "--steps=3") == [
        f'{key}={{"s3://x/a": 3.0, "b": 1.5}}',
        "--trainer.max_steps=3",
    ]
    assert expand("--data", "a", "b") == [f'{key}=["a", "b"]']
    assert expand("--data=a:2", "b:1") == [f'{key}={{"a": 2.0, "b": 1.0}}']
    assert expand("--data", "s3://x/a", "c:\\b") == [f'{key}=["s3://x/a", "c:\\\\b"]']
    (tmp_path / "odd:3").mkdir()
    assert expand("--data", str(tmp_path / "odd:3")) == [f"{key}={tmp_path / 'odd:3'}"]
    for words, said in ((("a:1", "b"), "b has no weight and others have"), (("a:1", "a:2"), "names a data set twice")):
        with pytest.raises(ValueError, match=said):
            expand("--data", *words)


def test_images_and_videos_mix_by_weight_and_resume_exactly(folders: list[str], tmp_path: Path) -> None:
    images = write(tmp_path / "images", [1] * 7, 9, ended=False)
    path = {folders[0]: 2, images: 1}

    def loader() -> ClipLoader:
        return ClipLoader(make_clip_dataset(path, 4, fields=["frames"], seed=3, stills=True), batch_size=3)

    whole = loader()
    batches = [batch for _ in range(2) for batch in whole]
    assert all(int(batch.still.sum()) == 1 for batch in batches[: len(whole)])
    for batch in batches:
        assert torch.equal(batch.still, batch.frames[:, 0, 0, 0, 0] == 9)
        assert torch.equal(batch.frames[batch.still][:, 0], batch.frames[batch.still][:, 3])
        assert (batch.frames[~batch.still][:, 3, 0, 0, 1] == batch.frames[~batch.still][:, 0, 0, 0, 1] + 3).all()
    first, resumed = loader(), loader()
    list(islice(first, 4))
    resumed.load_state_dict(first.state_dict())
    for one, other in zip(resumed, batches[4:], strict=False):
        assert torch.equal(one.frames, other.frames) and torch.equal(one.seed, other.seed)
    with pytest.raises(ValueError, match="the shards or their weights"):  # another order of the same episodes
        ClipLoader(make_clip_dataset(path | {images: 1.0}, 1, fields=["frames"], seed=3), 3).load_state_dict(
            first.state_dict()
        )
    with pytest.raises(ValueError, match=r"images have no actions: set fields=\[frames\]"):
        make_clip_dataset(path, 4, stills=True)
