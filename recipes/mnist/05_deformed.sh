#!/usr/bin/env bash
# Beyond the paper: all of this on images that are turned, sheared, scaled and bent (Simard et al. 2003), a teacher, the
# smaller net on labels, and the smaller net on what the teacher answers to each as the student sees it.
. "$root/recipes/mnist/mnist.sh"
require "$data"/{train,dev}.{feats,ali}.h5
run asr_kd train "${sets[@]}" "${deformed[@]}" --seeds "$seed" --out "$exp/nnet/teacher-deformed"
run asr_kd train "${sets[@]}" "${student[@]}" "${deformed[@]}" --as-long-as-students --seeds "$seed-$last_seed" \
  --out "$exp/nnet/plain-deformed"
run asr_kd distill --teachers "$exp/nnet/teacher-deformed/seed$seed" "${sets[@]}" "${student[@]}" "${deformed[@]}" \
  --seeds "$seed-$last_seed" --out "$exp/nnet/distilled-deformed"
