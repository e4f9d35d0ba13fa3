"""vwm import-world: published files become a bundle that every command opens."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from published_worlds import oasis_layout
from safetensors.torch import save_file

from vwm.cli.zoo import describe_bundle
from vwm.data.video_encoding import encode_video
from vwm.models.oasis.network import OasisDiT
from vwm.models.oasis.vit_vae import OasisViTVAE
from vwm.train.import_world import import_world, read_start_files
from vwm.worlds.bundle import load_simulator


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Oasis's files for its real frames, with narrow networks."""
    folder = tmp_path_factory.mktemp("oasis")
    tokenizer = OasisViTVAE(channels=2, width=16, heads=1, encoder_depth=1, decoder_depth=1)
    autoencoder, transformer = oasis_layout(tokenizer, OasisDiT(tokenizer.grid, 2, 2, width=16, depth=1, heads=1))
    save_file(autoencoder, folder / "vit-l-20.safetensors")
    torch.save(transformer, folder / "oasis500m.pt")
    return folder


def test_published_files_become_a_bundle_with_their_license(files: Path, tmp_path: Path, capsys):
    picture = np.full((90, 160, 3), (10, 200, 30), np.uint8)
    Image.fromarray(picture).save(tmp_path / "first.png")
    import_world("oasis", files, tmp_path / "world", starts=[str(tmp_path / "first.png")], title="Block world")
    printed = capsys.readouterr().out
    assert "license of the weights: mit" in printed and "vwm play" in printed
    world = load_simulator(tmp_path / "world", "cpu")
    assert (world.spec.title, world.spec.fps, world.spec.context_frames) == ("Block world", 20.0, 1)
    assert world.starts.shape == (1, 1, 360, 640, 3) and (world.starts == torch.from_numpy(picture[:1, :1])).all()
    assert world.dynamics.window == 32 and world.sampling.steps == 10
    assert describe_bundle("world", tmp_path / "world")["license"] == "mit"
    card = (tmp_path / "world" / "README.md").read_text()
    assert "Etched/oasis-500m" in card and "keys.forward" in card


def test_what_cannot_be_imported_is_named(files: Path, tmp_path: Path):
    for kind, variant, problem in (
        ("oases", "", r"no published world 'oases'.* oasis .*oasis500m\.safetensors"),
        ("genie", "", "no published world 'genie'"),
        ("oasis", "forest", "no variant 'forest'"),
    ):
        with pytest.raises(ValueError, match=problem):
            import_world(kind, files, tmp_path / "world", variant)
    with pytest.raises(ValueError, match="no image or video to start from"):
        import_world("oasis", files, tmp_path / "world", starts=[str(files)])
    assert not (tmp_path / "world").exists()


def test_starts_are_images_and_first_frames_of_videos(tmp_path: Path):
    frames = np.stack([np.full((32, 32, 3), 60 * number, np.uint8) for number in range(4)])
    (tmp_path / "clip.mp4").write_bytes(encode_video(frames, 10))
    starts = read_start_files([tmp_path], frames=3, image_size=(8, 16))
    assert starts.shape == (1, 3, 8, 16, 3)
    assert (starts.float().mean((0, 2, 3, 4)) - torch.tensor([0.0, 60.0, 120.0])).abs().max() < 6
    Image.fromarray(frames[0]).save(tmp_path / "one.png")
    with pytest.raises(ValueError, match=r"one\.png is one frame, and a context has 3"):
        read_start_files([tmp_path], frames=3, image_size=(8, 16))
    (tmp_path / "one.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"one\.png: cannot be read as an image"):
        read_start_files([tmp_path / "one.png"], frames=1, image_size=(8, 16))
