#!/usr/bin/env bash
# A continuous world of GAME=coinrun (with backgrounds) or GAME=carracing, in calls of ten minutes on one GPU: the first
# trains the autoencoder, the second the diffusion transformer. Each ends its schedule within its call; with VAE_STEPS
# or DIT_STEPS set, that stage takes this number of steps, over as many calls as required.
GAME=${GAME:-coinrun}
[ "$GAME" = coinrun ] || FRAMES=${FRAMES:-100000}
source "$(dirname "$0")/common.sh"
stage() { # NAME RESERVE STEPS ARGS...
  local name=$1 reserve=$2 steps=$3; shift 3
  if [ -n "$steps" ]; then go_on "$name" "$reserve" "$steps" "$@"; else fit "$name" "$reserve" "$@"; fi
}
if [ ! -d "$work/vae_bundle" ]; then
  stage vae 45 "${VAE_STEPS:-}" -c configs/vae/coinrun_base.yaml
  vwm export "$work/vae" --out "$work/vae_bundle" --data "$work/data"
  cat "$work/vae/metrics/val.csv" || true # a short training has no validation
  give vae_bundle
  exit
fi
dynamics=--model.init_args.dynamics.init_args
actions=()
[ "$GAME" = coinrun ] || actions=("$dynamics.num_actions" 0 "$dynamics.action_dims" 3)
stage dit 90 "${DIT_STEPS:-}" -c configs/dit/coinrun_base.yaml --model.init_args.tokenizer "$work/vae_bundle" "${actions[@]}"
vwm export "$work/dit" --out "$work/world_$GAME" --title "$GAME" --data "$work/data" --float16
report "world_$GAME"
give vae_bundle "world_$GAME"
