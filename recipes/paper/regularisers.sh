#!/usr/bin/env bash
# Section 6 and table 5 of Hinton, Vinyals & Dean 2015: soft targets as regularisers.
usage='Soft targets as regularisers (Hinton, Vinyals & Dean 2015, table 5): nets of some share of the training utterances,
by labels alone, with and without early stopping (the epoch that is best on dev, or the last one), and by the soft
targets of nets of all data, never stopped early. All take as many steps as the base'\''s members.
Options of this experiment:
  --shares LIST       percent of the utterances (default 3,10)
  --teachers N        nets of the base that make the soft targets; the paper has 1 (default 1)
  --split NAME        accuracies are of this set, dev or test (default dev)'
shares=3,10
teachers=1
split=dev
own_options="shares teachers split"
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
. "$root/recipes/paper/nets.sh"

budget=()
given max-steps || budget=(--max-steps "$members_steps")
steps=$members_steps
given max-steps && steps=$(value_of max_steps)
given steps-per-epoch || budget+=(--steps-per-epoch $((steps / 40 > 0 ? steps / 40 : 1)))
soft_targets "$teachers" "$(value_of temperature)" "$out/targets.h5"
run asr_kd train --nj "$nj" "${sets[@]}" "${budget[@]}" --seeds "$seeds" --out "$out/all"
kind "all data, labels" "$out/all" 63.4 58.9
for share in ${shares//,/ }; do
  part=(--train-share "$("$python" -c "print($share / 100)")" --seeds "$seeds")
  paper=(- - - -)
  [ "$share" != 3 ] || paper=(67.3 44.5 65.4 57.0)
  run asr_kd train --nj "$nj" "${sets[@]}" "${budget[@]}" "${part[@]}" --keep-best last --out "$out/hard-$share"
  run asr_kd train --nj "$nj" "${sets[@]}" "${budget[@]}" "${part[@]}" --keep-best frame_acc --out "$out/hard-stopped-$share"
  run asr_kd distill --nj "$nj" --targets "$out/targets.h5" "${sets[@]}" "${budget[@]}" "${part[@]}" \
    "${from_scratch[@]}" ${soft_only[@]+"${soft_only[@]}"} --keep-best last --out "$out/soft-$share"
  kind "$share %, labels, early stopping" "$out/hard-stopped-$share" "${paper[0]}" "${paper[1]}"
  kind "$share %, labels, last epoch" "$out/hard-$share"
  kind "$share %, soft targets, last epoch" "$out/soft-$share" "${paper[2]}" "${paper[3]}"
done
print_table
