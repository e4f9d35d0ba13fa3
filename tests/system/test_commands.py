"""The commands from ingest to eval, on a folder of varied and partly broken videos."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

import vwm
from vwm.cli.main import COMMANDS, main

REPOSITORY = Path(__file__).parents[2]
TINY = ["--threads", "1", "--trainer.precision", "32-true", "--trainer.val_check_interval", "2", "--ema.decay", "0.9"]
TINY += ["--trainer.log_every_n_steps", "1"]
SMALL_DATA = [
    "--data.init_args.workers",
    "0",
    "--data.init_args.batch_size",
    "2",
    "--data.init_args.val_fraction",
    "0.2",
]
NETWORK = "--model.init_args.tokenizer.init_args"


def write_clip(path: Path, frames: int, height: int, width: int, uneven: bool = False) -> None:
    """Write a video of a square that moves over noise, with uneven time stamps if ``uneven``."""
    rng = np.random.default_rng(len(path.name))
    background = rng.integers(0, 80, (height, width, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264" if path.suffix == ".mp4" else "libvpx", rate=20)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p" if width % 2 == 0 else "yuv444p"
        stream.codec_context.time_base = Fraction(1, 1000)
        timestamp = 0
        for i in range(frames):
            image = background.copy()
            image[10:20, (3 * i) % (width - 10) : (3 * i) % (width - 10) + 10] = 255
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = timestamp, Fraction(1, 1000)
            timestamp += 50 if not uneven or i % 3 else 130
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def video_folder(tmp_path_factory) -> Path:
    """Valid clips of various sizes and frame rates, a truncated one, a text file, and an empty file."""
    video_folder = tmp_path_factory.mktemp("videos")
    for i in range(6):
        write_clip(video_folder / f"clip.{i}.mp4", 40, 48 + 2 * i, 64)
    write_clip(video_folder / "odd.mp4", 30, 51, 67)
    write_clip(video_folder / "uneven.mp4", 40, 48, 64, uneven=True)
    write_clip(video_folder / "whole.mp4", 60, 48, 64)
    (video_folder / "truncated.mp4").write_bytes((video_folder / "whole.mp4").read_bytes()[:1500])
    (video_folder / "not a video.mp4").write_text("this is a shopping list")
    (video_folder / "no frames.mp4").write_bytes(b"")
    return video_folder


@pytest.fixture(scope="module")
def artifacts(video_folder, tmp_path_factory):
    """Ingest, fit, export, encode, fit and export through the command line; later tests check these files."""
    out = tmp_path_factory.mktemp("made")
    data, tokens = str(out / "data"), str(out / "tokens")
    main(
        ["ingest", str(video_folder), data, "--size", "32", "--fps", "10", "--workers", "0", "--videos_per_shard", "3"]
    )
    main(
        ["fit", "-c", str(REPOSITORY / "configs/tokenizer/coinrun_small.yaml"), "--run", str(out / "tokenizer")]
        + [f"{NETWORK}.image_size", "[32,32]", f"{NETWORK}.width", "32", f"{NETWORK}.depth", "1"]
        + [
            f"{NETWORK}.codebook",
            "[4,3,3]",
            "--trainer.max_steps",
            "4",
            "--samples.every",
            "2",
            "--checkpoint.every",
            "2",
        ]
        + ["--data.init_args.path", data, *SMALL_DATA, *TINY]
    )
    main(["export", str(out / "tokenizer"), "-o", str(out / "tokenizer_bundle")])
    main(["encode", data, "--tokenizer", str(out / "tokenizer_bundle"), "--out", tokens])
    fit_genie(out, "coinrun_small", "genie")
    main(["export", str(out / "genie"), "-o", str(out / "bundle"), "--starts", "3", "--sampling-steps", "2"])
    return out


def fit_genie(out: Path, config: str, run: str) -> None:
    """Fit a tiny Genie on the encoded videos."""
    small = {"width": 24, "depth": 1, "codebook_size": 36, "codebook_levels": [4, 3, 3], "tokens_per_frame": 16}
    main(
        ["fit", "-c", str(REPOSITORY / f"configs/genie/{config}.yaml"), "--run", str(out / run)]
        + ["--model.init_args.tokenizer", str(out / "tokenizer_bundle")]
        + network_arguments("--model.init_args.latent_action", image_size="[32,32]", width=32, depth=1)
        + network_arguments("--model.init_args.dynamics", **small)
        + ["--trainer.max_steps", "4", "--samples.every", "2", "--data.init_args.fields", "[frames,latents]"]
        + ["--data.init_args.path", str(out / "tokens"), *SMALL_DATA, *TINY]
    )


def network_arguments(network: str, **settings: object) -> list[str]:
    """Return the arguments that set a network's sizes."""
    return [part for name, value in settings.items() for part in (f"{network}.init_args.{name}", str(value))]


@pytest.fixture(scope="module")
def car_racing(tmp_path_factory) -> Path:
    """Record, fit a VAE, encode, fit a DiT and export: an environment with continuous actions and rewards."""
    pytest.importorskip("Box2D", reason="Box2D is not installed")
    out = tmp_path_factory.mktemp("driven")
    data, latents = str(out / "data"), str(out / "latents")
    record = [
        "--policy",
        "road",
        "--frame_skip",
        "4",
        "--skip_first_frames",
        "13",
        "--max_episode_frames",
        "14",
        "--size",
        "32",
    ]
    main(["record", "CarRacing-v3", data, "--frames", "84", "--workers", "0", *record])
    common = [*SMALL_DATA, *TINY, "--trainer.max_steps", "4", "--samples.every", "2"]
    sizes = {"image_size": "[32,32]", "latent_channels": 4, "widths": "[8,8]", "depths": "[1,1]"}
    main(
        ["fit", "-c", str(REPOSITORY / "configs/vae/carracing_small.yaml"), "--run", str(out / "vae")]
        + [*network_arguments("--model.init_args.tokenizer", **sizes), "--data.init_args.path", data, *common]
    )
    main(["export", str(out / "vae"), "-o", str(out / "vae_bundle")])
    main(["encode", data, "--tokenizer", str(out / "vae_bundle"), "--out", latents, "--no-keep-video"])
    sizes = {"grid": "[4,4]", "channels": 4, "width": 24, "depth": 2, "heads": 2, "kv_heads": 1, "window": 4}
    heads = {"class_path": "vwm.nn.RewardTerminationHeads", "init_args": {"width": 24, "hidden": 16}}
    main(
        ["fit", "-c", str(REPOSITORY / "configs/dit/carracing_small.yaml"), "--run", str(out / "dit")]
        + [
            "--model.init_args.tokenizer",
            str(out / "vae_bundle"),
            *network_arguments("--model.init_args.dynamics", **sizes),
        ]
        + ["--model.init_args.outcomes", json.dumps(heads), "--data.init_args.clip_length", "6"]
        + ["--data.init_args.fields", "[latents,actions,rewards,terminated]"]
        + ["--data.init_args.path", latents, *common]
    )
    main(
        [
            "export",
            str(out / "dit"),
            "-o",
            str(out / "bundle"),
            "--data",
            data,
            "--starts",
            "3",
            "--sampling-steps",
            "2",
        ]
    )
    return out


def test_a_world_of_continuous_latent_actions_is_trained_and_evaluated(artifacts, tmp_path):
    fit_genie(artifacts, "coinrun_continuous", "genie_continuous")
    main(["export", str(artifacts / "genie_continuous"), "-o", str(tmp_path / "bundle"), "--sampling-steps", "2"])
    world = vwm.load(tmp_path / "bundle", "cpu")
    space = world.spec.actions
    assert (space.kind, space.size, space.latent) == ("continuous", 4, True) and any(space.rest)
    assert all(name.startswith(("scene", "change", "no", "not")) for name in space.names)
    few = ["--clips", "4", "--horizon", "2", "--batch_size", "4", "--videos", "0", "--drift-seconds", "0"]
    main(["eval", str(tmp_path / "bundle"), str(artifacts / "data"), "-o", str(tmp_path / "report"), *few])
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert np.isfinite([report["control"]["delta_psnr"]["mean"], report["control"]["shuffle_ratio"]]).all()
    assert report["latent_action"]["size"] == 4 and all(0 <= std <= 1 for std in report["latent_action"]["std"])
    state, frame = world.reset(world.starts[:1])
    clip = torch.stack((frame, world.step(state, torch.tensor([space.rest]))[1].frame), dim=1)
    inferred = world.infer_actions(clip)
    assert inferred.shape == (1, 1, 4) and inferred.abs().max() <= 1
    assert world.observe(state, inferred[:, 0], clip[:, 1]).latent.shape == state.latent.shape


def test_a_diffusion_world_is_evaluated(car_racing):
    assert {p.suffix for p in (car_racing / "dit" / "videos").iterdir()} == {".mp4", ".png"}
    main(
        ["eval", str(car_racing / "bundle"), str(car_racing / "data"), "--out", str(car_racing / "report")]
        + ["--clips", "4", "--horizon", "6", "--batch_size", "4", "--videos", "1", "--drift-seconds", "1"]
    )
    report = json.loads((car_racing / "report" / "report.json").read_text())
    assert {"index.html", "rollouts.png", "rollout_00.mp4"} <= {p.name for p in (car_racing / "report").iterdir()}
    assert len(report["rollout"]["psnr"]) == 6 and all(x > 0 for x in report["rollout"]["psnr"])
    assert report["codebook"] is None and report["latent_action"] is None
    assert report["control"]["shuffle_cost"]["loss"] == "squared error" and report["control"]["shuffle_ratio"] > 0
    assert report["tokenizer"]["psnr"] > 10 and report["play"]["sampling_steps"] == 2


def test_a_bundle_exported_from_shards_without_video_has_no_starts(car_racing, tmp_path, capsys):
    main(["export", str(car_racing / "dit"), "-o", str(tmp_path / "bundle")])
    assert "holds no video" in capsys.readouterr().out
    assert not (tmp_path / "bundle" / "starts").exists()
    index = json.loads((tmp_path / "bundle" / "model_index.json").read_text())
    assert index["settings"]["actions"]["names"] == ["steer", "gas", "brake"]


def test_a_diffusion_bundle_steps_with_continuous_actions(car_racing):
    import torch

    import vwm

    assert {"tokenizer", "dynamics", "outcomes", "starts"} <= {p.name for p in (car_racing / "bundle").iterdir()}
    world = vwm.load(car_racing / "bundle", device="cpu")
    assert world.spec.actions.kind == "continuous" and world.spec.actions.names == ("steer", "gas", "brake")
    assert world.spec.actions.rest == (0.0, -1.0, -1.0) and world.spec.fps == 12.5
    assert abs(np.mean(world.tokenizer.config.latents_std) - 1) > 1e-3  # measured during the export
    state, _ = world.reset(world.starts, seed=0)
    _, out = world.step(state, torch.tensor([[-1.0, 0.0, -1.0], [0.0, 1.0, -1.0], [1.0, -1.0, 1.0]]))
    assert out.frame.shape == (3, 32, 32, 3) and out.latent.shape == (3, 4, 4, 4)
    assert out.reward.shape == (3,) and out.reward.isfinite().all()


def test_broken_videos_are_reported_and_the_others_are_ingested(video_folder, tmp_path, capsys):
    main(["ingest", str(video_folder), str(tmp_path / "data"), "--size", "32", "--workers", "0"])
    printed = capsys.readouterr().out
    assert "not a video.mp4" in printed and "no frames.mp4" in printed and "truncated.mp4" in printed
    main(["inspect", str(tmp_path / "data"), "--sheet", str(tmp_path / "sheet.png")])
    assert (tmp_path / "sheet.png").stat().st_size > 1000 and "32x32" in capsys.readouterr().out.replace(" ", "")


def test_a_run_writes_its_files(artifacts):
    run = artifacts / "genie"
    assert {"config.yaml", "checkpoints", "metrics", "videos"} <= {p.name for p in run.iterdir()}
    assert {p.suffix for p in (run / "videos").iterdir()} == {".mp4", ".png"}
    assert "lam_loss" in (run / "metrics" / "train.csv").read_text().splitlines()[0].split(",")


def test_encoded_shards_contain_the_tokens_of_the_tokenizer(artifacts):
    import torch

    from vwm.core.frames import frames_to_float
    from vwm.data.clip_folders import make_clip_dataset
    from vwm.tokenizers.loading import load_tokenizer

    clip = make_clip_dataset(str(artifacts / "tokens"), 30, fields=("frames", "latents"), shuffle=False)[0, 0]
    tokens = load_tokenizer(artifacts / "tokenizer_bundle").encode(
        frames_to_float(torch.from_numpy(clip["frames"].copy())[None])
    )
    assert np.array_equal(tokens[0].numpy(), clip["latents"])


def test_eval_writes_a_report(artifacts):
    main(
        ["eval", str(artifacts / "bundle"), str(artifacts / "data"), "--out", str(artifacts / "report")]
        + ["--clips", "4", "--horizon", "4", "--batch_size", "2", "--videos", "1"]
    )
    report = json.loads((artifacts / "report" / "report.json").read_text())
    assert len(report["rollout"]["psnr"]) == len(report["rollout"]["psnr_copy_last"]) == 4
    for part, key in (
        ("tokenizer", "psnr"),
        ("tokenizer", "ssim"),
        ("control", "delta_psnr"),
        ("control", "shuffle_ratio"),
        ("codebook", "perplexity"),
        ("play", "step_ms"),
    ):
        assert report[part][key] is not None


def test_an_exported_bundle_loads_and_steps(artifacts):
    import torch

    import vwm

    world = vwm.load(artifacts / "bundle", device="cpu")
    assert world.spec.actions.latent and world.spec.fps == 10 and world.starts.shape == (3, 4, 32, 32, 3)
    state, _ = world.reset(world.starts, seed=0)
    _, out = world.step(state, torch.tensor([0, 1, 7]))
    assert out.frame.shape == (3, 32, 32, 3)


def test_repeating_finished_commands_rewrites_nothing(artifacts, video_folder, capsys):
    main(
        [
            "ingest",
            str(video_folder),
            str(artifacts / "data"),
            "--size",
            "32",
            "--fps",
            "10",
            "--workers",
            "0",
            "--videos_per_shard",
            "3",
        ]
    )
    before = sorted((p.name, p.stat().st_mtime_ns) for p in (artifacts / "tokens").glob("*.tar"))
    main(
        [
            "encode",
            str(artifacts / "data"),
            "--tokenizer",
            str(artifacts / "tokenizer_bundle"),
            "--out",
            str(artifacts / "tokens"),
        ]
    )
    assert before == sorted((p.name, p.stat().st_mtime_ns) for p in (artifacts / "tokens").glob("*.tar"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["export", "nowhere"], "is no finished run"),
        (["play", "nowhere"], "is no bundle"),
        (["eval", "nowhere", "nothing"], "is no bundle"),
        (["inspect", "nowhere"], "vwm record"),
        (["encode", "nowhere", "--tokenizer", "nothing"], "vwm record"),
        (["ingest", "nowhere", "out"], "nowhere"),
        (["record", "procgen:nogame", "out", "--workers", "0"], "nogame"),
        (
            ["record", "CartPole-v1", "file/out", "--workers", "0"],
            "file is a file, not a folder; choose another one",
        ),
        (["ingest", ".", "file/out", "--workers", "0"], "has no videos"),
        (["eval", "two_rooms", ".", "-o", "file/out"], "file is a file, not a folder; choose another one"),
        (["eval", "two_rooms", ".", "--device", "mps:0"], "there is no device mps:0"),
    ],
)
def test_errors_name_the_cause_or_the_remedy(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 1 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["eval", "two_rooms", ".", "--seed", "-1"], "seed must be 0 or more and at most 9223372036854775808, got -1"),
        (["eval", "two_rooms", ".", "--videos", "-1"], "videos must be 0 or more, got -1"),
        (["record", "CartPole-v1", "out", "--size", "1000000"], "size must be 1 or more and at most 8192, got 1000000"),
        (["ingest", ".", "out", "--size", "100000"], "size must be 1 or more and at most 8192, got 100000"),
        (["ingest", ".", "out", "--timeout", "nan"], "timeout must be 0 or more, got nan"),
        (["ingest", ".", "out", "--fps", "1e9"], "fps must be above 0 and at most 1000, got 1000000000.0"),
        (["encode", ".", "--tokenizer", "coinrun", "--chunk", "0"], "chunk must be 1 or more, got 0"),
        (["export", ".", "--starts", "0"], "starts must be 1 or more, got 0"),
        (["export", ".", "--context", "0"], "context must be 1 or more, got 0"),
        (["demo", "--minutes", "nan"], "minutes must be above 0, got nan"),
    ],
)
def test_options_out_of_range_are_named_before_anything_is_read(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_every_command_has_help_with_examples(capsys):
    for name in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            main([*name.split(), "--help"])
        printed = capsys.readouterr().out
        assert stop.value.code == 0 and "examples" in printed and "--" in printed
    main([])
    overview = capsys.readouterr().out
    assert all(name in overview for name in COMMANDS)
    for argv in (["agent"], ["agent", "--help"]):
        main(argv)
        printed = capsys.readouterr().out
        assert all((name in printed) == name.startswith("agent ") for name in COMMANDS if " " in name)
