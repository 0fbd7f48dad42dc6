#!/usr/bin/env bash
# Frame accuracy and WER with intervals and tests: results.json for programs, index.html for people.
. "$root/recipes/common/stage.sh"
require "$exp/systems.yaml" "$exp/decode"

for set in dev test; do
  run asr_kd score --systems "$exp/systems.yaml" --decoded "$exp/decode" --split $set \
    --feats "$exp/feats/$set.fbank.h5" --ali "$exp/ali/$set.h5" --data "$exp/data/$set" \
    --vocabulary "$exp/graph/words.txt" --device "$device" --config "$config" --out "$exp/scores/$set"
done
cat "$exp"/log/*.commands >"$exp/commands.txt"
run asr_kd report --systems "$exp/systems.yaml" --scores "$exp/scores/test" --dev-scores "$exp/scores/dev" \
  --recipe "$recipe" --preset "$preset" --sweep "$exp/sweep/sweep.json" --commands "$exp/commands.txt" \
  --decoded "$exp/decode" --feats "$exp/feats/test.fbank.h5" --ali "$exp/ali/test.h5" --hmm "$exp/hmm" \
  --data "$exp/data/test" --config "$config" --config "$exp/sweep/best.yaml" --out "$exp/report"
