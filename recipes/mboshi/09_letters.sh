#!/usr/bin/env bash
# The same nets without words: letters under a letter n-gram, for which no word is unknown.
. "$root/recipes/common/stage.sh"
last_seed=$((seed + $(sed -n 's/^num_seeds: //p' "$config") - 1))
require "$exp/systems.yaml" "$exp"/data/{train,dev,test}_letters/text "$exp/data/lexicon_letters.txt"

run asr_kd train-lm --data "$exp/data/train_letters" --order 4 --out "$exp/letters/lm.arpa.gz"
run asr_kd make-graph --config "$config" --hmm "$exp/hmm" --lexicon "$exp/data/lexicon_letters.txt" \
  --lm "$exp/letters/lm.arpa.gz" --out "$exp/letters/graph"
# Beside the list that it is a part of: nets are named from there.
grep -v 'role: member' "$exp/systems.yaml" >"$exp/systems_letters.yaml"
run asr_kd decode --systems "$exp/systems_letters.yaml" --graph "$exp/letters/graph" \
  --counts "$exp/ali/ali_train_pdf.counts" --dev-feats "$exp/feats/dev.fbank.h5" --dev-data "$exp/data/dev_letters" \
  --test-feats "$exp/feats/test.fbank.h5" --test-data "$exp/data/test_letters" \
  --device "$device" --config "$config" --nj "$nj" --out "$exp/letters/decode"
hyps=()
for name in baseline baseline-long ensemble-arithmetic student; do
  for n in $(seq 1 $((last_seed - seed + 1))); do
    hyp=$exp/letters/decode/$name/seed$n/test.txt
    [ ! -f "$hyp" ] || hyps+=(--hyp "$name=$hyp")
  done
done
run asr_kd score-words --ref "$exp/data/test_letters/text" "${hyps[@]}" --out "$exp/letters/scores"
