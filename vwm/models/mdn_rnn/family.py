"""World Models' MDN-RNN as a family: see ``WorldFamily``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vwm.core.family import ExportSettings, WorldFamily
from vwm.nn.actions import embedded_action_space

if TYPE_CHECKING:
    from vwm.models.mdn_rnn.module import MDNRNNModule
    from vwm.models.mdn_rnn.simulator import MDNRNNSimulator


class MDNRNNFamily(WorldFamily):
    """A recurrent network that predicts a mixture density of each frame's latent."""

    name = "mdn_rnn"
    title = "World Models"
    simulator_class = "vwm.models.mdn_rnn.MDNRNNSimulator"
    module_classes = ("vwm.models.mdn_rnn.MDNRNNModule",)

    def make_simulator(self, module: MDNRNNModule, settings: ExportSettings) -> MDNRNNSimulator:
        """See ``WorldFamily.make_simulator``."""
        from vwm.models.mdn_rnn.simulator import MDNRNNSimulator

        return MDNRNNSimulator(
            module.tokenizer,
            module.dynamics,
            embedded_action_space(module.dynamics.embed_action, settings.recording),
            **settings.simulator_arguments(),
        )
