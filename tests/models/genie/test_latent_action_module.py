"""The latent action model alone: labels of a few clips, and what a Genie world takes over from it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from factories import dynamics, latent_action, randomize, tokenizer

from vwm.core.components import save_component
from vwm.core.family import ExportSettings
from vwm.data.clips import ClipBatch
from vwm.models.genie.family import GenieFamily
from vwm.models.genie.latent_action import LatentActionModel
from vwm.models.genie.latent_action_module import ActionLabels, LatentActionModule
from vwm.models.genie.module import GenieModule
from vwm.nn.optimizer import OptimizerConfig

NAMES = ["darker", "brighter"]


def brightening_clips(seed: int, labeled: bool) -> ClipBatch:
    """Clips that grow darker (actions 0 and 2) or brighter (action 1) frame by frame; the labels of two are known."""
    generator = torch.Generator().manual_seed(seed)
    actions = torch.randint(0, 3, (8, 5), generator=generator)
    steps = torch.where(actions == 1, 25, -25)
    levels = 128 + torch.cat((torch.zeros(8, 1, dtype=torch.int64), steps[:, :-1].cumsum(1)), dim=1)
    frames = levels[..., None, None, None].expand(-1, -1, 16, 16, 3).to(torch.uint8)
    return ClipBatch(frames=frames, actions=actions, labeled=None if labeled else torch.arange(8) < 2)


def small_module(weight: float | None = 1.0) -> LatentActionModule:
    torch.manual_seed(0)
    network = LatentActionModel(
        (16, 16), 8, 2, width=16, depth=1, heads=2, window=4, chosen_by="class", sees="pairs", action_names=NAMES
    )
    labels = None if weight is None else ActionLabels([0, 1, 0], weight)
    return LatentActionModule(network, OptimizerConfig(), labels).train()


def test_labels_of_two_clips_of_eight_give_the_codes_their_meaning():
    module = small_module()
    optimizer = torch.optim.AdamW(module.parameters(), lr=5e-3)
    for step in range(60):
        module(brightening_clips(step, labeled=False))[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    held_out = brightening_clips(1000, labeled=True)
    _, logs = module.eval()(held_out)
    assert logs["label_accuracy"] > 0.9 and module.latent_action.action_space.names == tuple(NAMES)


def test_actions_of_unlabeled_clips_have_no_effect():
    module, clips = small_module().eval(), brightening_clips(0, labeled=False)
    changed = replace(clips, actions=torch.cat((clips.actions[:2], (clips.actions[2:] + 1) % 3)))
    assert module(clips)[0] == module(changed)[0]
    labels_alone = small_module(None).eval()
    assert "label_loss" not in labels_alone(clips)[1] and labels_alone(clips)[0] < module(clips)[0]


def test_rejects_labels_that_do_not_fit():
    with pytest.raises(ValueError, match="labels require codes that a classifier chooses"):
        LatentActionModule(latent_action(), OptimizerConfig(), ActionLabels([0]))
    with pytest.raises(ValueError, match=r"labels.codes=\[0, 6\] must be codes, 0 to 5"):
        LatentActionModule(latent_action(codebook=6, chosen_by="class"), OptimizerConfig(), ActionLabels([0, 6]))
    with pytest.raises(ValueError, match="must be one for each of 6 actions"):
        latent_action(codebook=6, action_names=NAMES)
    with pytest.raises(ValueError, match=r"codebook=\[2, 2\] has levels"):
        latent_action(chosen_by="class")
    with pytest.raises(ValueError, match="power of two as patch_size, got 12"):
        LatentActionModel((24, 24), 12, sees="pairs")
    with pytest.raises(ValueError, match=r"add actions to data\.fields"):
        small_module()(replace(brightening_clips(0, labeled=False), actions=None))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer, and an export of ``LatentActionModule``."""
    folder = tmp_path_factory.mktemp("actions")
    save_component(tokenizer(), folder / "tokenizer")
    names = ["left", "none", "jump", "right"]
    network = LatentActionModule(latent_action(codebook=4, action_names=names), OptimizerConfig())
    for part, exported in GenieFamily().export_networks(network, None, True).networks.items():
        save_component(exported, folder / part)
    save_component(randomize(dynamics(num_actions=3), seed=5), folder / "dynamics")
    return folder


def test_pretrained_actions_stay_as_they_are_and_keep_their_names(folder):
    genie = GenieModule(folder, dynamics(), OptimizerConfig(), pretrained_actions=str(folder)).train()
    clips = ClipBatch(frames=torch.randint(0, 256, (2, 4, 16, 16, 3), dtype=torch.uint8))
    before = {name: value.clone() for name, value in genie.latent_action.state_dict().items()}
    loss, logs = genie(clips)
    loss.backward()
    assert loss == logs["dynamics_loss"] and 1 <= logs["action_perplexity"] <= 4
    assert all(p.grad is None for p in genie.latent_action.parameters()) and genie.dynamics.places.grad is not None
    assert all(torch.equal(value, genie.latent_action.state_dict()[name]) for name, value in before.items())
    settings = ExportSettings(title="noise", fps=10.0, context_frames=2, starts=None, recording={})
    space = GenieFamily().make_simulator(genie.eval(), settings).spec.actions
    assert space.names == ("left", "none", "jump", "right") and space.is_named and space.latent
    with pytest.raises(ValueError, match="set latent_action to null"):
        GenieModule(folder, dynamics(), OptimizerConfig(), latent_action(), pretrained_actions=str(folder))
    with pytest.raises(ValueError, match="not a latent action model"):
        GenieModule(folder, dynamics(), OptimizerConfig(), pretrained_actions=str(folder / "tokenizer"))


def test_a_pretrained_dynamics_keeps_all_but_its_actions(folder):
    mine = dynamics()
    own = mine.embed_action.weight.clone()
    GenieModule(folder, mine, OptimizerConfig(), latent_action(), pretrained=str(folder))
    theirs = randomize(dynamics(num_actions=3), seed=5).state_dict()
    new = ("embed_action", "no_action")
    assert all(torch.equal(mine.state_dict()[key], theirs[key]) for key in theirs if not key.startswith(new))
    assert torch.equal(mine.embed_action.weight, own)
