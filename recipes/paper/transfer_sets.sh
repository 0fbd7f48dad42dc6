#!/usr/bin/env bash
# Sections 2 and 3 of Hinton, Vinyals & Dean 2015: what the transfer set may lack.
usage='Transfer sets (Hinton, Vinyals & Dean 2015, sections 2 and 3): students of unlabelled and of partly labelled frames
against labels alone; and students that never see a frame of one phone'\''s states, whose output biases are then repaired:
from unlabelled statistics (mean posterior = teacher'\''s mean soft target, over the training frames), and apart from these,
as published, by one bias that is the best for the labels of the very set that the table is about.
The paper'\''s figures are its MNIST test, the digit 3 omitted: 97.94 %, 98.91 % with the bias chosen on test.
Options of this experiment:
  --phone NAME        the one omitted (default: the most frequent that is not silence)
  --labelled-share X  of the utterances keep their labels (default 0.1)
  --split NAME        accuracies are of this set, dev or test (default dev)'
phone=
labelled_share=0.1
split=dev
own_options="phone labelled_share split"
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
. "$root/recipes/paper/nets.sh"

[ -n "$phone" ] || phone=$("$python" - "$base/ali/train.h5" <<'PYTHON'
import re, sys
import numpy as np
from asr_kd.store.ali import AliReader

ali = AliReader(sys.argv[1])
spoken = ~np.isin(ali.pdf, ali.sil_pdfs) & (ali.pdf >= 0)
names, counts = np.unique([re.sub(r"_[BEIS]$", "", ali.phones[p]) for p in ali.phone[spoken]], return_counts=True)
print(names[counts.argmax()])
PYTHON
)
soft_targets ${#members[@]} "$(value_of temperature)" "$out/targets.h5"
soft_targets ${#members[@]} 1 "$out/targets.T1.h5"
students=(--targets "$out/targets.h5" "${sets[@]}" "${from_scratch[@]}" --seeds "$seeds")
run asr_kd train --nj "$nj" "${sets[@]}" --as-long-as-students --seeds "$seeds" --out "$out/hard"
# Few frames are gone through more often: as many steps as of all frames, and dev is looked at as often.
steps=$(steps_of "$out/hard/seed${seed_list[0]}")
run asr_kd train --nj "$nj" "${sets[@]}" --as-long-as-students --train-share "$labelled_share" --max-steps "$steps" \
  --steps-per-epoch $(((steps + $(value_of student_epochs) - 1) / $(value_of student_epochs))) --seeds "$seeds" --out "$out/hard-part"
# Where labels do not count at all, all three would be one net.
labels=()
given soft-weight || given hard-weight || labels=(--soft-weight 0.5 --hard-weight 0.5)
run asr_kd distill --nj "$nj" "${students[@]}" ${labels[@]+"${labels[@]}"} --out "$out/labelled"
run asr_kd distill --nj "$nj" "${students[@]}" --unlabelled --out "$out/unlabelled"
run asr_kd distill --nj "$nj" "${students[@]}" ${labels[@]+"${labels[@]}"} --labelled-share "$labelled_share" --out "$out/partly"
run asr_kd train --nj "$nj" "${sets[@]}" --as-long-as-students --omit-phones "$phone" --seeds "$seeds" --out "$out/hard-without"
run asr_kd distill --nj "$nj" "${students[@]}" ${soft_only[@]+"${soft_only[@]}"} --omit-phones "$phone" --out "$out/without"
states=$("$python" -c 'import json, sys; print(*json.load(open(sys.argv[1]))["training"]["transfer"]["omitted_pdfs"], sep=",")' \
  "$out/without/seed${seed_list[0]}/net.json")
for seed in "${seed_list[@]}"; do
  repair=(--net "$out/without/seed$seed" --classes "$states" --device "$device" --config "$config")
  run asr_kd correct-bias "${repair[@]}" --feats "$base/feats/train.fbank.h5" --targets "$out/targets.T1.h5" \
    --out "$out/without-corrected/seed$seed"
  run asr_kd correct-bias "${repair[@]}" --feats "$base/feats/$split.fbank.h5" --ali "$base/ali/$split.h5" --test-tuned \
    --out "$out/without-test-tuned/seed$seed"
done
kind "labels" "$out/hard"
kind "labels, $labelled_share of the utterances" "$out/hard-part"
kind "soft targets, all labelled" "$out/labelled"
kind "soft targets, $labelled_share labelled" "$out/partly"
kind "soft targets, unlabelled" "$out/unlabelled"
kind "labels without $phone" "$out/hard-without"
kind "soft targets without $phone" "$out/without" - 97.94
kind "… biases from unlabelled statistics" "$out/without-corrected"
kind "… one bias TUNED ON THIS SET'S LABELS, as published" "$out/without-test-tuned" - 98.91
print_table "$states"
