#!/usr/bin/env bash
# Train the shipped CoinRun world on one GPU: record, tokenizer, latent actions + dynamics, labelled twin, measure.
# Ten minutes a call; call it again with the folder that the last call gave back, until it prints "complete".
# Needs wheels of: diffusers decord webdataset gymnasium procgen-mirror(3.11) gym3 gym cffi (see CONTRIBUTING.md).
set -euo pipefail
out=${1:?folder to write to}
before=${2:-}
seconds=${SECONDS_PER_CALL:-540}
began=$(date +%s)
work=$(mktemp -d)
left() { echo $((seconds - ($(date +%s) - began))); }
clock() { printf '00:00:%02d:%02d' $(($1 / 60)) $(($1 % 60)); }

[ -n "$before" ] && cp -r "$before"/. "$work"/ || true
options='{num_levels: 5000, distribution_mode: easy, use_backgrounds: false, restrict_themes: true}'
unseen='{num_levels: 500, start_level: 100000, distribution_mode: easy, use_backgrounds: false, restrict_themes: true}'
prefer='{7: 4, 8: 3, 6: 1}'
# Recording takes a minute on sixteen cores and gives the same bytes each time, so the data need not come back.
python -m vwm.train.cli record procgen:coinrun "$work/data" --frames 1000000 --workers 14 --env_options "$options" --prefer "$prefer"
python -m vwm.train.cli record procgen:coinrun "$work/test" --frames 20000 --workers 4 --seed 1 --env_options "$unseen" --prefer "$prefer"

stage() { # config, run, steps, share of the time that is left, more arguments
  local config=$1 run=$2 steps=$3 share=$4; shift 4
  [ -f "$run/finished" ] && return
  local limit=$(($(left) * share / 100))
  [ "$limit" -lt 45 ] && return
  python -m vwm.train.cli fit -c "$config" --run "$run" --trainer.max_steps "$steps" --trainer.max_time "$(clock "$limit")" \
    --compile true --data.init_args.path "$work/data" --data.init_args.workers 12 --samples.every 5000 "$@"
  python - "$run" "$steps" <<'PY'
import sys, pathlib, torch
run, steps = pathlib.Path(sys.argv[1]), int(sys.argv[2])
done = torch.load(run / "checkpoints/last.ckpt", map_location="cpu", weights_only=True)["global_step"]
print(f"{run.name}: step {done} of {steps}")
done >= steps and (run / "finished").touch()
PY
}
small=(--model.init_args.tokenizer "$work/tokenizer_bundle")
stage configs/tokenizer/coinrun_base.yaml "$work/tokenizer" 60000 90
if [ -f "$work/tokenizer/finished" ]; then
  python -m vwm.train.cli export "$work/tokenizer" --out "$work/tokenizer_bundle"
  stage configs/genie/coinrun_base.yaml "$work/genie" 60000 90 "${small[@]}"
fi
if [ -f "$work/genie/finished" ]; then
  stage configs/genie/coinrun_base_labelled.yaml "$work/labelled" 60000 80 "${small[@]}"
fi
for run in genie labelled; do
  [ -f "$work/$run/checkpoints/last.ckpt" ] && [ "$(left)" -gt 60 ] || continue
  python -m vwm.train.cli export "$work/$run" --out "$work/bundle_$run" --title coinrun --data "$work/data"
  python -m vwm.train.cli eval "$work/bundle_$run" "$work/test" --out "$work/report_$run" --clips 256
  python - "$work/report_$run/report.json" <<'PY'
import json, sys
r = json.load(open(sys.argv[1]))
print(f"| tokenizer {r['tokenizer']['psnr']:.2f} dB | rollout@10 {r['rollout']['psnr'][-1]:.2f} dB "
      f"| copy {r['rollout']['psnr_copy_last'][-1]:.2f} dB | delta {r['control']['delta_psnr']['mean']:.2f} |")
PY
done
[ -f "$work/labelled/finished" ] && echo complete
mkdir -p "$out" && rm -rf "$work/data" "$work/test" && tar -C "$work" -cf "$out/coinrun.tar" .
