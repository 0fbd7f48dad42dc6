#!/usr/bin/env bash
# The smaller net with the teacher's soft targets of the unshifted images (74 errors in the paper, T=20); and, which the
# paper did not try, of images that are shifted as the teacher's were, each answered by the teacher as the student sees it.
. "$root/recipes/mnist/mnist.sh"
require "$teacher/net.json"
run asr_kd soft-targets --teachers "$teacher" --feats "$data/train.feats.h5" --device "$device" --config "$config" \
  --out "$exp/targets/train.h5"
run asr_kd distill --nj "$nj" --targets "$exp/targets/train.h5" "${sets[@]}" "${student[@]}" --seeds "$seed-$last_seed" \
  --out "$exp/nnet/distilled"
run asr_kd distill --nj "$nj" --teachers "$teacher" "${sets[@]}" "${student[@]}" "${shifted[@]}" \
  --seeds "$seed-$last_seed" --out "$exp/nnet/distilled-shifted"
