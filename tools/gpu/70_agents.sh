# Agents on dm_control with vector observations: TD-MPC2 5M to 100k frames, DreamerV3 1m to 200k, one task per run.
# A call trains until its time is up; the next continues exactly where it stopped.
#
#   bash tools/gpu/70_agents.sh OUT [FOLDER_OF_THE_LAST_CALL]
#   AGENT=dreamer_v3 TASK=cup-catch bash tools/gpu/70_agents.sh OUT
#
# TASK is cartpole-balance, ball_in_cup-catch, finger-spin, walker-walk, reacher-easy or any other of dm_control's.
# Published returns to compare evaluations.csv with (frames, action repeat 2, so twice the decisions; means over seeds):
#   TD-MPC2 5M at 100k: cartpole-balance 998, ball_in_cup-catch 981, finger-spin 948, walker-walk 962
#   DreamerV3 proprio at 200k: cartpole-balance 967, ball_in_cup-catch 955, reacher-easy 905
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

case $agent in
  tdmpc2) steps=50000 ;;
  dreamer_v3) steps=100000 ;;
  *) echo "AGENT=$agent is neither tdmpc2 nor dreamer_v3" >&2; exit 2 ;;
esac
read -ra extra <<< "${EXTRA:-}"
export MUJOCO_GL=${MUJOCO_GL:-disable} # nothing is drawn
status=0
timeout --signal INT $((${SECONDS_PER_CALL:-560} - ($(date +%s) - began))) \
  python -m vwm.cli.main agent train -c "configs/agents/${agent}_dmc.yaml" --run "$work/run" \
  --algorithm.env.env "${ENV:-shimmy.registration:dm_control/$task-v0}" \
  --steps "$steps" --evaluation.video false \
  --evaluation.every 5000 --checkpoint_every 2500 "${extra[@]}" || status=$?
[ "$status" = 0 ] || [ "$status" = 124 ] || [ "$status" = 130 ] || exit "$status"
cp "$work"/run/metrics/*.csv "$work"/run/*.yaml "$out"/
[ ! -f "$work/run/curves.png" ] || cp "$work/run/curves.png" "$out"/
tar -C "$work" -cf - run | split -b 15M - "$out/run.tar."
echo "$agent on $task, decisions and mean return with its 95% interval over episodes:"
column -s, -t < "$out/evaluations.csv" 2>/dev/null || echo "no evaluation yet: give $out to the next call"
