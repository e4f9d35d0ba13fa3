#!/usr/bin/env bash
# A policy trained in a video world, on Atari's Freeway (docs/agents.md), in calls of ten minutes on one GPU:
#
#   bash tools/gpu/80_video_world_policy.sh OUT [FOLDER_OF_THE_LAST_CALL]
#
# One after another come the world, its agent tokens (Dreamer 4's second phase), the policy in imagination (the third),
# the clone alone, and the comparison in the real game. PPO is trained in the background: in the first call on real
# steps, and in the first call that begins with a world in that world. Its runs cannot be continued, and each must end
# within its call. Unfinished stages are continued by the next call; finished ones are never repeated.
#
# SEED=1 with the folder of a seed that has ended trains the policies once more and compares all seeds together.
# A test without a GPU: see README.md.
GAME=freeway
FRAMES=${FRAMES:-60000}
source "$(dirname "$0")/common.sh"
seed=${SEED:-0}
reserve=30 # seconds to hand on
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}

# Runs remember the paths of worlds and data. From here on they are relative to the work's folder, whose name changes.
configs=$PWD/configs
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
out=$(realpath "$out")
cd "$work"
rm -f failed
declare -A background=()
trap 'kill "${background[@]}" 2>/dev/null || true' EXIT

# ended NAME STATUS: record the result of a stage.
ended() {
  case $2 in
    0) touch "$1/done" ;;
    124) echo "$1: not finished when the time was up" ;;
    *) tail -n 30 "$1.log" >&2; echo "$1: ended with status $2" >&2; touch failed ;;
  esac
}

# stage NAME ARGS...: run `vwm ARGS` in the time that is left; if it does not finish, keep its state and exit.
stage() {
  local name=$1 code=0; shift
  [ ! -e "$name/done" ] || return 0
  local rest=$(($(left) - reserve))
  echo "$name: $rest seconds left"
  [ "$rest" -ge 45 ] || finish
  timeout --signal TERM --kill-after 20 "$rest" python -m vwm.cli.main "$@" > "$name.log" 2>&1 || code=$?
  ended "$name" "$code"
  [ -e "$name/done" ] || finish
}

# start NAME ARGS...: the same in the background, from the start.
start() {
  local name=$1; shift
  [ ! -e "$name/done" ] || return 0
  rm -rf "$name"
  timeout --signal TERM --kill-after 20 "$(($(left) - reserve))" python -m vwm.cli.main "$@" > "$name.log" 2>&1 &
  background[$name]=$!
}

# join: wait for the background runs.
join() {
  local name code
  for name in "${!background[@]}"; do
    code=0
    wait "${background[$name]}" || code=$?
    unset "background[$name]"
    ended "$name" "$code"
    [ -e "$name/done" ] || { echo "$name: starts again in the next call; give it fewer steps" >&2; touch failed; }
  done
}

# finish: print the results and keep them for the next call. Of a finished run of `vwm fit` only the bundle is kept.
finish() {
  join
  local name kept=()
  for name in imagined_s* cloned ppo_world_s* ppo_real_s*; do
    [ -s "$name/metrics/evaluations.csv" ] || continue
    printf '\n%s, decisions and mean return with its 95%% interval over episodes:\n' "$name"
    column -s, -t < "$name/metrics/evaluations.csv" 2>/dev/null || cat "$name/metrics/evaluations.csv"
  done
  [ ! -e world/done ] || rm -rf world_run
  [ ! -e agent_world/done ] || rm -rf agent_run
  for name in world_run world agent_run agent_world imagined_s* cloned ppo_world_s* ppo_real_s*; do
    [ ! -d "$name" ] || kept+=("$name")
  done
  [ ${#kept[@]} = 0 ] || tar -cf - "${kept[@]}" | split -b 15M - "$out/bundle.tar."
  [ ! -e failed ] || exit 1
  exit 0
}

# fit NAME CONFIG STEPS ARGS...: a network; the last of every number that was logged.
fit() {
  local name=$1 config=$2 steps=$3; shift 3
  stage "$name" fit -c "$configs/dit/$config.yaml" --run "$name" --trainer.max_steps "$steps" \
    --data.init_args.path data --data.init_args.batch_size "${BATCH:-64}" --data.init_args.workers "${WORKERS:-8}" \
    --samples.every 0 --checkpoint.every 1000000 --compile "${COMPILE:-true}" "$@"
  python - "$name" <<'PY'
import csv, pathlib, sys
last = {}
for path in pathlib.Path(sys.argv[1]).glob("metrics/*.csv"):
    for row in csv.DictReader(path.open()):
        last |= {f"{path.stem}/{name}": value for name, value in row.items() if value}
print(sys.argv[1], *(f"{name} {float(value):.4g}" for name, value in last.items()), sep="  ")
PY
}

learn() { # HOW NAME CONFIG ARGS...: a policy, by `stage` or `start`
  local how=$1 name=$2 config=$3; shift 3
  "$how" "$name" agent train -c "$configs/agents/$config.yaml" --run "$name" \
    --seed "$seed" --evaluation.video false "$@"
}

limit() { # KEY: TIME_LIMIT, in decisions, of the environment under the key; one limit for all, or nothing is comparable
  [ -z "${TIME_LIMIT:-}" ] || echo "--$1.time_limit $TIME_LIMIT"
}

ppo() { # ENVIRONMENTS BATCH: smaller batches of more copies would only take more updates
  echo "--algorithm.num_envs $1 --algorithm.options.batch_size $2"
}

# shellcheck disable=SC2046 # limit and ppo give words
learn start "ppo_real_s$seed" ppo_freeway --steps "${PPO_STEPS:-300000}" \
  --evaluation.every "${PPO_EVALUATE:-100000}" $(limit algorithm.env)
if [ -e world/done ]; then
  learn start "ppo_world_s$seed" ppo_freeway_world --steps "${PPO_WORLD_STEPS:-400000}" \
    --algorithm.env.bundle world --algorithm.env.data data \
    --evaluation.every "${PPO_EVALUATE:-100000}" $(limit evaluation.env) \
    $(ppo "${ENVIRONMENTS:-64}" "${PPO_BATCH:-1024}")
fi

if [ ! -e world/done ]; then
  fit world_run freeway_small "${WORLD_STEPS:-6000}"
  stage world export world_run -o world --data data --float16
fi
if [ ! -e agent_world/done ]; then
  fit agent_run freeway_agent "${AGENT_STEPS:-2000}" --model.init_args.pretrained world --model.init_args.tokenizer world
  stage agent_world export agent_run -o agent_world --data data --float16
fi

batch=${IMAGINED_BATCH:-256}
decisions=$((batch * 16)) # of an update
imagination=(--algorithm.bundle agent_world --algorithm.data data
  --algorithm.batch_size "$batch" --checkpoint_every "$((10 * decisions))")
read -ra limited <<< "$(limit evaluation.env)"
learn stage "imagined_s$seed" dreamer4_freeway "${imagination[@]}" "${limited[@]}" \
  --steps "$((${UPDATES:-400} * decisions))" --algorithm.optimizer.critic_warmup_steps "$((20 * decisions))" \
  --evaluation.every "$((${EVALUATE:-100} * decisions))" \
  --evaluation.episodes "${EVALUATE_EPISODES:-8}"
learn stage cloned dreamer4_freeway "${imagination[@]}" "${limited[@]}" \
  --steps 1 --algorithm.optimizer.critic_warmup_steps 1000000 --evaluation.episodes 1

join
[ -e "ppo_world_s$seed/done" ] || finish # the next call begins with a world
[ "$(left)" -ge "${COMPARE_SECONDS:-300}" ] || finish
seeds() { local runs=("$1_s"*/done); printf '%s,' "${runs[@]%/done}"; }
stage compared agent compare "imagined=$(seeds imagined)" cloned=cloned "world=$(seeds ppo_world)" \
  "real=$(seeds ppo_real)" --reference real --episodes "${EPISODES:-100}" --num_envs 50 --workers "${COMPARE_WORKERS:-5}" \
  -o compared
cp compared/comparison.* "$out"/
cat compared/comparison.md
finish
