#!/usr/bin/env bash
# Small students at every temperature: with 30 units a layer, 2.5 to 4 was best in the paper; with 300, all above 8 alike.
. "$root/recipes/mnist/mnist.sh"
require "$teacher/net.json"
for temperature in $small_temperatures; do
  run asr_kd soft-targets --teachers "$teacher" --feats "$data/train.feats.h5" --device "$device" --config "$config" \
    --temperature "$temperature" --out "$exp/targets/train.T$temperature.h5"
  for dim in ${small_dims//,/ }; do
    run asr_kd distill --nj "$nj" --targets "$exp/targets/train.T$temperature.h5" "${sets[@]}" "${plain[@]}" --hidden-dim "$dim" \
      --student-epochs "$(from_config sweep_epochs)" --seeds "$seed-$last_seed" --out "$exp/nnet/small/dim$dim/T$temperature"
  done
done
