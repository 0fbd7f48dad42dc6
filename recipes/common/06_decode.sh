#!/usr/bin/env bash
# Words from every system; acoustic scale and insertion penalty are chosen on dev.
. "$root/recipes/common/stage.sh"
last_member=$((seed + $(sed -n 's/^num_members: //p' "$config") - 1))
last_seed=$((seed + $(sed -n 's/^num_seeds: //p' "$config") - 1))
require "$exp/nnet/student/seed$last_seed/net.json" "$exp/graph"

list() { # list FORMAT FIRST LAST: comma-separated nets
  local items=()
  for n in $(seq "$2" "$3"); do items+=("$(printf "$1" "$n")"); done
  (IFS=,; echo "${items[*]}")
}
role=student
[ ! -d "$exp/data/unlabelled" ] || role=control # it has seen speech that the baseline cannot learn from
{
  for n in $(seq "$seed" "$last_member"); do
    echo "- {name: member$n, role: member, nets: [[nnet/member/seed$n]]}"
  done
  echo "- {name: baseline, role: baseline, nets: [$(list '[nnet/member/seed%d]' "$seed" "$last_seed")]}"
  echo "- {name: baseline-long, role: baseline, nets: [$(list '[nnet/baseline-long/seed%d]' "$seed" "$last_seed")]}"
  for mean in arithmetic geometric; do
    echo "- {name: ensemble-$mean, role: ensemble, combination: $mean," \
      "nets: [[$(list 'nnet/member/seed%d' "$seed" "$last_member")]]}"
  done
  echo "- {name: student, role: $role, nets: [$(list '[nnet/student/seed%d]' "$seed" "$last_seed")]}"
} >"$exp/systems.yaml"

run asr_kd decode --systems "$exp/systems.yaml" --graph "$exp/graph" --counts "$exp/ali/ali_train_pdf.counts" \
  --dev-feats "$exp/feats/dev.fbank.h5" --dev-data "$exp/data/dev" \
  --test-feats "$exp/feats/test.fbank.h5" --test-data "$exp/data/test" \
  --device "$device" --nj "$nj" --config "$config" --out "$exp/decode"
