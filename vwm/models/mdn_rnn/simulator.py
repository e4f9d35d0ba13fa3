"""World Models (arXiv 1803.10122) as a simulator, in which controllers are evolved."""

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
    """The state of a batch of simulations, one entry each.

    Attributes:
        memory: the LSTM's state, of the frames and actions before the present frame.
        latent: float [b, h, w, c], the present frame.
        position: int64 [b], the number of frames so far, with which the seed is folded.
        seed: int64 [b].
    """

    memory: LSTMState
    latent: Tensor
    position: Tensor
    seed: Tensor


class MDNRNNSampling(NamedTuple):
    """How a frame is sampled.

    Attributes:
        temperature: of the mixture density. 1 samples from the prediction; above 1 the simulation is noisier, so that
            its errors are harder to exploit (the paper trains in Doom at about 1.15).
    """

    temperature: float = 1.0


class MDNRNNSimulator(VideoSimulator):
    """A frame VAE (the paper's V) and an MDN-RNN (its M): see ``Simulator``.

    ``latent`` of a step is the frame's, float [b, h, w, c]; see ``features`` for controllers. A simulation terminates
    where that is predicted to be more likely than not (terminations are weighted in training, as in the paper). Where
    the actions of a context are not given, and the network has not learned unknown actions
    (``allow_unknown_actions``), only the context's last frame is used.

    Args:
        tokenizer: encodes each frame by itself to continuous latents, and decodes them.
        dynamics: the MDN-RNN.
        actions: the action space; it must be the dynamics'.
        **rest: see ``VideoSimulator``.

    Raises:
        ValueError: the networks do not fit each other, or the temperature is not positive.
    """

    SAMPLING_CLASS = MDNRNNSampling
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
        return self.dynamics.hidden_size

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
            embeddings = self._embed_actions(actions, batch, frames - 1)
            _, memory = self.dynamics(memory, latents[:, :-1], embeddings)
            position = position + frames - 1
        state = MDNRNNState(
            memory=memory,
            latent=self._to_grid(latents[:, -1]),
            position=position,
            seed=world_seeds(seed, batch, self.device),
        )
        return state, self._decode_frame(state.latent)

    def advance(self, state: MDNRNNState, action: Tensor, decode: bool) -> tuple[MDNRNNState, StepOutput]:
        """See ``NetworkSimulator.advance``."""
        output, memory = self._step_memory(state, action)
        prediction = self.dynamics.predict(output)
        seed = fold_in(state.seed, state.position)
        latent = self._to_grid(prediction.next_latent.sample(seed, self.sampling.temperature).to(state.latent.dtype))
        after = MDNRNNState(memory=memory, latent=latent, position=state.position + 1, seed=state.seed)
        frame = self._decode_frame(latent) if decode else None
        return after, StepOutput(
            frame=frame,
            latent=latent,
            reward=self.dynamics.mean_reward(prediction).float(),
            terminated=prediction.termination_logits > 0,
        )

    def init_state(self, batch: int) -> MDNRNNState:
        """Return the state before the first frame; with that frame's latent, it is the state of an episode's start."""
        nothing = torch.zeros(batch, dtype=torch.int64, device=self.device)
        latent = torch.zeros(batch, *self.tokenizer.grid, self.tokenizer.channels, device=self.device)
        return MDNRNNState(memory=self.dynamics.init_state(batch), latent=latent, position=nothing, seed=nothing)

    @torch.inference_mode()
    def observe(self, state: MDNRNNState, action: Tensor, frame: Tensor) -> MDNRNNState:
        """See ``ObservesFrames.observe``: so a controller acts in the real environment."""
        return self.run_observation(type(self)._absorb, state, action, frame)

    def _absorb(self, state: MDNRNNState, action: Tensor, frames: Tensor) -> MDNRNNState:
        """Compute ``observe`` of an action and frames that were checked."""
        _, memory = self._step_memory(state, action)
        latent = self._to_grid(self._encode(frames)[:, 0])
        return MDNRNNState(memory=memory, latent=latent, position=state.position + 1, seed=state.seed)

    def features(self, state: MDNRNNState) -> Tensor:
        """See ``ProvidesFeatures.features``: float32 [b, z + d], the present latent and the LSTM's hidden state."""
        return torch.cat((state.latent.flatten(1), state.memory.hidden), dim=-1).float()

    @torch.inference_mode()
    def transition_loss(self, latents: Tensor, actions: Tensor, other_actions: Tensor) -> Tensor:
        """See ``MeasuresTransitionLoss.transition_loss``."""
        latents, actions, other_actions = (x.to(self.device) for x in (latents.flatten(2), actions, other_actions))
        total, memory = torch.zeros(2, dtype=torch.float64), self.dynamics.init_state(len(latents))
        for i in range(latents.shape[1] - 1):
            here, after = latents[:, i : i + 1], latents[:, i + 1]
            outputs = [
                self.dynamics(memory, here, self.dynamics.embed_actions(x[:, i : i + 1]))
                for x in (actions, other_actions)
            ]
            for k, (output, _) in enumerate(outputs):
                prediction = self.dynamics.predict(output[:, 0]).next_latent
                total[k] += prediction.negative_log_likelihood(after).double().sum().item()
            memory = outputs[0][1]
        return total

    def _step_memory(self, state: MDNRNNState, action: Tensor) -> tuple[Tensor, LSTMState]:
        """Return the LSTM's output [b, d] and state after the present frame and the action taken there."""
        embeddings = self._embed_actions(action[:, None], len(action), 1)
        output, memory = self.dynamics(state.memory, state.latent.flatten(1)[:, None], embeddings)
        return output[:, 0], memory

    def _embed_actions(self, actions: Tensor | None, batch: int, frames: int) -> Tensor:
        if actions is not None:
            return self.dynamics.embed_actions(actions)
        assert self.dynamics.no_action is not None
        return self.dynamics.no_action.expand(batch, frames, -1)

    def _encode(self, frames: Tensor) -> Tensor:
        return self.tokenizer.encode(frames_to_float(frames.to(self.device))).flatten(2)

    def _to_grid(self, latent: Tensor) -> Tensor:
        return latent.unflatten(-1, (*self.tokenizer.grid, self.tokenizer.channels))

    def _decode_frame(self, latent: Tensor) -> Tensor:
        return video_to_uint8(self.tokenizer.decode(latent[:, None].to(self.tokenizer.dtype)))[:, 0]
