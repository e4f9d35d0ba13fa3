"""Write a copy of a world that decodes with a tiny decoder (TAEHV), for faster preview and play.

    python tools/tiny_decoder.py runs/wan_world taew2_1.safetensors runs/wan_world_fast
    vwm play runs/wan_world_fast

The world's tokenizer must be the video autoencoder for which the decoder was made. Dynamics and latents stay the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import vwm
from vwm.core.command_output import print_output
from vwm.tokenizers.video_vae.tiny_tokenizer import TinyDecoderTokenizer
from vwm.tokenizers.video_vae.tokenizer import VideoVAETokenizer
from vwm.worlds.bundle import save_simulator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", help="bundle of the world")
    parser.add_argument("file", type=Path, help="the decoder, .safetensors or .pth")
    parser.add_argument("out", type=Path, help="the bundle to write")
    arguments = parser.parse_args()
    world = vwm.load(arguments.world, "cpu")
    tokenizer = getattr(world, "tokenizer", None)
    if not isinstance(tokenizer, VideoVAETokenizer):
        parser.error(f"{arguments.world} has a {type(tokenizer).__name__}, not a video autoencoder of diffusers")
    world.tokenizer = TinyDecoderTokenizer.of(tokenizer, arguments.file)
    save_simulator(world, arguments.out)
    print_output(arguments.out, "a world", f"vwm play {arguments.out}")


if __name__ == "__main__":
    main()
