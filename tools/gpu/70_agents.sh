# Agents, one task per run: on dm_control with vector observations TD-MPC2 5M to 100k frames and DreamerV3 1m to 200k;
# on MinAtar DIAMOND's and IRIS's joint loops and EfficientZero to 100k decisions.
# A call trains until its time is up; the next continues exactly where it stopped.
#
#   bash tools/gpu/70_agents.sh OUT [FOLDER_OF_THE_LAST_CALL]
#   AGENT=dreamer_v3 TASK=cup-catch bash tools/gpu/70_agents.sh OUT
#   AGENT=diamond bash tools/gpu/70_agents.sh OUT          also iris, efficientzero: the game of configs/agents/*_minatar.yaml
#
# TASK is cartpole-balance, ball_in_cup-catch, finger-spin, walker-walk, reacher-easy or any other of dm_control's.
# Published returns to compare evaluations.csv with (frames, action repeat 2, so twice the decisions; means over seeds):
#   TD-MPC2 5M at 100k: cartpole-balance 998, ball_in_cup-catch 981, finger-spin 948, walker-walk 962
#   DreamerV3 proprio at 200k: cartpole-balance 967, ball_in_cup-catch 955, reacher-easy 905
# None are published of MinAtar at this length; docs/agents.md has what 4,000 decisions gave on a CPU, and random actions.
#
# A test without a GPU, which takes a minute: SECONDS_PER_CALL=60 ENV=Pendulum-v1 EXTRA='--evaluation.every 200'
set -euo pipefail
out=${1:?usage: bash tools/gpu/70_agents.sh OUT [FOLDER_OF_THE_LAST_CALL]}
before=${2:-}
agent=${AGENT:-tdmpc2}
task=${TASK:-cartpole-balance}
began=$(date +%s)
work=$(mktemp -d)
mkdir -p "$out"
[ -z "$before" ] || cat "$before"/run.tar.* | tar -C "$work" -xf -

dmc=(--algorithm.env.env "${ENV:-shimmy.registration:dm_control/$task-v0}")
case $agent in
  tdmpc2) settings=(-c configs/agents/tdmpc2_dmc.yaml "${dmc[@]}" --steps 50000) ;;
  dreamer_v3) settings=(-c configs/agents/dreamer_v3_dmc.yaml "${dmc[@]}" --steps 100000) ;;
  diamond | iris | efficientzero)
    task=MinAtar
    settings=(-c "configs/agents/${agent}_minatar.yaml" --steps 100000 --algorithm.replay_capacity 100000 --device auto) ;;
  *) echo "AGENT=$agent is none of tdmpc2, dreamer_v3, diamond, iris, efficientzero" >&2; exit 2 ;;
esac
read -ra extra <<< "${EXTRA:-}"
export MUJOCO_GL=${MUJOCO_GL:-disable} # nothing is drawn
status=0
timeout --signal INT $((${SECONDS_PER_CALL:-560} - ($(date +%s) - began))) \
  python -m vwm.cli.main agent train "${settings[@]}" --run "$work/run" --evaluation.video false \
  --evaluation.every 5000 --checkpoint_every 2500 "${extra[@]}" || status=$?
[ "$status" = 0 ] || [ "$status" = 124 ] || [ "$status" = 130 ] || exit "$status"
cp "$work"/run/metrics/*.csv "$work"/run/*.yaml "$out"/
[ ! -f "$work/run/curves.png" ] || cp "$work/run/curves.png" "$out"/
tar -C "$work" -cf - run | split -b 15M - "$out/run.tar."
echo "$agent on $task, decisions and mean return with its 95% interval over episodes:"
if [ -f "$out/evaluations.csv" ]; then column -s, -t < "$out/evaluations.csv"; else echo "no evaluation yet: give $out to the next call"; fi
