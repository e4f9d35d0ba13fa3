"""Encoded shards: one latent per frame, all from one tokenizer, with the dtype that dynamics models take."""

from __future__ import annotations

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from factories import DIFFUSERS_VAES, tokenizer

from vwm.core.components import save_component
from vwm.core.frames import frames_to_float
from vwm.data.clip_folders import make_clip_dataset
from vwm.data.clips import collate_clips
from vwm.data.episode import Episode
from vwm.data.shard_index import load_shard_index
from vwm.data.shards import ShardWriter
from vwm.tokenizers.causal_vae import CausalVAE
from vwm.tokenizers.frame_vae import FrameVAE
from vwm.tokenizers.loading import load_tokenizer
from vwm.tokenizers.pixel_tokenizer import PixelTokenizer
from vwm.tokenizers.shard_encoding import encode_shards, tokenizer_fingerprint


@pytest.fixture
def shards(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    with ShardWriter(tmp_path / "data" / "shard-000000.tar") as writer:
        for key in ("a", "b"):
            frames = rng.integers(0, 256, (11, 16, 16, 3), dtype=np.uint8)
            writer.write(key, Episode(frames, rng.integers(0, 4, 11)), raw=True)
    return str(tmp_path / "data")


@pytest.mark.parametrize("chunk", [1, 4, 64])
@pytest.mark.parametrize(
    ("network", "dtype", "stored"),
    [(tokenizer(), torch.int64, np.int32), (PixelTokenizer((16, 16), 4), torch.float32, np.float16)],
    ids=["tokens", "continuous"],
)
def test_every_row_is_the_latent_of_its_frame(network, dtype, stored, chunk, shards, tmp_path):
    save_component(network.eval(), tmp_path / "tokenizer")
    encode_shards(shards, tmp_path / "tokenizer", tmp_path / "latents", chunk=chunk, device="cpu")
    clip = make_clip_dataset(str(tmp_path / "latents"), 6, fields=("frames", "actions", "latents"))[0, 0]
    assert clip["latents"].dtype == stored
    batch = collate_clips([clip, clip])
    assert batch.latents is not None and batch.latents.dtype == dtype
    full_clip = make_clip_dataset(str(tmp_path / "latents"), 11, fields=("frames", "latents"))[0, 0]
    with torch.no_grad():
        expected = network.encode(frames_to_float(torch.from_numpy(full_clip["frames"].copy())[None]))[0]
    torch.testing.assert_close(collate_clips([full_clip]).latents[0], expected, rtol=1e-3, atol=1e-3)


def test_the_whole_posterior_is_stored_for_vector_latents(shards, tmp_path):
    network = FrameVAE((16, 16), latent_size=6, widths=[8, 8]).eval()
    save_component(network, tmp_path / "tokenizer")
    encode_shards(shards, tmp_path / "tokenizer", tmp_path / "latents", chunk=4, device="cpu")
    clip = make_clip_dataset(str(tmp_path / "latents"), 11, fields=("frames", "latents", "latents_std"))[0, 0]
    batch = collate_clips([clip])
    with torch.no_grad():
        expected = network.posterior(frames_to_float(batch.frames))
    assert batch.latents_std.dtype == torch.float32
    torch.testing.assert_close(batch.latents, expected.mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(batch.latents_std, expected.std, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("actions", [True, False])
def test_the_next_command_names_the_fields_that_the_shards_have(actions, tmp_path, capsys):
    with ShardWriter(tmp_path / "data" / "shard-000000.tar") as writer:
        frames = np.zeros((3, 16, 16, 3), np.uint8)
        writer.write("a", Episode(frames, np.zeros(3, np.int64) if actions else None), raw=True)
    save_component(PixelTokenizer((16, 16), 4), tmp_path / "t")
    encode_shards(str(tmp_path / "data"), tmp_path / "t", tmp_path / "latents", device="cpu")
    fields = "[frames, actions, latents]" if actions else "[frames, latents]"
    assert capsys.readouterr().out.endswith(f"--tokenizer {tmp_path / 't'} --data.fields '{fields}'\n")


def test_latents_of_different_tokenizers_are_not_mixed(shards, tmp_path):
    for name, std in (("one", 0.5), ("other", 0.4)):
        save_component(PixelTokenizer((16, 16), 4, pixel_std=std), tmp_path / name)
    encode_shards(shards, tmp_path / "one", tmp_path / "latents", device="cpu")
    encode_shards(shards, tmp_path / "one", tmp_path / "latents", device="cpu")
    with pytest.raises(ValueError, match="another tokenizer"):
        encode_shards(shards, tmp_path / "other", tmp_path / "latents", device="cpu")


def test_a_shard_that_has_changed_is_encoded_again(tmp_path):
    save_component(PixelTokenizer((16, 16), 4), tmp_path / "tokenizer")

    def encoded(length):
        with ShardWriter(tmp_path / "data" / "shard-000000.tar") as writer:
            writer.write("a", Episode(np.zeros((length, 16, 16, 3), np.uint8)))
        encode_shards(str(tmp_path / "data"), tmp_path / "tokenizer", tmp_path / "latents", device="cpu")
        return load_shard_index(str(tmp_path / "latents" / "shard-000000.tar")).episodes[0].frames

    assert [encoded(length) for length in (4, 9, 9)] == [4, 9, 9]
    with pytest.raises(ValueError, match="is the folder of the shards to encode"):
        encode_shards(str(tmp_path / "data"), tmp_path / "tokenizer", tmp_path / "data", device="cpu")


def test_a_fingerprint_depends_on_every_weight_and_not_on_the_path(tmp_path):
    network = tokenizer()
    save_component(network, tmp_path / "tokenizer")
    assert tokenizer_fingerprint(load_tokenizer(tmp_path)) == tokenizer_fingerprint(network)
    fingerprints = {tokenizer_fingerprint(network)}
    for weight in network.parameters():
        with torch.no_grad():
            weight.view(-1)[0] += 1e-3
        fingerprints.add(tokenizer_fingerprint(network))
    assert len(fingerprints) == 1 + len(list(network.parameters()))


def test_a_missing_tokenizer_is_an_error(shards, tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):
        encode_shards(shards, tmp_path / "nothing", tmp_path / "latents", device="cpu")


def test_a_diffusers_autoencoder_uses_the_frame_size_of_the_shards(shards, tmp_path):
    diffusers.AutoencoderKLWan(**DIFFUSERS_VAES["AutoencoderKLWan"]).save_pretrained(tmp_path / "pipeline" / "vae")
    encode_shards(shards, tmp_path / "pipeline", tmp_path / "latents", chunk=4, device="cpu")
    clip = make_clip_dataset(str(tmp_path / "latents"), 5, fields=("latents",))[0, 0]
    assert clip["latents"].shape == (3, 4, 4, 4) and np.isfinite(clip["latents"]).all()  # 1 + 2 x 2 frames


@pytest.mark.parametrize("keep_video", [True, False])
def test_latents_of_several_frames_keep_the_actions_of_every_frame(keep_video, tmp_path):
    """Clips start at whole latents; actions, rewards and the end are those of the frames that latents hold."""
    k, frames = 4, 4 * 6 + 3  # the last two frames fill no latent
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (frames, 8, 8, 3), dtype=np.uint8)
    video[:, 0, 0, 0] = np.arange(frames)
    count = np.arange(frames)
    with ShardWriter(tmp_path / "data" / "shard-000000.tar") as writer:
        episode = Episode(video, count, count.astype(np.float32), terminated=True, truncated=False)
        writer.write("a", episode, raw=True)
    network = CausalVAE((8, 8), None, 4, k, patch_size=2, widths=[8], depths=[1]).eval()
    save_component(network, tmp_path / "tokenizer")
    encode_shards(
        str(tmp_path / "data"),
        tmp_path / "tokenizer",
        tmp_path / "latents",
        keep_video=keep_video,
        chunk=5,
        device="cpu",
    )
    entry = load_shard_index(str(tmp_path / "latents" / "shard-000000.tar")).episodes[0]
    assert (entry.frames, entry.frames_per_latent) == (frames, k)
    with torch.no_grad():
        expected = network.encode(frames_to_float(torch.from_numpy(video[None, : 1 + 6 * k])))[0]
    fields = ("actions", "rewards", "latents", "terminated", *(("frames",) if keep_video else ()))
    clips = make_clip_dataset(str(tmp_path / "latents"), 1 + 2 * k, fields=fields)
    starts, ends = set(), 0
    for epoch in range(12):
        for i in range(len(clips)):
            start = clips.order.address(epoch, i).start
            clip = clips[epoch, i]
            starts.add(start)
            assert start % k == 0
            torch.testing.assert_close(
                torch.from_numpy(clip["latents"].copy()).float(),
                expected[start // k : start // k + 3],
                rtol=1e-3,
                atol=1e-2,
            )
            rest = count[start : start + 3 * k]  # the actions after each of three latents; after the end, none
            after = (0, 3 * k - len(rest))
            assert np.array_equal(clip["actions"], np.pad(rest, after))
            rewards = np.pad(rest.astype(np.float32), after, constant_values=np.nan)
            assert np.array_equal(clip["rewards"], rewards, equal_nan=True)
            assert clip["terminated"].tolist() == [start + j == frames - 1 for j in range(3 * k)]
            ends += clip["terminated"].any()
            if keep_video:
                assert clip["frames"][:, 0, 0, 0].tolist() == list(range(start, start + 1 + 2 * k))
    assert starts == {0, 4, 12, 16} and ends  # two clips of three latents each, at an offset of 0 or 1 latent


def test_clips_of_pixels_for_latents_of_several_frames_start_anywhere(shards):
    clips = make_clip_dataset(shards, 5, fields=("frames", "actions"), frames_per_latent=4)
    starts = set()
    for epoch in range(20):
        address = clips.order.address(epoch, 0)
        clip = clips[epoch, 0]
        assert clip["frames"].shape[0] == 5 and clip["actions"].shape == (8,)
        starts.add(address.start)
    assert len(starts) > 3
    with pytest.raises(ValueError, match=r"latents of 4 frames need clips of 1 \+ 4 n frames.*such as 5 or 9"):
        make_clip_dataset(shards, 6, frames_per_latent=4)
