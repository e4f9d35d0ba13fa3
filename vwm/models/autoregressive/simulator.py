"""An autoregressive token world as a simulator: tokens are sampled one by one from cached keys and values."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from vwm.core.seeds import fold_in
from vwm.core.simulator import StepOutput
from vwm.core.spaces import ActionSpace
from vwm.core.token_simulator import TokenSimulator, TokenWorldState
from vwm.core.tokenizer import VideoTokenizer
from vwm.models.autoregressive.dynamics import AutoregressiveDynamics, AutoregressiveState
from vwm.models.autoregressive.outcomes import OutcomeHeads, sample_action_outcomes
from vwm.models.autoregressive.sampling import TokenSampling, check_token_sampling, sample_next_frame_tokens
from vwm.nn.actions import check_action_space
from vwm.tokenizers.token_dynamics import check_equal_settings, token_setting_pairs


class AutoregressiveSimulator(TokenSimulator):
    """A tokenizer with a codebook, and dynamics that predict token by token: see ``Simulator``.

    Args:
        tokenizer: encodes video to tokens, of r frames each after the first latent, and decodes them.
        dynamics: predicts the next token from tokens and actions.
        actions: the action space, which must be the dynamics'.
        outcomes: heads for reward and termination; None without them.
        **rest: see ``VideoSimulator``.

    Raises:
        ValueError: the networks do not fit each other.
    """

    NETWORK_NAMES: ClassVar[tuple[str, ...]] = ("tokenizer", "dynamics", "outcomes")
    OPTIONAL_NETWORKS: ClassVar[tuple[str, ...]] = ("outcomes",)
    SAMPLING_CLASS = TokenSampling
    dynamics: AutoregressiveDynamics

    def __init__(
        self,
        tokenizer: VideoTokenizer,
        dynamics: AutoregressiveDynamics,
        actions: ActionSpace,
        outcomes: OutcomeHeads | None = None,
        **rest: Any,
    ) -> None:
        check_token_parts(tokenizer, dynamics, outcomes)
        check_action_space(dynamics.embed_action, actions)
        super().__init__(tokenizer, dynamics, actions, **rest)
        self.outcomes = None if outcomes is None else outcomes.eval()

    def check_sampling(self, sampling: TokenSampling) -> None:
        """See ``NetworkSimulator.check_sampling``."""
        check_token_sampling(sampling)

    def advance(self, state: TokenWorldState, action: Tensor, decode: bool) -> tuple[TokenWorldState, StepOutput]:
        """See ``NetworkSimulator.advance``. ``latent`` is the frame's tokens, int64 [b, h, w]."""
        step, dynamics = state.frames_generated, self.dynamics
        action_embedding = dynamics.embed_actions(self.actions_per_frame(action))[:, 0]
        frame, output = dynamics.begin_frame(state.dynamics, action_embedding)
        outcomes = sample_action_outcomes(self.outcomes, output, action_embedding, state.seed, step)
        after, tokens, features = sample_next_frame_tokens(
            dynamics, frame, output, fold_in(state.seed, step), self.sampling
        )
        return self.show_tokens(state, after, tokens, features, outcomes, decode)

    def next_frame_logits(self, state: AutoregressiveState, truth: Tensor, actions: Tensor) -> Tensor:
        """See ``TokenSimulator.next_frame_logits``: each token's, given the true ones before it."""
        return self.dynamics.predict_logits(state, truth[:, 0], actions)


def check_token_parts(
    tokenizer: VideoTokenizer, dynamics: AutoregressiveDynamics, outcomes: OutcomeHeads | None
) -> None:
    """Raise ValueError unless the networks of a world fit each other, naming both values."""
    pairs = token_setting_pairs(tokenizer, dynamics)
    if outcomes is not None:
        if outcomes.config.get("sees_next"):
            raise ValueError(
                "rewards are read at the token of the action, before the next frame: set outcomes.sees_next=false"
            )
        pairs.append(("outcomes.width", outcomes.config.width, "dynamics.width", dynamics.config.width))
    check_equal_settings(pairs)
