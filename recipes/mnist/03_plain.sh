#!/usr/bin/env bash
# The smaller net on labels alone, with no regulariser (146 errors in the paper).
. "$root/recipes/mnist/mnist.sh"
require "$data"/{train,dev}.{feats,ali}.h5
run asr_kd train "${sets[@]}" "${student[@]}" --as-long-as-students --seeds "$seed-$last_seed" --out "$exp/nnet/plain"
