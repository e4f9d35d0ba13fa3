#!/usr/bin/env bash
# Ten minutes on one GPU: latent actions and dynamics over the tokenizer of 10_ (reference: delta PSNR 1.89).
source "$(dirname "$0")/common.sh"
fit genie 75 -c configs/genie/coinrun_base.yaml --model.init_args.tokenizer "$work/tokenizer_bundle"
vwm export "$work/genie" --out "$work/world" --title coinrun --data "$work/data"
report world
give tokenizer_bundle world
