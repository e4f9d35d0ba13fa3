#!/usr/bin/env bash
# Ten minutes on one GPU: as 20_, with labeled actions (reference: GenieRedux-G, 33.41 dB over ten frames with true actions).
source "$(dirname "$0")/common.sh"
fit labeled 75 -c configs/genie/coinrun_base.yaml --model.init_args.tokenizer "$work/tokenizer_bundle" \
  --model.init_args.latent_action null --model.init_args.dynamics.init_args.num_actions 15
vwm export "$work/labeled" --out "$work/world_labeled" --title "coinrun (true actions)" --data "$work/data"
report world_labeled
give tokenizer_bundle world_labeled
