# Shared by the scripts of this folder: the data, a calibrated number of steps, and what is kept for the next call.
set -euo pipefail
out=${1:?usage: bash tools/gpu/NN_name.sh OUT [FOLDER_OF_THE_LAST_CALL]}
before=${2:-}
seconds=${SECONDS_PER_CALL:-560}
frames=${FRAMES:-1000000}
began=$(date +%s)
work=$(mktemp -d)
mkdir -p "$out"
vwm() { python -m vwm.cli.main "$@"; }
left() { echo $((seconds - ($(date +%s) - began))); }

# What the last call gave back: bundle.tar in pieces of at most 15 MiB.
[ -z "$before" ] || cat "$before"/bundle.tar.* | tar -C "$work" -xf -

# Equal settings record equal bytes, so the data need not be kept.
case ${GAME:-coinrun} in
  coinrun) # Genie's data (hard mode, random play, 10k levels) with a mixed policy, which shows more of what actions do
    prefer='{7: 4, 8: 3, 6: 1}'
    vwm record procgen:coinrun "$work/data" --frames "$frames" --workers "$(nproc)" --prefer "$prefer" \
      --env-options '{distribution_mode: hard, num_levels: 10000}'
    vwm record procgen:coinrun "$work/test" --frames "${TEST_FRAMES:-20000}" --workers 4 --seed 1 --prefer "$prefer" \
      --env-options '{distribution_mode: hard, num_levels: 500, start_level: 100000}' ;;
  carracing) # as in datasets/carracing; some 50 frames a second and core
    road=(--policy road --frame-skip 4 --skip-first-frames 13 --env-options '{max_episode_steps: 3000}' --workers "$(nproc)")
    vwm record CarRacing-v3 "$work/data" --frames "$frames" --frames-per-shard 2500 --max-episode-frames 100 "${road[@]}"
    vwm record CarRacing-v3 "$work/test" --frames "${TEST_FRAMES:-8000}" --frames-per-shard 500 --seed 1 "${road[@]}" ;;
  freeway) # mostly upwards: random play crosses no road
    vwm record ALE/Freeway-v5 "$work/data" --frames "$frames" --frame-skip 4 --policy mixed --prefer '{1: 5}' \
      --workers "$(nproc)" ;;
  *) echo "GAME=$GAME is neither coinrun, carracing nor freeway" >&2; exit 2 ;;
esac

# fit NAME RESERVE ARGS...: as many steps as fit into the time left, less RESERVE seconds, so that the learning rate
# ends its schedule. The rate is measured on a short run first.
fit() {
  local name=$1 reserve=$2; shift 2
  local extra; read -ra extra <<< "${EXTRA:-}" # smaller sizes, for a try on a CPU
  local common=("$@" "${extra[@]}" --data.init_args.path "$work/data" --samples.every 0 --checkpoint.every 1000000 --compile "${COMPILE:-true}")
  vwm fit "${common[@]}" --run "$work/calibrate_$name" --trainer.max_steps "${CALIBRATE:-120}" --trainer.limit_val_batches 0
  local rate steps
  rate=$(python - "$work/calibrate_$name" <<'PY'
import csv, pathlib, sys
rows = list(csv.DictReader((pathlib.Path(sys.argv[1]) / "metrics/train.csv").open()))
rates = [float(r["steps_per_second"]) for r in rows if r.get("steps_per_second")]
print(sorted(rates)[len(rates) // 2])
PY
)
  steps=$(python -c "print(max(10, int(0.92 * $rate * max(10, $(left) - $reserve))))")
  echo "$name: $rate steps per second, so $steps steps"
  vwm fit "${common[@]}" --run "$work/$name" --trainer.max_steps "$steps"
}

# go_on NAME RESERVE STEPS ARGS...: all the steps of a fixed schedule, over as many calls as it takes. A run that is
# out of time saves, and the next call continues it bit for bit.
go_on() {
  local name=$1 reserve=$2 steps=$3 code=0; shift 3
  local extra; read -ra extra <<< "${EXTRA:-}"
  local rest=$(($(left) - reserve))
  [ "$rest" -ge 30 ] || { echo "$name: no time left to train; record fewer FRAMES" >&2; exit 1; }
  timeout --signal TERM "$rest" python -m vwm.cli.main fit "$@" "${extra[@]}" --run "$work/$name" \
    --data.init_args.path "$work/data" --samples.every 0 --checkpoint.every 1000000 --compile "${COMPILE:-true}" \
    --trainer.max_steps "$steps" || code=$?
  [ "$code" = 0 ] || [ "$code" = 124 ] || exit "$code" # 124: it was asked to save
  [ "$code" = 0 ] && return
  echo "$name: not finished; the next call continues it"
  local all=("$name"); [ ! -d "$work/vae_bundle" ] || all+=(vae_bundle)
  give "${all[@]}"
  exit 0
}

# report BUNDLE: measure on unseen levels, print a row, give the report back.
report() {
  vwm eval "$work/$1" "$work/test" --out "$work/report" --clips "${CLIPS:-256}" --drift-seconds "${DRIFT:-5}"
  cp "$work/report/report.json" "$out/report_$1.json"
  cp "$work/report/rollouts.png" "$out/sheet_$1.png"
  python - "$out/report_$1.json" "$1" <<'PY'
import json, sys
r, name = json.load(open(sys.argv[1])), sys.argv[2]
delta = r["control"]["delta_psnr"]
print("| bundle | tokenizer dB | rollout dB at 1 / 4 / 10 | copy last dB at 10 | delta PSNR | shuffle ratio |")
at = r["rollout"]["psnr"]
print(f"| {name} | {r['tokenizer']['psnr']:.2f} | {at[0]:.2f} / {at[3]:.2f} / {at[-1]:.2f} "
      f"| {r['rollout']['psnr_copy_last'][-1]:.2f} | {delta['mean']:.2f} ± {delta['stderr']:.2f} "
      f"| {r['control']['shuffle_ratio']:.2f} |")
PY
}

# give NAME...: hand these folders to the next call.
give() { tar -C "$work" -cf - "$@" | split -b 15M - "$out/bundle.tar."; }
