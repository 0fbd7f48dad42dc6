#!/usr/bin/env bash
# HMM states for every frame, the states' counts (priors), and the decoding graph.
. "$root/recipes/common/stage.sh"
require "$exp"/feats/{train,dev,test}.{mfcc,fbank}.h5 "$exp/data/lexicon.txt"

run asr_kd train-hmm --config "$config" --feats "$exp/feats/train.mfcc.h5" --data "$exp/data/train$clean_suffix" \
  --lexicon "$exp/data/lexicon.txt" --out "$exp/hmm"
# Words of dev and test that training lacks are spelled for the alignment; the graph below never knows them.
spelled=()
[ ! -f "$exp/data/lexicon_align.txt" ] || spelled=(--lexicon "$exp/data/lexicon_align.txt")
for set in train dev test; do
  counts=()
  [ $set != train ] || counts=(--counts "$exp/ali/ali_train_pdf.counts")
  run asr_kd align --config "$config" --feats "$exp/feats/$set.mfcc.h5" --data "$exp/data/$set$clean_suffix" --hmm "$exp/hmm" \
    --fit "$exp/feats/$set.fbank.h5" --out "$exp/ali/$set.h5" ${counts[@]+"${counts[@]}"} \
    ${spelled[@]+"${spelled[@]}"} --nj "$nj"
done
lm=()
if [ -e "$exp/data/lm.arpa.gz" ]; then
  lm=(--lm "$exp/data/lm.arpa.gz") # the data stage was given one
elif grep -qx 'grammar: ngram' "$config"; then
  vocabulary=$exp/data/words.txt # where the lexicon has words that the grammar must not know
  [ -e "$vocabulary" ] || vocabulary=$exp/data/lexicon.txt
  run asr_kd train-lm --config "$config" --data "$exp/data/train" --vocabulary "$vocabulary" --out "$exp/lm.arpa.gz"
  lm=(--lm "$exp/lm.arpa.gz")
fi
run asr_kd make-graph --config "$config" --hmm "$exp/hmm" --data "$exp/data/train" ${lm[@]+"${lm[@]}"} --out "$exp/graph"
if [ -f "$exp/data/train$clean_suffix/truth.ctm" ]; then
  for set in train dev test; do
    run asr_kd check-boundaries --ali "$exp/ali/$set.h5" --truth "$exp/data/$set$clean_suffix/truth.ctm"
  done
fi
