#!/usr/bin/env bash
# The ensemble, whose members are the baseline on their own schedule, and the baseline trained for as many epochs as students.
. "$root/recipes/common/stage.sh"
require "$exp"/feats/{train,dev}.fbank.h5 "$exp"/ali/{train,dev}.h5

sets=(--feats "$exp/feats/train.fbank.h5" --ali "$exp/ali/train.h5"
  --dev-feats "$exp/feats/dev.fbank.h5" --dev-ali "$exp/ali/dev.h5" --device "$device" --config "$config")
last_seed=$((seed + $(sed -n 's/^num_seeds: //p' "$config") - 1))
run asr_kd train-ensemble --nj "$nj" "${sets[@]}" --first-seed "$seed" --out "$exp/nnet/member"
run asr_kd train --nj "$nj" "${sets[@]}" --as-long-as-students --seeds "$seed-$last_seed" --out "$exp/nnet/baseline-long"
