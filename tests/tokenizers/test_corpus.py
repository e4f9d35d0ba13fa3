"""`vwm ingest` with models: latents equal to those of `vwm encode`, embeddings and captions next to the frames."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import randomize, tokenizer

from vwm.core.components import save_component
from vwm.core.tokenizer import VideoTokenizer
from vwm.data import shard_ingest
from vwm.data.video_encoding import write_video
from vwm.tokenizers.causal_vae import CausalVAE
from vwm.tokenizers.corpus import ingest_videos
from vwm.tokenizers.corpus_models import CorpusModels
from vwm.tokenizers.frame_vae import FrameVAE
from vwm.tokenizers.shard_encoding import encode_shards


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos, of which two are equal."""
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for name, seed in (("a", 1), ("b", 2), ("c", 1)):
        rng = np.random.default_rng(seed)
        small = rng.integers(0, 256, (10, 4, 4, 3), dtype=np.uint8)
        write_video(folder / f"{name}.mp4", small.repeat(8, 1).repeat(8, 2), fps=10)
    return folder


def ingest(source: Path, out: Path, **options: Any) -> None:
    ingest_videos(source, out, **{"size": 16, "videos_per_shard": 2, "workers": 0} | options)


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in [*folder.glob("*.tar"), *folder.glob("*.index.json")]}


@pytest.mark.parametrize("kind", ["tokens", "posterior", "two frames a latent"])
def test_latents_of_an_ingest_are_those_of_encode_in_every_byte(kind, videos, tmp_path, capsys):
    torch.manual_seed(0)
    network: VideoTokenizer = {
        "tokens": tokenizer,
        "posterior": lambda: FrameVAE((16, 16), latent_size=6, widths=[8, 8]),
        "two frames a latent": lambda: randomize(CausalVAE((16, 16), None, 4, 2, patch_size=4, widths=[8], depths=[1])),
    }[kind]()
    save_component(network.eval(), tmp_path / "tokenizer")
    settings: dict[str, Any] = {"remove": ["duplicates"]} if kind == "tokens" else {}
    ingest(videos, tmp_path / "plain", **settings)
    encode_shards(str(tmp_path / "plain"), tmp_path / "tokenizer", tmp_path / "encoded", device="cpu")
    ingest(videos, tmp_path / "whole", models=CorpusModels(tokenizer=tmp_path / "tokenizer"), **settings)
    assert tars(tmp_path / "whole") == tars(tmp_path / "encoded")
    assert len(tars(tmp_path / "whole")) == (2 if kind == "tokens" else 4)
    fingerprints = [
        json.loads((tmp_path / x / "encoding.json").read_text())["fingerprint"] for x in ("whole", "encoded")
    ]
    assert fingerprints[0] == fingerprints[1]
    assert not (tmp_path / "whole" / "staging").exists()
    assert capsys.readouterr().out.endswith(
        f"vwm fit -c CONFIG --data {tmp_path / 'whole'} --tokenizer {tmp_path / 'tokenizer'} "
        "--data.fields '[frames, latents]'\n"
    )


def test_an_ingest_with_a_tokenizer_that_is_killed_between_shards_gives_the_same_bytes(videos, tmp_path, monkeypatch):
    save_component(tokenizer().eval(), tmp_path / "tokenizer")
    models, out = CorpusModels(tokenizer=tmp_path / "tokenizer"), tmp_path / "out"
    publish, moments = shard_ingest.publish_shard, []

    def copying(*arguments: Any) -> Any:
        published = publish(*arguments)
        moments.append(shutil.copytree(out, tmp_path / f"moment{len(moments)}"))  # the manifest does not know it yet
        return published

    with monkeypatch.context() as patch:
        patch.setattr(shard_ingest, "publish_shard", copying)
        ingest(videos, out, models=models)
    assert len(moments) == 2
    for moment in moments:
        ingest(videos, moment, models=models)
        assert tars(moment) == tars(out)
        assert not (moment / "staging").exists()


def test_a_tokenizer_that_does_not_fit_is_refused_before_a_video_is_decoded(videos, tmp_path):
    save_component(tokenizer().eval(), tmp_path / "tokenizer")
    models = CorpusModels(tokenizer=tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=r"encodes frames of 16x16 pixels, not of 32x32: give --height 16 --width 16"):
        ingest(videos, tmp_path / "out", size=32, models=models)
    with pytest.raises(ValueError, match="requires frames of one size: give --size"):
        ingest(videos, tmp_path / "out", size=None, models=models)
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):
        ingest(videos, tmp_path / "out", models=CorpusModels(tokenizer=tmp_path / "nothing"))
    assert not (tmp_path / "out").exists()
