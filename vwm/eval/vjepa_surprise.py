"""``vwm surprise``: how far a V-JEPA model's prediction of the next moments is from what comes.

Windows slide over a video. The encoder sees a window's first frames, the predictor says what it would make of the
following ones, and the distance to what it does make of them is the surprise (Garrido et al., 2025, arXiv 2502.11831,
section 2).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vwm.core.components import ComponentError, load_component
from vwm.core.devices import resolve_device
from vwm.core.frames import frames_to_float
from vwm.eval.surprise import SURPRISE_TABLE_FILE, read_violation_pairs, write_surprise_report
from vwm.models.vjepa.masked_predictor import MaskedPredictor
from vwm.models.vjepa.module import gather_tokens, normalize_features
from vwm.models.vjepa.video_encoder import VideoEncoder


class VJEPASurprise:
    """Surprise of a model at a video, window by window.

    Args:
        encoder: sees the window's first frames, and, whole windows, what is to be predicted.
        predictor: trained with it.
        context: frames that it sees of each window; whole tubelets, and fewer than the window.
        mask_token: which one stands for what is to come; None takes the predictor's own choice.

    Raises:
        ValueError: a context that leaves nothing to predict, or splits a tubelet.
    """

    def __init__(
        self, encoder: VideoEncoder, predictor: MaskedPredictor, context: int, mask_token: int | None = None
    ) -> None:
        if context % encoder.tubelet or not 0 < context < encoder.frames:
            raise ValueError(
                f"context={context} must be whole tubelets of {encoder.tubelet} frames, and less than a window of "
                f"{encoder.frames}"
            )
        self.encoder, self.predictor, self.context, self.mask_token = encoder, predictor, context, mask_token

    def times(self, frames: int) -> list[int]:
        """The last frame of every window of a video."""
        if frames < self.encoder.frames:
            raise ValueError(
                f"the model looks at {self.encoder.frames} frames at once, and these videos have {frames}: make longer "
                "ones, or train on shorter clips"
            )
        return list(range(self.encoder.frames - 1, frames, self.encoder.tubelet))

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> Tensor:
        """uint8 [b, t, h, w, 3] -> [b, windows]: mean distance of what is predicted (L1 of layer-normed features)."""
        video = frames_to_float(frames.to(self.encoder.device))
        t, h, w = self.encoder.grid()
        tokens = torch.arange(t * h * w, device=video.device).expand(len(video), -1)
        seen, coming = tokens.tensor_split([self.context // self.encoder.tubelet * h * w], dim=1)
        found = []
        for end in self.times(video.shape[1]):
            window = video[:, end + 1 - self.encoder.frames : end + 1]
            said = self.predictor(self.encoder(window, seen), seen, coming, self.mask_token)
            true = gather_tokens(normalize_features(self.encoder(window)), coming)
            found.append((said.float() - true).abs().mean(dim=(1, 2)))
        return torch.stack(found, dim=1)


def evaluate_surprise(
    bundle: Path,
    data: str,
    out: Path = Path("surprise"),
    context: int | None = None,
    mask_token: int | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    device: str = "auto",
) -> dict[str, Any]:
    """Is a V-JEPA model more surprised by what cannot happen? Measured on pairs of possible and impossible clips.

    Args:
        bundle: folder with ``encoder`` and ``predictor``, as ``vwm export`` makes it of a V-JEPA run.
        data: pairs (python datasets/sprites/generate.py OUT --pairs).
        out: folder for the report; an earlier report there is replaced.
        context: frames of each window that the model sees; by default half of what it was trained on.
        mask_token: which of the predictor's mask tokens stands for what is to come: the number of the masks that hid
            whole moments in training. null takes the predictor's own choice.
        limit: look at the first so many pairs only.
        batch_size: clips at a time.
        device: auto takes a GPU where there is one.

    Returns:
        The report, as it stands in ``surprise.json``.

    Raises:
        ValueError: the folder holds no V-JEPA model, the data are no pairs, or shorter than the model's clips.
    """
    device = str(resolve_device(device))
    parts = {name: load_component(bundle / name) for name in ("encoder", "predictor")}
    for name, kind in (("encoder", VideoEncoder), ("predictor", MaskedPredictor)):
        if not isinstance(parts[name], kind):
            raise ComponentError(
                f"{bundle / name} holds a {type(parts[name]).__name__}; surprise needs a {kind.__name__}"
            )
    encoder, predictor = (torch.nn.Module.to(part, device) for part in parts.values())
    half = encoder.frames // 2 // encoder.tubelet * encoder.tubelet
    model = VJEPASurprise(encoder, predictor, half if context is None else context, mask_token)
    pairs = read_violation_pairs(data, limit)
    found = write_surprise_report(
        model, pairs, out, model.times(pairs.possible.shape[1]), batch_size, bundle.resolve().name
    )
    print((out / SURPRISE_TABLE_FILE).read_text())
    return found
