# V-JEPA's training step on one GPU, ViT-L/16 on 16 frames of 256x256 in bfloat16, against the official vjepa2 modules:
# milliseconds, TFLOP/s and MFU of both, and of ours with compiled layers. Both sides alternate in one process.
#
#   bash tools/gpu/60_vjepa_speed.sh OUT VJEPA2      VJEPA2: a checkout of github.com/facebookresearch/vjepa2
#
# A test without a GPU (a CPU would take minutes per step in bfloat16):
#   SIZE=tiny DEVICE=cpu BATCH=1 REPEATS=2 COMPILE= PRECISION= bash tools/gpu/60_vjepa_speed.sh OUT VJEPA2
set -euo pipefail
out=${1:?usage: bash tools/gpu/60_vjepa_speed.sh OUT VJEPA2}
vjepa2=${2:?usage: bash tools/gpu/60_vjepa_speed.sh OUT VJEPA2}
mkdir -p "$out"
read -ra compile <<< "${COMPILE---compile} ${PRECISION---bfloat16}"
PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" python tools/bench_vjepa.py --vjepa2 "$vjepa2" --size "${SIZE:-large}" --batch "${BATCH:-16}" \
  --device "${DEVICE:-cuda}" --threads "$(nproc)" --repeats "${REPEATS:-9}" \
  --out "$out/vjepa_speed.json" "${compile[@]}"
