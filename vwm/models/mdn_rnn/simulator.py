"""A world of World Models (arXiv 1803.10122) behind the simulator interface: a dream to evolve controllers in."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vwm.core.frames import frames_to_float, video_to_uint8
from vwm.core.network_simulator import VideoSimulator
from vwm.core.seeds import fold_in, world_seeds
from vwm.core.simulator import Simulator, StepOutput
from vwm.core.spaces import ActionSpace
from vwm.core.tokenizer import FrameTokenizer
from vwm.models.mdn_rnn.network import MDNRNN, LSTMState, check_mdn_rnn_tokenizer
from vwm.nn.actions import check_action_space


class MDNRNNState(NamedTuple):
    """One world a batch entry.

    Attributes:
        memory: the LSTM's state, of all that was before the present frame.
        latent: float [b, h, w, c], the present frame.
        position: int64 [b], frames so far; what the seed is folded with.
        seed: int64 [b].
    """

    memory: LSTMState
    latent: Tensor
    position: Tensor
    seed: Tensor


class MDNRNNSampling(NamedTuple):
    """How a frame is drawn.

    Attributes:
        temperature: 1 draws what M believes; more makes a harsher world, whose faults are harder to live on (the paper
            trains in Doom at about 1.15).
    """

    temperature: float = 1.0


class MDNRNNSimulator(VideoSimulator):
    """See ``Simulator``. ``latent`` of a step is the frame's, float [b, h, w, c]; see ``features`` for controllers.

    The world ends where M thinks an end more likely than not (its ends are weighted in training, as in the paper).
    Where the actions of a context are not given, and M has not learned to do without (``unknown_actions``), only the
    context's last frame counts.

    Args:
        tokenizer: frames to continuous latents and back, each frame by itself.
        dynamics: the MDN-RNN.
        actions: the action space; it must be the dynamics'.
        **rest: see ``VideoSimulator``.

    Raises:
        ValueError: the parts do not fit each other, or a temperature that is not positive.
    """

    SAMPLING = MDNRNNSampling
    transition_loss_name = "negative log-likelihood"
    dynamics: MDNRNN

    def __init__(self, tokenizer: FrameTokenizer, dynamics: MDNRNN, actions: ActionSpace, **rest: Any) -> None:
        check_mdn_rnn_tokenizer(tokenizer, dynamics)
        check_action_space(dynamics.embed_action, actions)
        super().__init__(tokenizer, dynamics, actions, **rest)

    @classmethod
    def require(cls, simulator: Simulator, name: str) -> MDNRNNSimulator:
        """Return a simulator of this class, for algorithms that read its memory.

        Raises:
            ValueError: it is of another class; the message begins with ``name``.
        """
        if not isinstance(simulator, cls):
            raise ValueError(f"{name} holds a {type(simulator).__name__}, and an MDN-RNN's simulator is required")
        return simulator

    @property
    def latent_size(self) -> int:
        """Numbers of a latent, the first ones of ``features``."""
        return self.dynamics.latent_size

    @property
    def memory_size(self) -> int:
        """Numbers of the LSTM's hidden state, the last ones of ``features``."""
        return self.dynamics.width

    @property
    def predicts_reward(self) -> bool:
        """Whether the dynamics has learned rewards."""
        return self.dynamics.reward_head is not None

    def check_sampling(self, sampling: MDNRNNSampling) -> None:
        """See ``NetworkSimulator.check_sampling``."""
        if not sampling.temperature > 0:
            raise ValueError(f"temperature={sampling.temperature} must be positive")

    @torch.inference_mode()
    def reset(
        self, context: Tensor, seed: int | Tensor = 0, context_actions: Tensor | None = None
    ) -> tuple[MDNRNNState, Tensor]:
        """See ``Simulator.reset``."""
        self.check_context(context)
        latents = self._encode(context)
        batch, frames = latents.shape[:2]
        actions = self.check_context_actions(context_actions, batch, frames)
        memory, position = self.dynamics.init_state(batch), torch.zeros(batch, dtype=torch.int64, device=self.device)
        if frames > 1 and (actions is not None or self.dynamics.no_action is not None):
            lead = self._lead(actions, batch, frames - 1)
            _, memory = self.dynamics(memory, latents[:, :-1], lead)
            position = position + frames - 1
        state = MDNRNNState(memory, self._to_grid(latents[:, -1]), position, world_seeds(seed, batch, self.device))
        return state, self._show(state.latent)

    @torch.inference_mode()
    def step(self, state: MDNRNNState, action: Tensor, decode: bool = True) -> tuple[MDNRNNState, StepOutput]:
        """See ``Simulator.step``."""
        said, memory = self._take(state, action)
        foretold = self.dynamics.predict(said)
        seed = fold_in(state.seed, state.position)
        latent = self._to_grid(foretold.latent.draw(seed, self.sampling.temperature).to(state.latent.dtype))
        after = MDNRNNState(memory, latent, state.position + 1, state.seed)
        frame = self._show(latent) if decode else None
        return after, StepOutput(frame, latent, self.dynamics.earned(foretold).float(), foretold.end > 0)

    def init_state(self, batch: int) -> MDNRNNState:
        """Before anything was seen; with a first frame's latent, where an episode begins."""
        nothing = torch.zeros(batch, dtype=torch.int64, device=self.device)
        latent = torch.zeros(batch, *self.tokenizer.grid, self.tokenizer.channels, device=self.device)
        return MDNRNNState(self.dynamics.init_state(batch), latent, nothing, nothing)

    @torch.inference_mode()
    def observe(self, state: MDNRNNState, action: Tensor, frame: Tensor) -> MDNRNNState:
        """See ``ObservesFrames.observe``: how a controller follows a real game."""
        self.check_observation(action, frame, len(state.seed))
        _, memory = self._take(state, action)
        latent = self._to_grid(self._encode(frame[:, None])[:, 0])
        return MDNRNNState(memory, latent, state.position + 1, state.seed)

    def features(self, state: MDNRNNState) -> Tensor:
        """What a controller looks at, float32 [b, z + d]: the present latent, then what the LSTM remembers."""
        return torch.cat((state.latent.flatten(1), state.memory.hidden), dim=-1).float()

    @torch.inference_mode()
    def transition_loss(self, latents: Tensor, actions: Tensor, other_actions: Tensor) -> Tensor:
        """See ``MeasuresTransitionLoss.transition_loss``."""
        latents, actions, other_actions = (x.to(self.device) for x in (latents.flatten(2), actions, other_actions))
        total, memory = torch.zeros(2, dtype=torch.float64), self.dynamics.init_state(len(latents))
        for i in range(latents.shape[1] - 1):
            here, after = latents[:, i : i + 1], latents[:, i + 1]
            taken = [self.dynamics(memory, here, self.dynamics.lead(x[:, i : i + 1])) for x in (actions, other_actions)]
            for way, (said, _) in enumerate(taken):
                foretold = self.dynamics.predict(said[:, 0]).latent
                total[way] += foretold.negative_log_likelihood(after).double().sum().item()
            memory = taken[0][1]
        return total

    def _take(self, state: MDNRNNState, action: Tensor) -> tuple[Tensor, LSTMState]:
        """What the LSTM says [b, d], and its state, after the present frame and what was done there."""
        self.check_action(action, len(state.seed))
        lead = self._lead(action.to(self.device)[:, None], len(action), 1)
        said, memory = self.dynamics(state.memory, state.latent.flatten(1)[:, None], lead)
        return said[:, 0], memory

    def _lead(self, actions: Tensor | None, batch: int, frames: int) -> Tensor:
        if actions is not None:
            return self.dynamics.lead(actions)
        assert self.dynamics.no_action is not None
        return self.dynamics.no_action.expand(batch, frames, -1)

    def _encode(self, frames: Tensor) -> Tensor:
        return self.tokenizer.encode(frames_to_float(frames.to(self.device))).flatten(2)

    def _to_grid(self, latent: Tensor) -> Tensor:
        return latent.unflatten(-1, (*self.tokenizer.grid, self.tokenizer.channels))

    def _show(self, latent: Tensor) -> Tensor:
        return video_to_uint8(self.tokenizer.decode(latent[:, None].to(self.tokenizer.dtype)))[:, 0]
