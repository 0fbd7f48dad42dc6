#!/usr/bin/env bash
# The smaller net on labels alone, with no regulariser (146 errors in the paper); and on images that are shifted.
. "$root/recipes/mnist/mnist.sh"
require "$data"/{train,dev}.{feats,ali}.h5
labels=("${sets[@]}" "${student[@]}" --as-long-as-students --seeds "$seed-$last_seed")
run asr_kd train --nj "$nj" "${labels[@]}" --out "$exp/nnet/plain"
run asr_kd train --nj "$nj" "${labels[@]}" "${shifted[@]}" --out "$exp/nnet/plain-shifted"
