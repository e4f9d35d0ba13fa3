"""Captions of clips by image-to-text and video-to-text models of the transformers library."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vwm.core.devices import resolve_device
from vwm.data.clip_models import ClipAdditions, ClipFunction
from vwm.data.curation.transformers_folders import choose_frames, hash_model_folder, load_pretrained, move_inputs

CAPTION_FRAMES = 8
"""Frames of a clip, evenly spaced, that a model for videos sees; one for pictures sees the middle one."""
CAPTION_TOKENS = 96
"""Longest caption, in tokens of the model."""


@dataclass(frozen=True)
class CaptionModel:
    """Adds ``caption`` to the metadata.

    Attributes:
        folder: that transformers saved.
        prompt: for models that follow instructions.
        fingerprint: see ``hash_model_folder``.
    """

    folder: str
    prompt: str
    fingerprint: str
    adds: str = "caption"

    @classmethod
    def of_folder(cls, folder: Path, prompt: str) -> CaptionModel:
        """Make it; the model is loaded where it is used. Raises ValueError where the folder holds none."""
        return cls(str(folder.resolve()), prompt, hash_model_folder(folder, prompt))

    def load(self) -> ClipFunction:
        """Load the model, onto a GPU where there is one."""
        return ClipCaptioner(self.folder, self.prompt)


class ClipCaptioner:
    """Captions clips, by the most probable next token each time.

    Args:
        folder: that transformers saved.
        prompt: for models that follow instructions: those with a chat template.
    """

    def __init__(self, folder: str, prompt: str) -> None:
        self.model = load_pretrained(folder, "AutoModelForImageTextToText").to(resolve_device("auto"))
        self.processor = load_pretrained(folder, "AutoProcessor")
        if not hasattr(self.processor, "image_processor"):
            raise ValueError(
                f"{folder}: has no processor that takes pictures and texts: save its AutoProcessor there, too"
            )
        self.follows_instructions = bool(getattr(self.processor, "chat_template", None))
        self.prompt = prompt

    @torch.inference_mode()
    def __call__(self, frames: NDArray[np.uint8]) -> ClipAdditions:
        inputs = self._ask(frames) if self.follows_instructions else self._show(frames)
        given = inputs["input_ids"].shape[1] if self.follows_instructions else 0
        tokens = self.model.generate(
            **move_inputs(inputs, self.model), max_new_tokens=CAPTION_TOKENS, do_sample=False, num_beams=1
        )
        [text] = self.processor.batch_decode(tokens[:, given:], skip_special_tokens=True)
        return ClipAdditions(meta={"caption": " ".join(text.split())})

    def _show(self, frames: NDArray[np.uint8]) -> Any:
        return self.processor(images=choose_frames(frames, 1), return_tensors="pt")

    def _ask(self, frames: NDArray[np.uint8]) -> Any:
        """Return the inputs of a model that follows instructions: frames and the prompt."""
        if getattr(self.processor, "video_processor", None) is not None:
            shown: dict[str, Any] = {"type": "video", "video": np.stack(choose_frames(frames, CAPTION_FRAMES))}
        else:
            shown = {"type": "image", "image": choose_frames(frames, 1)[0]}
        content = [shown, {"type": "text", "text": self.prompt}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
