#!/usr/bin/env bash
# Small students at every temperature: with 30 units a layer, 2.5 to 4 was best in the paper; with 300, all above 8 alike.
. "$root/recipes/mnist/mnist.sh"
require "$teacher/net.json"
for dim in ${small_dims//,/ }; do
  run asr_kd sweep --teachers "$teacher" "${sets[@]}" "${plain[@]}" --hidden-dim "$dim" \
    --sweep-soft-weights "$(from_config soft_weight)" --sweep-combinations arithmetic --seeds "$seed-$last_seed" \
    --out "$exp/nnet/small/dim$dim"
done
