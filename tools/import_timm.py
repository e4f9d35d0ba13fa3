"""Make an encoder folder of a vision transformer of timm, from a file of its published weights.

    python tools/import_timm.py vit_small_patch14_dinov2 dinov2_s.safetensors runs/dinov2 --image-size 64 --grid 8

The folder is the ``encoder`` of a ``RepresentationCodec``: see configs/vae/coinrun_dinov2.yaml. The file is timm's own
(``model.safetensors`` of the model's repository), or the original one where timm reads it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vwm.core.command_output import print_output
from vwm.core.components import save_component
from vwm.tokenizers.timm_encoder import TimmEncoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone", help="name of the model in timm")
    parser.add_argument("file", type=Path, help="its weights")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument(
        "--image-size", type=int, nargs="+", default=[64], help="side of the frames, or height and width"
    )
    parser.add_argument("--grid", type=int, nargs="+", default=[8], help="patches along the side, or height and width")
    arguments = parser.parse_args()
    height, width = (arguments.image_size * 2)[:2]
    rows, columns = (arguments.grid * 2)[:2]
    encoder = TimmEncoder.from_file(arguments.backbone, arguments.file, (height, width), (rows, columns))
    save_component(encoder, arguments.out / "encoder")
    print_output(arguments.out, f"encoder, {rows} x {columns} features of {encoder.width} channels a frame")


if __name__ == "__main__":
    main()
