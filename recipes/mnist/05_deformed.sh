#!/usr/bin/env bash
# Beyond the paper: the smaller net on labels of images that are turned, sheared, scaled and bent (Simard et al. 2003), and
# all seeds of it as the ensemble that teaches one: of each deformed image two of them, drawn anew for every batch, answer.
. "$root/recipes/mnist/mnist.sh"
require "$data"/{train,dev}.{feats,ali}.h5
run asr_kd train "${sets[@]}" "${student[@]}" "${deformed[@]}" --as-long-as-students \
  --learning-rate "$(from_config student_learning_rate)" --seeds "$seed-$last_seed" --out "$exp/nnet/plain-deformed"
teachers=()
for s in $(seq "$seed" "$last_seed"); do teachers+=("$exp/nnet/plain-deformed/seed$s"); done
run asr_kd distill --teachers "${teachers[@]}" --online-members 2 "${sets[@]}" "${student[@]}" "${deformed[@]}" \
  --seeds "$seed-$last_seed" --out "$exp/nnet/distilled-deformed"
