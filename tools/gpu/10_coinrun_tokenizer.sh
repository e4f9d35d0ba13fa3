#!/usr/bin/env bash
# Ten minutes on one GPU: the tokenizer of full CoinRun (reference: GenieRedux, 38.25 dB).
source "$(dirname "$0")/common.sh"
fit tokenizer 30 -c configs/tokenizer/coinrun_base.yaml
vwm export "$work/tokenizer" --out "$work/tokenizer_bundle"
cat "$work/tokenizer/metrics/val.csv" || true # a short training has no validation
give tokenizer_bundle
