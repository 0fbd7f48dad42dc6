#!/usr/bin/env bash
# Beyond the paper: the smaller net on labels of images that are turned, sheared, scaled and bent (Simard et al. 2003), and
# all seeds of it as the ensemble that teaches one: of each deformed image two of them, drawn anew for every batch, answer;
# and one that has seen the images as they are alone.
. "$root/recipes/mnist/mnist.sh"
require "$data"/{train,dev}.{feats,ali}.h5
run asr_kd train --nj "$nj" "${sets[@]}" "${student[@]}" "${deformed[@]}" --as-long-as-students \
  --learning-rate "$(from_config student_learning_rate)" --seeds "$seed-$last_seed" --out "$exp/nnet/plain-deformed"
teachers=()
for s in $(seq "$seed" "$last_seed"); do teachers+=("$exp/nnet/plain-deformed/seed$s"); done
run asr_kd distill --nj "$nj" --teachers "${teachers[@]}" --online-members 2 "${sets[@]}" "${student[@]}" "${deformed[@]}" \
  --seeds "$seed-$last_seed" --out "$exp/nnet/distilled-deformed"
run asr_kd soft-targets --teachers "${teachers[@]}" --feats "$data/train.feats.h5" --device "$device" --config "$config" \
  --out "$exp/targets/train.deformed.h5"
run asr_kd distill --nj "$nj" --targets "$exp/targets/train.deformed.h5" "${sets[@]}" "${student[@]}" --seeds "$seed-$last_seed" \
  --out "$exp/nnet/distilled-of-deformed"
