#!/usr/bin/env bash
# Section 3 of Hinton, Vinyals & Dean 2015: the smaller the student, the lower the best temperature.
usage='Temperature against student size (Hinton, Vinyals & Dean 2015, section 3): students of some units a layer, by the soft
targets of the base'\''s ensemble at some temperatures, beside nets of their size by labels alone on the same schedule.
In the paper (MNIST, no table): with 300 units a layer or more all temperatures above 8 gave fairly similar results; with
30, temperatures from 2.5 to 4 worked significantly better than higher or lower ones.
Options of this experiment:
  --sizes LIST        units a layer (default 30,100,300)
  --temperatures LIST (default 1,2,2.5,4,8,20)
  --split NAME        accuracies are of this set, dev or test (default dev)'
sizes=30,100,300
temperatures=1,2,2.5,4,8,20
split=dev
own_options="sizes temperatures split"
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
. "$root/recipes/paper/nets.sh"

for temperature in ${temperatures//,/ }; do
  soft_targets ${#members[@]} "$temperature" "$out/targets.T$temperature.h5"
done
for size in ${sizes//,/ }; do
  run asr_kd train --nj "$nj" "${sets[@]}" --as-long-as-students --hidden-dim "$size" --seeds "$seeds" --out "$out/units$size/hard"
  kind "$size units, labels" "$out/units$size/hard"
  for temperature in ${temperatures//,/ }; do
    run asr_kd distill --nj "$nj" --targets "$out/targets.T$temperature.h5" "${sets[@]}" "${from_scratch[@]}" ${soft_only[@]+"${soft_only[@]}"} \
      --temperature "$temperature" --hidden-dim "$size" --seeds "$seeds" --out "$out/units$size/T$temperature"
    kind "$size units, T = $temperature" "$out/units$size/T$temperature"
  done
done
print_table
