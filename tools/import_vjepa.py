r"""Convert published V-JEPA weights to folders of this package, and these to Hugging Face's layout.

    python tools/import_vjepa.py vitl.pt OUT                           an official checkpoint of V-JEPA 2
    python tools/import_vjepa.py vitl16.pth.tar OUT --image-size 224 --frames 16 --positions sincos \
        --predictor-heads 16                                           ... of the first V-JEPA
    python tools/import_vjepa.py vjepa2_1.pt OUT --image-size 384      ... of V-JEPA 2.1
    python tools/import_vjepa.py vjepa2-ac-vitg.pt OUT                 ... of V-JEPA 2-AC
    python tools/import_vjepa.py ssv2-vitl.pt OUT --probe 0            an official attentive probe
    python tools/import_vjepa.py vjepa2-vitl-fpc64-256 OUT             a folder of Hugging Face's
    python tools/import_vjepa.py facebook/vjepa2-vitl-fpc64-256 OUT    ... on its hub
    python tools/import_vjepa.py OUT AGAIN --to-hf                     any of these, or ours, to Hugging Face's

OUT gets the folders encoder, predictor, classifier and (V-JEPA 2-AC) dynamics if there are such weights.
``load_component`` reads them. In a config for ``vwm fit``, OUT is the ``pretrained`` of V-JEPA and of V-JEPA 2-AC, and
the latter's ``encoder``; see configs/vjepa_ac/vjepa2_ac_vitg.yaml.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from diffusers import ModelMixin

from vwm.core.atomic_files import atomic_folder
from vwm.core.command_output import print_output
from vwm.core.components import ComponentError, load_component, save_component
from vwm.core.weight_mapping import PretrainedWeightsError
from vwm.hub.bundle_names import find_folder
from vwm.hub.hub_errors import HubError
from vwm.models.vjepa.attentive_probe import AttentiveClassifier
from vwm.models.vjepa.hugging_face import load_hugging_face_vjepa, save_hugging_face_vjepa
from vwm.models.vjepa.masked_predictor import MaskedPredictor
from vwm.models.vjepa.official_weights import (
    DEFAULT_MASK_TOKEN,
    PretrainedVJEPA,
    load_official_vjepa,
    load_official_vjepa_probe,
)
from vwm.models.vjepa.video_encoder import VideoEncoder


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a .pt file, a folder or name of Hugging Face's, or ours")
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("--to-hf", action="store_true", help="write Hugging Face's layout")
    parser.add_argument("--probe", type=int, metavar="NUMBER", help="number of the attentive probe to import")
    parser.add_argument("--mask-token", type=int, default=DEFAULT_MASK_TOKEN, help="the predictor's default mask token")
    official = parser.add_argument_group("settings that an official .pt file does not contain")
    official.add_argument("--source", choices=("encoder", "target_encoder", "ema_encoder"), help="which encoder")
    official.add_argument(
        "--image-size", type=int, nargs="+", default=[256], metavar="PIXELS", help="side, or height width"
    )
    official.add_argument("--frames", type=int, default=64, help="clip length")
    official.add_argument("--positions", choices=("rope", "sincos"), default="rope", help="sincos: the first V-JEPA")
    official.add_argument("--tiled-rope", action=argparse.BooleanOptionalAction, help="by default as it was released")
    official.add_argument("--heads", type=int, help="of the encoder, or of the probe (16)")
    official.add_argument("--predictor-heads", type=int, help="of the predictor (12, of V-JEPA 2-AC 16)")
    options = parser.parse_args(argv)
    try:
        if options.out.exists():
            raise PretrainedWeightsError(f"{options.out} exists: choose another folder")
        parts = read(options)
        write_hugging_face(options.out, parts) if options.to_hf else write(options.out, parts)
    except (PretrainedWeightsError, ComponentError, HubError) as error:
        raise SystemExit(f"error: {error}") from error
    print_output(options.out, ", ".join(describe(part) for part in parts.values()))


def read(options: argparse.Namespace) -> dict[str, ModelMixin]:
    """Return the networks by their names."""
    path = find_folder(options.checkpoint)
    if (path / "encoder" / "config.json").is_file():
        return {name: load_component(path / name) for name in PretrainedVJEPA._fields if (path / name).is_dir()}
    if options.probe is not None:
        return {"classifier": load_official_vjepa_probe(path, options.probe, options.heads or 16)}
    if path.is_dir():
        found = load_hugging_face_vjepa(path, options.mask_token)
    else:
        size = options.image_size
        found = load_official_vjepa(
            path,
            source=options.source,
            image_size=(size[0], size[-1]),
            frames=options.frames,
            positions=options.positions,
            tiled_rope=options.tiled_rope,
            heads=options.heads,
            predictor_num_heads=options.predictor_heads,
            mask_token_index=options.mask_token,
        )
    return {name: part for name, part in found._asdict().items() if part is not None}


def write(out: Path, parts: dict[str, ModelMixin]) -> None:
    """Write one folder per network, atomically."""
    with atomic_folder(out) as aside:
        for name, part in parts.items():
            save_component(part, aside / name)


def write_hugging_face(out: Path, parts: dict[str, Any]) -> None:
    encoder, predictor, classifier, dynamics = (parts.get(name) for name in PretrainedVJEPA._fields)
    kinds = (VideoEncoder, MaskedPredictor, AttentiveClassifier | None, type(None))
    networks = (encoder, predictor, classifier, dynamics)
    if not all(isinstance(part, kind) for part, kind in zip(networks, kinds, strict=True)):
        found = ", ".join(f"{name} ({type(part).__name__})" for name, part in parts.items())
        raise PretrainedWeightsError(
            f"Hugging Face's layout has encoder and predictor, and optionally a classifier; found {found}"
        )
    save_hugging_face_vjepa(out, encoder, predictor, classifier)


def describe(part: ModelMixin) -> str:
    return f"{type(part).__name__} of {sum(p.numel() for p in part.parameters()) / 1e6:.1f}M parameters"


if __name__ == "__main__":
    main()
