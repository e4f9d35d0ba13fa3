"""Benchmark TD-MPC2's plan and update against the official code, with equal weights, noise, shapes and settings.

    python tools/bench_tdmpc2.py --tdmpc2 PATH --size 5M
    python tools/bench_tdmpc2.py --tdmpc2 PATH --size 1M --threads 2 --out figures.json

PATH is a checkout of github.com/nicklashansen/tdmpc2 (MIT), which requires tensordict, too (at most 0.8 on a CPU). Its
``TDMPC2._plan`` and ``TDMPC2._update`` run unchanged, except for the device, which they fix. Both sides are first
checked for equal results; then they alternate in one process. Compare CPU seconds if other programs are running.

Legend: b batch, h steps of the horizon, k size of an observation, a dimensions of an action.
"""

from __future__ import annotations

import argparse
import sys
import types
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from timing import Times, medians, race, save
from torch import Tensor, nn

from vwm.core.captured_steps import make_capture_backend
from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.models.tdmpc2.layers import TDMPC2MLP
from vwm.rl.agent import ReplayBatch
from vwm.rl.algorithms.tdmpc2 import TDMPC2, TDMPC2NetworkConfig
from vwm.rl.algorithms.tdmpc2_planner import TDMPC2PlannerConfig, TDMPC2PlannerNoise

SIZES: dict[str, TDMPC2NetworkConfig] = {
    "pendulum": TDMPC2NetworkConfig(encoder_width=256, latent_size=64, width=128, num_q=2),
    "1M": TDMPC2NetworkConfig(encoder_width=256, latent_size=128, width=384, num_q=2),
    "5M": TDMPC2NetworkConfig(),
}
EPISODE = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tdmpc2", type=Path, required=True, help="a checkout of the official code")
    parser.add_argument("--size", choices=SIZES, default="5M", help="of the networks")
    parser.add_argument("--observation", type=int, default=24, help="size of an observation (walker-walk: 24)")
    parser.add_argument("--actions", type=int, default=6, help="dimensions of an action (walker-walk: 6)")
    parser.add_argument("--batch", type=int, default=256, help="pieces of an update")
    parser.add_argument("--samples", type=int, default=512, help="of a plan")
    parser.add_argument("--episodic", action="store_true", help="with a termination head")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--repeats", type=int, default=7, help="rounds in which the two take turns")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    planning = TDMPC2PlannerConfig(
        samples=options.samples, elites=min(64, options.samples), proposals=min(24, options.samples)
    )
    theirs = official(options, planning)
    ours = our_agent(theirs, options, planning)
    counts = (
        sum(p.numel() for p in theirs.model.parameters() if p.requires_grad),
        sum(p.numel() for p in ours.parameters() if p.requires_grad),
    )
    print(
        f"torch {torch.__version__}, {options.device}, {options.threads} threads, float32, medians of "
        f"{options.repeats} interleaved repeats\nboth: {options.size} {SIZES[options.size]}, {planning}, batch "
        f"{options.batch}, observation {options.observation}, actions {options.actions}, episodic {options.episodic}\n"
        f"parameters: tdmpc2 {counts[0]:,}, vwm {counts[1]:,}"
    )
    batch = synthetic(options, planning.horizon)
    check_equal_plans(theirs, ours, batch)
    check_equal_updates(theirs, ours, batch)
    figures = {
        "plan": race(
            {"tdmpc2": partial(plan_theirs, theirs, batch), "vwm": plan_ours(ours, batch)},
            options.repeats,
            options.device,
        ),
        "update": race(
            {"tdmpc2": partial(update_theirs, theirs, batch), "vwm": partial(ours.update, batch)},
            options.repeats,
            options.device,
        ),
    }
    table(figures, options)


# ------------------------------------------------------------------------------------------------- the official side


def official(options: argparse.Namespace, planning: TDMPC2PlannerConfig) -> Any:
    """Return its agent, with all weights random."""
    folder = options.tdmpc2 / "tdmpc2"
    if not (folder / "tdmpc2.py").is_file():
        raise SystemExit(f"--tdmpc2 {options.tdmpc2} holds no tdmpc2/tdmpc2.py")
    sys.path.insert(0, str(folder))
    warnings.simplefilter("ignore")
    load_elsewhere("common.scale", folder / "common/scale.py", options.device)
    module = load_elsewhere("tdmpc2", folder / "tdmpc2.py", options.device)
    size, a = SIZES[options.size], options.actions
    config = SimpleNamespace(
        multitask=False, episodic=options.episodic, obs="state", obs_shape={"state": (options.observation,)},
        action_dim=a, task_dim=0, latent_dim=size.latent_size, mlp_dim=size.width, enc_dim=size.encoder_width,
        num_enc_layers=size.encoder_layers, num_q=size.num_q, num_channels=32, simnorm_dim=8, dropout=0.01,
        num_bins=101, vmin=-10, vmax=10, bin_size=0.2, log_std_min=-10, log_std_max=2, entropy_coef=1e-4,
        lr=3e-4, enc_lr_scale=0.3, grad_clip_norm=20, tau=0.01, rho=0.5, consistency_coef=20, reward_coef=0.1,
        value_coef=0.1, termination_coef=1, discount_denom=5, discount_min=0.95, discount_max=0.995,
        episode_length=EPISODE, batch_size=options.batch, compile=False, mpc=True, iterations=planning.iterations,
        num_samples=planning.samples, num_elites=planning.elites, num_pi_trajs=planning.proposals,
        horizon=planning.horizon, min_std=planning.min_std, max_std=planning.max_std, temperature=planning.temperature,
    )  # fmt: skip
    agent = module.TDMPC2(config)
    with torch.no_grad():
        for p in agent.model.parameters():
            p.data.add_(torch.randn_like(p) * 0.02)
    agent.model.init()
    agent.model.eval()
    return agent


def load_elsewhere(name: str, path: Path, device: str) -> Any:
    """Load one of their modules for another device than it names (``capturable`` is for GPUs only)."""
    text = path.read_text().replace("cuda:0", device)
    if device == "cpu":
        text = text.replace("capturable=True", "capturable=False")
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(text, str(path), "exec"), module.__dict__)
    return module


def plan_theirs(agent: Any, batch: ReplayBatch) -> Tensor:
    with torch.no_grad():
        return agent._plan(batch.observation[:1, 0], t0=False, eval_mode=False)


def update_theirs(agent: Any, batch: ReplayBatch) -> dict[str, Tensor]:
    ended = batch.is_terminal[:, 1:, None].float()
    parts = (batch.observation, batch.action[:, :-1], batch.reward[:, 1:, None], ended)
    return agent._update(*(part.transpose(0, 1).contiguous() for part in parts))


# ----------------------------------------------------------------------------------------------------------- our side


def our_agent(theirs: Any, options: argparse.Namespace, planning: TDMPC2PlannerConfig) -> TDMPC2:
    """Return our agent with the official weights."""
    spaces = EnvSpaces(ObservationSpace.of_shape((options.observation,)), ActionSpace("continuous", options.actions))
    agent = TDMPC2(
        spaces, EPISODE, options.episodic, networks=SIZES[options.size], planning=planning, batch_size=options.batch
    ).to(options.device)
    agent.accelerate(make_capture_backend("auto", agent.device))
    assert abs(agent.discount - theirs.discount) < 1e-9
    model = theirs.model
    with torch.no_grad():
        copy_layers(model._encoder["state"], agent.world.encoder)
        copy_layers(model._dynamics, agent.world.dynamics)
        copy_layers(model._reward, agent.world.reward_head)
        copy_layers(model._pi, agent.policy.layers)
        if agent.world.termination_head is not None:
            copy_layers(model._termination, agent.world.termination_head)
        for ensemble, params in ((agent.critic, model._Qs.params), (agent.target_critic, model._target_Qs_params)):
            for name, members in (("0", ensemble.first), ("1", ensemble.second), ("2", ensemble.output)):
                members.weight.copy_(params[name, "weight"])
                members.bias.copy_(params[name, "bias"])
                if members.norm_weight is not None:
                    members.norm_weight.copy_(params[name, "ln", "weight"])
                    members.norm_bias.copy_(params[name, "ln", "bias"])
    return agent


def copy_layers(theirs: nn.Sequential, ours: TDMPC2MLP) -> None:
    for their, our in zip(theirs, ours.layers, strict=False):
        widths = [part.weight.shape[1] for part in our.input_projections]
        for weight, part in zip(their.weight.split(widths, dim=1), our.input_projections, strict=True):
            part.weight.copy_(weight)
        our.input_projections[0].bias.copy_(their.bias)
        our.norm.load_state_dict(their.ln.state_dict())
    if ours.output is not None:
        ours.output.load_state_dict(theirs[-1].state_dict())


def plan_ours(agent: TDMPC2, batch: ReplayBatch) -> Callable[[], Tensor]:
    carry, no = agent.init_carry(1), torch.zeros(1, dtype=torch.bool, device=agent.device)
    time_step = TimeStep(batch.observation[:1, 0], batch.reward[:1, 0], no, no, no)
    return lambda: agent.act(carry, time_step, explore=True).action


# ---------------------------------------------------------------------------------------------------------- both sides


def synthetic(options: argparse.Namespace, horizon: int) -> ReplayBatch:
    b, t = options.batch, horizon + 1
    no = torch.zeros(b, t, dtype=torch.bool)
    ended = (torch.rand(b, t) < 0.1) & options.episodic
    action = torch.rand(b, t, options.actions) * 2 - 1
    observation, places = torch.randn(b, t, options.observation), torch.zeros(b, t, dtype=torch.int64)
    batch = ReplayBatch(observation, 2 * torch.randn(b, t), no, no, ended, action, {}, places)
    return batch._replace(**{n: v.to(options.device) for n, v in batch._asdict().items() if isinstance(v, Tensor)})


def check_equal_plans(theirs: Any, ours: TDMPC2, batch: ReplayBatch) -> None:
    """Compare one plan of each from the same initial mean, with the noise drawn in the official order."""
    latent = ours.world.encode(batch.observation[:1, :1]).detach()
    planning, a, device = ours.planner.config, ours.spaces.actions.size, ours.device
    mean = torch.randn(planning.horizon, a, device=device).clamp(-1, 1)
    theirs._prev_mean.copy_(mean)
    torch.manual_seed(1)
    expected = plan_theirs(theirs, batch)
    torch.manual_seed(1)
    normal = partial(torch.randn, device=device)
    proposals = torch.stack([normal(planning.proposals, a) for _ in range(planning.horizon)], dim=1)[None]
    samples, final_actions, pairs = [], [], []
    for _ in range(planning.num_iterations(a)):
        samples.append(normal(planning.horizon, planning.samples - planning.proposals, a).transpose(0, 1)[None])
        final_actions.append(normal(planning.samples, a)[None])
        pairs.append(torch.randperm(ours.critic.num_members, device=device)[:2])
    elite = -torch.empty(1, planning.elites, device=device).exponential_().log()
    noise = TDMPC2PlannerNoise(
        proposals, torch.stack(samples), torch.stack(final_actions), torch.stack(pairs), elite, normal(1, a)
    )
    mean = torch.cat((mean[1:], torch.zeros_like(mean[:1])))[None]
    action, mean = ours.planner.plan(latent, mean, noise, explore=True)
    check_equal("plan: the action", expected, action[0])
    check_equal("plan: the mean", theirs._prev_mean, mean[0])


def check_equal_updates(theirs: Any, ours: TDMPC2, batch: ReplayBatch) -> None:
    """Compare two updates of each with the same noise and no dropout."""
    for part in [*theirs.model.modules(), *theirs.model._detach_Qs.modules()]:
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    dropout, ours.critic.dropout = ours.critic.dropout, 0.0
    noise, pair = ours._draw_action_noise, ours.critic.sample_member_pair
    shape = (*batch.action.shape[:2][::-1], batch.action.shape[-1])

    def like_theirs(latent: Tensor) -> Tensor:
        steps, a = latent.shape[1], shape[-1]
        return torch.randn(steps, len(latent), a, device=latent.device).transpose(0, 1)

    ours._draw_action_noise = like_theirs
    ours.critic.sample_member_pair = lambda: torch.randperm(ours.critic.num_members, device=ours.device)[:2]
    for step in range(2):
        torch.manual_seed(step)
        expected = update_theirs(theirs, batch)
        torch.manual_seed(step)
        logs = ours.update(batch).logs
        names = {"consistency_loss": "consistency_loss", "reward_loss": "reward_loss", "value_loss": "value_loss"}
        names |= {"grad_norm": "gradient_norm", "pi_loss": "policy_loss", "pi_scale": "scale"}
        names |= {"pi_scaled_entropy": "entropy"} | ({"termination_loss": "termination_loss"} if ours.episodic else {})
        for their, our in names.items():
            check_equal(f"update {step + 1}: {our}", expected[their].detach().cpu(), torch.tensor(logs[our]))
    ours._draw_action_noise, ours.critic.sample_member_pair, ours.critic.dropout = noise, pair, dropout
    for part in [*theirs.model.modules(), *theirs.model._detach_Qs.modules()]:
        if isinstance(part, nn.Dropout):
            part.p = dropout


def check_equal(name: str, theirs: Tensor, ours: Tensor) -> None:
    difference = float((theirs - ours).abs().max() / theirs.abs().max().clamp(min=1e-6))
    print(f"{name}: relative difference {difference:.0e}")
    if difference > 1e-3:
        raise SystemExit("the results differ, so their times cannot be compared")


def table(figures: dict[str, Times], options: argparse.Namespace) -> None:
    print("\n| | tdmpc2 ms (min to max) | vwm ms | tdmpc2 CPU ms | vwm CPU ms | times as fast (by CPU time) |")
    print("| --- | --- | --- | --- | --- | --- |")
    for what, sides in figures.items():
        cells, middle = [], medians(sides)
        for name, kinds in sides.items():
            ms = sorted(1e3 * seconds for seconds in kinds["clock"])
            cells.append(f"{1e3 * middle[name]['clock']:.1f} ({ms[0]:.1f} to {ms[-1]:.1f})")
        cells += [f"{1e3 * middle[name]['cpu']:.1f}" for name in sides]
        times = [middle["tdmpc2"][kind] / middle["vwm"][kind] for kind in ("clock", "cpu")]
        print(f"| {what} | {' | '.join(cells)} | {times[0]:.2f} ({times[1]:.2f}) |")
    settings = {k: str(v) for k, v in vars(options).items() if k not in ("tdmpc2", "out")}
    save(options.out, {"settings": settings, "seconds": figures})


if __name__ == "__main__":
    main()
