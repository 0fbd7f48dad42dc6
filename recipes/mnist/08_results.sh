#!/usr/bin/env bash
# Test is read here and nowhere else: errors of every net, the biases that the paper chose on test, and the table.
. "$root/recipes/mnist/mnist.sh"
require "$exp/nnet/only78-corrected/seed$last_seed/net.json"
for s in $(seq "$seed" "$last_seed"); do
  for name in without3:3 only78:7,8; do
    run asr_kd correct-bias --net "$exp/nnet/${name%:*}/seed$s" --classes "${name#*:}" --feats "$data/test.feats.h5" \
      --ali "$data/test.ali.h5" --test-tuned --device "$device" --config "$config" \
      --out "$exp/nnet/${name%:*}-test-tuned/seed$s"
  done
done
names=(plain{,-shifted,-deformed} distilled{,-shifted,-deformed,-of-deformed} without3{,-corrected,-test-tuned} only78{,-corrected,-test-tuned})
nets=("teacher/seed$seed")
for s in $(seq "$seed" "$last_seed"); do
  nets+=("${names[@]/%//seed$s}")
  for dim in ${small_dims//,/ }; do
    for t in $small_temperatures; do nets+=("small/dim$dim/T$t/seed$s"); done
  done
done
nets=("${nets[@]/#/$exp/nnet/}")
require "${nets[@]/%//net.json}"
for set in dev test; do
  run asr_kd count-errors --nets "${nets[@]}" --feats "$data/$set.feats.h5" --ali "$data/$set.ali.h5" \
    --device "$device" --config "$config" --out "$exp/errors/$set.json"
done
run "$python" "$root/recipes/mnist/table.py" --errors "$exp/errors" --nets "$exp/nnet" --preset "$preset" \
  --out "$exp/report"
