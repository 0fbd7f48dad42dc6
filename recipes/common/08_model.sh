#!/usr/bin/env bash
# The student as a directory that recognises by itself, tried on the first recordings of test.
. "$root/recipes/common/stage.sh"
require "$exp/nnet/student/seed$seed/net.json" "$exp/decode/student/scales.json" "$exp/report/results.json"

run asr_kd export --nets "$exp/nnet/student/seed$seed" --hmm "$exp/hmm" --graph "$exp/graph" \
  --counts "$exp/ali/ali_train_pdf.counts" --scales "$exp/decode/student/scales.json" \
  --results "$exp/report/results.json" --name "$recipe" --config "$config" --out "$exp/model"
"$python" "$root/data_prep/data_dir.py" subset --first 3 "$exp/data/test" "$exp/data/test_first3"
run asr_kd recognize --model "$exp/model" --data "$exp/data/test_first3"
