#!/usr/bin/env bash
# The large net with dropout, max-norm and shifted images (67 errors in the paper).
. "$root/recipes/mnist/mnist.sh"
require "$data"/{train,dev}.{feats,ali}.h5
run asr_kd train --nj "$nj" "${sets[@]}" --seeds "$seed" --out "$exp/nnet/teacher"
