"""The Dreamer 4 pipeline from the command line: a world, agent tokens finetuned on it, and a bundle with a policy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import vwm
from vwm.cli.main import main
from vwm.data.episode import Episode
from vwm.data.shards import ShardWriter

CONFIGS = Path(__file__).parents[2] / "configs" / "dit"
TINY = ["--threads", "1", "--trainer.precision", "32-true", "--trainer.max_steps", "2", "--samples.every", "2"]
TINY += ["--trainer.val_check_interval", "2", "--trainer.limit_val_batches", "1", "--trainer.log_every_n_steps", "1"]
DATA = ["--data.init_args.workers", "0", "--data.init_args.batch_size", "2", "--data.init_args.clip_length", "4"]
DATA += ["--data.init_args.val_fraction", "0.5"]
INIT = "--model.init_args."
TOKENIZER = [f"{INIT}tokenizer.init_args.image_size", "[16,16]", f"{INIT}tokenizer.init_args.patch_size", "4"]
SMALL = {"grid": "[4,4]", "channels": 48, "width": 24, "depth": 2, "heads": 2, "window": 3}
DYNAMICS = [part for name, value in SMALL.items() for part in (f"{INIT}dynamics.init_args.{name}", str(value))]
HEADS = [f"{INIT}outcomes.init_args.width", "24", f"{INIT}outcomes.init_args.hidden", "16"]
POLICY = [f"{INIT}policy.init_args.width", "24", f"{INIT}policy.init_args.hidden", "16"]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory) -> Path:
    """Record, fit, export, finetune with agent tokens of two tasks, and export for one through the command line."""
    out = tmp_path_factory.mktemp("made")
    rng, data = np.random.default_rng(0), str(out / "data")
    for name in ("data", "other"):
        (out / name).mkdir()
        with ShardWriter(out / name / "shard-000000.tar") as writer:
            for i in range(8):
                frames, actions = rng.integers(0, 256, (9, 16, 16, 3), dtype=np.uint8), rng.integers(0, 3, 9)
                writer.write(f"episode-{i}", Episode(frames, actions, (actions == 1).astype(np.float32)))
    common = ["--data.init_args.path", data, *DYNAMICS, *HEADS, *TINY, *DATA]
    main(["fit", "-c", str(CONFIGS / "freeway_small.yaml"), "--run", str(out / "first"), *TOKENIZER, *common])
    world = str(out / "world")
    main(["export", str(out / "first"), "-o", world, "--starts", "3", "--sampling-steps", "2"])
    pretrained = [f"{INIT}pretrained", world, f"{INIT}tokenizer", world, *POLICY]
    pretrained += [f"{INIT}dynamics.init_args.num_tasks", "2", "--data.init_args.path", f"[{data},{out / 'other'}]"]
    pretrained += ["--data.init_args.fields", "[frames,actions,rewards,terminated,task]"]
    main(["fit", "-c", str(CONFIGS / "freeway_agent.yaml"), "--run", str(out / "second"), *common, *pretrained])
    of_task = ["--starts", "3", "--sampling-steps", "2", "--task", "1"]
    main(["export", str(out / "second"), "-o", str(out / "agent_world"), *of_task])
    return out


def test_agent_finetuning_starts_from_the_world_weights_and_logs_every_loss(artifacts):
    header, *rows = (artifacts / "second" / "metrics" / "train.csv").read_text().splitlines()
    for name in ("dynamics", "reward", "end", "policy", "future_rewards", "next_action"):
        assert f"{name}_loss" in header.split(",")
    assert rows
    before, after = (vwm.load(artifacts / name, "cpu").dynamics.state_dict() for name in ("world", "agent_world"))
    assert set(after) - set(before) == {"agents", "tasks"} and after["tasks"].abs().min() > 0
    # Two training steps change the weights little; those of another world would differ much.
    assert (before["embed.weight"] - after["embed.weight"]).norm() < 0.5 * before["embed.weight"].norm()


def test_the_policy_of_the_bundle_acts_on_observed_frames(artifacts):
    world = vwm.load(artifacts / "agent_world", "cpu")
    assert world.sampling.task == 1 and world.policy is not None
    assert world.outcomes is not None and world.starts is not None
    state, frame = world.reset(world.starts, seed=0)
    for _ in range(4):
        with torch.no_grad():
            logits = world.policy.policy(world.features(state))
        assert logits.shape == (3, 3) and logits.isfinite().all()
        action = torch.distributions.Categorical(logits=logits).sample()
        state, out = world.step(world.observe(state, action, frame), action)
        assert out.reward.isfinite().all()
    assert not torch.equal(world.features(state)[0], world.features(state)[1])
