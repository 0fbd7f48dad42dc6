#!/usr/bin/env bash
# Temperature, weight and mean are chosen on dev, where the configuration gives several; then soft targets are stored, or made online, and students trained.
. "$root/recipes/common/stage.sh"
last_member=$((seed + $(sed -n 's/^num_members: //p' "$config") - 1))
last_seed=$((seed + $(sed -n 's/^num_seeds: //p' "$config") - 1))
teachers=()
for n in $(seq "$seed" "$last_member"); do teachers+=("$exp/nnet/member/seed$n"); done
require "${teachers[@]/%//net.json}"

sets=(--feats "$exp/feats/train.fbank.h5" --ali "$exp/ali/train.h5"
  --dev-feats "$exp/feats/dev.fbank.h5" --dev-ali "$exp/ali/dev.h5" --device "$device" --config "$config")
unlabelled=() # speech without text, if stage 1 made any
[ ! -d "$exp/data/unlabelled" ] || unlabelled=(--extra-feats "$exp/feats/unlabelled.fbank.h5")
require ${unlabelled[1]+"${unlabelled[1]}"}
last_swept=$((seed + $(sed -n 's/^sweep_seeds: //p' "$config") - 1))
run asr_kd sweep --teachers "${teachers[@]}" "${sets[@]}" --seeds "$seed-$last_swept" --out "$exp/sweep"
from=(--teachers "${teachers[@]}")
if ! grep -q '^online_targets: true' "$config"; then
  for set in train ${unlabelled:+unlabelled}; do
    run asr_kd soft-targets --teachers "${teachers[@]}" --feats "$exp/feats/$set.fbank.h5" --device "$device" \
      --config "$config" --config "$exp/sweep/best.yaml" --out "$exp/targets/$set.h5"
  done
  from=(--targets "$exp/targets/train.h5")
  sequence= # whether an HMM sees the soft targets of speech without text
  grep -Eq '^sequence_weight: 0(\.0)?$' "$config" || sequence=yes
  [ -z "$sequence" ] || [ ${#unlabelled[@]} -gt 0 ] || echo "sequence_weight: no untranscribed speech, so not used" >&2
  if [ ${#unlabelled[@]} -gt 0 ]; then
    extra=$exp/targets/unlabelled.h5
    if [ -n "$sequence" ]; then
      run asr_kd smooth-targets --targets "$extra" --ali "$exp/ali/train.h5" --device "$device" --config "$config" \
        --out "${extra%.h5}.sequence.h5"
      extra=${extra%.h5}.sequence.h5
    fi
    unlabelled+=(--extra-targets "$extra")
  fi
  ! grep -q '^student_start: member' "$config" || from+=(--initialise "${teachers[@]:0:$((last_seed - seed + 1))}")
fi
run asr_kd distill --nj "$nj" "${from[@]}" ${unlabelled[@]+"${unlabelled[@]}"} "${sets[@]}" --config "$exp/sweep/best.yaml" \
  --seeds "$seed-$last_seed" --out "$exp/nnet/student"
