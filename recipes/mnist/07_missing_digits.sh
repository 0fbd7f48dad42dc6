#!/usr/bin/env bash
# Transfer sets without the digit 3, and of 7s and 8s only; then their biases corrected from images without labels: the
# mean posteriors of these digits over the training images become the teacher's.
. "$root/recipes/mnist/mnist.sh"
require "$exp/targets/train.h5"
students=(--targets "$exp/targets/train.h5" "${sets[@]}" "${student[@]}" --seeds "$seed-$last_seed")
run asr_kd distill --nj "$nj" "${students[@]}" --omit-phones 3 --out "$exp/nnet/without3"
run asr_kd distill --nj "$nj" "${students[@]}" --only-pdfs 7,8 --out "$exp/nnet/only78"

run asr_kd soft-targets --teachers "$teacher" --feats "$data/train.feats.h5" --device "$device" --config "$config" \
  --temperature 1 --out "$exp/targets/train.T1.0.h5"
for s in $(seq "$seed" "$last_seed"); do
  for name in without3:3 only78:7,8; do
    run asr_kd correct-bias --net "$exp/nnet/${name%:*}/seed$s" --classes "${name#*:}" --feats "$data/train.feats.h5" \
      --targets "$exp/targets/train.T1.0.h5" --device "$device" --config "$config" \
      --out "$exp/nnet/${name%:*}-corrected/seed$s"
  done
done
