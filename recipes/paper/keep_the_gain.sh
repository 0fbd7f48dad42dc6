#!/usr/bin/env bash
# Section 4 of Hinton, Vinyals & Dean 2015: how much of an ensemble's gain one net keeps, and what it takes.
usage='Keeping the gain (Hinton, Vinyals & Dean 2015, section 4): how much of the ensemble'\''s gain a student keeps, arm by
arm, and at what cost. An arm is a way of training: start-NAME begins with a member'\''s weights, NAME-xN trains N times as
many epochs as a member, averaged-NAME keeps a high learning rate and takes the mean of the weights of the last steps;
averaged-start-NAME-xN does all three. The best on dev of the members and the arms without a teacher (hard,
hard-views, smoothing) is the baseline that all shares refer to. All other arms have soft targets alone at T = 1, unless
their name says otherwise:
  hard            labels                            soft         soft targets, arithmetic mean
  hard-views      labels, warped windows            views        teachers label the warped windows that the student sees
  smoothing       labels, 10 % of them spread       geometric    geometric mean
  T2, T5          temperature                       mixed        half of the weight on labels
  logits          logits are matched (of T = 5,     conditional  labels where the ensemble is wrong (arXiv:1904.12399)
                  since float16 cuts them at T = 1)
  swap            labels correct the soft targets   born-again   one member is the teacher
  fold            members label only utterances that they were not trained on (they are trained for it: --folds)
  sequence        soft targets in the light of their utterance (asr-kd smooth-targets; the key sequence_weight, or 0.5),
                  those of --extra-feats alone where it is given
  born-again-sequence  one member is the teacher, its soft targets in the light of their utterance
Options of this experiment:
  --arms LIST         (default hard,hard-x3,soft,soft-x3,start-hard,start-soft,start-soft-x3,start-views)
  --teachers N        members of the base that answer together (default all)
  --view-options STR  what `views` does to windows (default "--time-warp 0.2 --freq-warp 0.1"; add --view-share 0.5 for
                      half of them; --online-members N lets N teachers, drawn for every batch, label them; hard-views
                      leaves that out, and --temperature and --combination)
  --extra-feats FILE  features of speech without text, which all arms with soft targets learn from too, in every epoch;
                      take another --out than without, since arms have the same names
  --folds N           of the arm `fold` (default 5)
  --fold-members N    how many are trained for it (default as many as folds: one answers a frame; of twice as many, two)
  --averaged-rate R   learning rate of averaged-NAME (default 0.003)
  --average-share S   of the steps, the last ones, whose weights are averaged then (default 0.7)
  --split NAME        the table is of this set: dev, test, or train, which says how well nets fit it (default dev)'
arms=hard,hard-x3,soft,soft-x3,start-hard,start-soft,start-soft-x3,start-views
teachers=
view_options="--time-warp 0.2 --freq-warp 0.1"
extra_feats=
folds=5
fold_members=
averaged_rate=0.003
average_share=0.7
split=dev
own_options="arms teachers view_options extra_feats folds fold_members averaged_rate average_share split"
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
. "$root/recipes/paper/nets.sh"

teachers=${teachers:-${#members[@]}}
[ "$teachers" -le ${#members[@]} ] || { echo "error: --teachers $teachers: the base has ${#members[@]}" >&2; exit 1; }
ensemble=("${members[@]:0:$teachers}")
member_epochs=$(value_of num_epochs)
read -ra view <<<"${view_options//=/ }" # --key=value is two words, too
view_of_labels=() # what is of teachers is not for a net that has none
for ((n = 0; n < ${#view[@]}; n += 2)); do
  case ${view[n]} in
    --online-members | --temperature | --combination) ;;
    *) view_of_labels+=("${view[@]:n:2}") ;;
  esac
done
[[ ,$arms, != *hard-views* || ${#view_of_labels[@]} -gt 0 ]] || {
  echo "error: --view-options $view_options: says nothing of windows, which arm hard-views needs" >&2
  exit 2
}
starts=()
for seed in "${seed_list[@]}"; do starts+=("${members[(seed - 1) % ${#members[@]}]}"); done

# Soft targets of nets: stored NAME --teachers NET… OPTION…; sets `targets`, the options that name them.
stored() {
  targets=(--targets "$out/targets/$1.h5")
  label "$base/feats/train.fbank.h5" "$out/targets/$1.h5" "${@:2}"
  if [ -n "$extra_feats" ]; then
    label "$extra_feats" "$out/targets/$1-extra.h5" "${@:2}"
    targets+=(--extra-targets "$out/targets/$1-extra.h5")
  fi
}
label() { # label FEATS TARGETS --teachers NET… OPTION…
  run asr_kd soft-targets --feats "$1" --device "$device" --config "$config" --combination arithmetic --temperature 1 \
    "${@:3}" --out "$2"
}

# The last of the stored targets that `targets` names, smoothed: of speech without text, where there is any.
in_sequence() {
  local plain=${targets[${#targets[@]} - 1]} weight
  weight=$(value_of sequence_weight)
  case $weight in 0 | 0.0) weight=0.5 ;; esac
  run asr_kd smooth-targets --targets "$plain" --ali "$base/ali/train.h5" --device "$device" --config "$config" \
    --sequence-weight "$weight" --out "${plain%.h5}-sequence.h5"
  targets[${#targets[@]} - 1]=${plain%.h5}-sequence.h5
}

hard() {
  run asr_kd train --nj "$nj" "${sets[@]}" --seeds "$seeds" --num-epochs "$epochs" "${on_labels[@]}" ${start[@]+"${start[@]}"} \
    --label-smoothing 0 --out "$out/$arm" "$@" # which members may have, and arm smoothing has
}
student() {
  run asr_kd distill --nj "$nj" "${sets[@]}" --seeds "$seeds" --student-epochs "$epochs" --soft-weight 1 --temperature 1 \
    --combination arithmetic "${on_targets[@]}" ${extra_feats:+--extra-feats "$extra_feats"} \
    ${start[@]+"${start[@]}"} --out "$out/$arm" "$@"
}
of_ensemble() { stored "$1" --teachers "${ensemble[@]}" "${@:2}"; }

train_arm() {
  case $kind in
    hard) hard ;;
    hard-views) hard ${view_of_labels[@]+"${view_of_labels[@]}"} ;;
    smoothing) hard --label-smoothing 0.1 ;;
    soft) of_ensemble T1; student "${targets[@]}" ;;
    T[0-9]*) of_ensemble "$kind" --temperature "${kind#T}"; student "${targets[@]}" --temperature "${kind#T}" ;;
    geometric) of_ensemble geometric --combination geometric; student "${targets[@]}" --combination geometric ;;
    mixed) of_ensemble T1; student "${targets[@]}" --soft-weight 0.5 ;;
    logits) of_ensemble T5 --temperature 5; student "${targets[@]}" --temperature 5 --matching logits ;;
    conditional | swap) of_ensemble T1; student "${targets[@]}" --label-use "$kind" ;;
    views) student --teachers "${ensemble[@]}" "${view[@]}" ;;
    sequence) of_ensemble T1; in_sequence; student "${targets[@]}" ;;
    born-again-sequence) stored one --teachers "${members[0]}"; in_sequence; student "${targets[@]}" ;;
    born-again) stored one --teachers "${members[0]}"; student "${targets[@]}" ;;
    fold)
      run asr_kd train-ensemble --nj "$nj" "${sets[@]}" --folds "$folds" --num-members "${fold_members:-$folds}" --out "$out/fold-member"
      stored fold --teachers "$out"/fold-member/seed*/ --out-of-fold
      student "${targets[@]}"
      ;;
    *) echo "error: --arms: there is no arm $arm; see --help" >&2; exit 2 ;;
  esac
}

for arm in ${arms//,/ }; do
  kind=${arm%-x[0-9]*}
  times=1
  [ "$kind" = "$arm" ] || times=${arm##*-x}
  epochs=$((times * member_epochs))
  start=() # whatever the base's students do
  on_labels=(--schedule "$(value_of schedule)" --average-share "$(value_of average_share)")
  on_targets=(--student-schedule null --student-average-share 0)
  if [ "${kind#averaged-}" != "$kind" ]; then
    on_labels=(--schedule constant --average-share "$average_share" --learning-rate "$averaged_rate")
    on_targets=(--student-schedule constant --student-average-share "$average_share")
    on_targets+=(--student-learning-rate "$averaged_rate")
  fi
  kind=${kind#averaged-}
  if [ "${kind#start-}" = "$kind" ]; then
    on_targets+=(--student-start random)
  else
    start=(--initialise "${starts[@]}")
    on_targets+=(--student-start member)
  fi
  kind=${kind#start-}
  train_arm
done
run "$python" "$root/recipes/paper/gain_table.py" --arms "${arms//,/ }" --nets "$out" --seeds "${seed_list[*]}" \
  --members "${ensemble[@]}" --feats "$base/feats/$split.fbank.h5" --ali "$base/ali/$split.h5" --device "$device" \
  --out "$out/keep_the_gain.$split.json"
