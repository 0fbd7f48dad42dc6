#!/usr/bin/env bash
# Data directories of the subsets, a lexicon of their words, and the public language model, if one was asked for.
. "$root/recipes/common/stage.sh"
options=(--out "$exp/data" --train-subsets "$train_subsets" --dev-subsets "$dev_subsets" --test-subsets "$test_subsets"
  --stress "$stress")
[ -z "$corpus" ] || options+=(--corpus "$corpus")
[ -z "$lm" ] || options+=(--lm "$lm")
[ -z "$lexicon" ] || options+=(--lexicon "$lexicon")
run "$python" "$root/data_prep/prepare_librispeech.py" "${options[@]}"
