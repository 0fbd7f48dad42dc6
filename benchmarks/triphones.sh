#!/usr/bin/env bash
# Tied triphones against monophones as GMM-HMMs, with equal numbers of Gaussians: log-likelihood a frame, and WER with
# paired tests. Acoustic scale and insertion penalty of each are chosen on dev; test is decoded once. Three comparisons:
#   folds     fsdd, speakers that were heard: ten folds, so that each of the 3000 digits is tested once
#   speakers  fsdd, a speaker that was not heard: each of the six in turn
#   mini      two hours of the embedded corpus, voices that were not heard
# Usage: benchmarks/triphones.sh [--corpus DIR of fsdd] [--exp DIR] [--nj N] [--gauss N] [--only folds|speakers|mini]
set -euo pipefail
corpus='' exp=exp/triphones nj=2 gauss='' only='folds speakers mini'
while [ $# -gt 0 ]; do
  case $1 in
    --corpus) corpus=$2 ;;
    --exp) exp=$2 ;;
    --nj) nj=$2 ;;
    --gauss) gauss=$2 ;;
    --only) only=$2 ;;
    -h | --help) sed -n '2,7s/^# //p' "$0"; exit 0 ;;
    *) echo "error: unknown option $1; see --help" >&2; exit 2 ;;
  esac
  shift 2
done
. "$(dirname "${BASH_SOURCE[0]}")/../recipes/common/environment.sh"

compare() { # compare WHAT PART SAMPLE_FREQUENCY GAUSSIANS OPTION…: train both on PART's train, tune on dev, decode test
  local what=$1 part=$2 rate=$3 gauss=$4 here=$exp/$1/$2 context model scales
  shift 4
  for set in train dev test; do
    "$python" "$root/data_prep/extract_fbank.py" --kind mfcc --data "$here/data/$set" --out "$here/$set.mfcc.h5" \
      --sample-frequency "$rate" --nj "$nj"
  done
  asr_kd train-hmm --feats "$here/train.mfcc.h5" --data "$here/data/train" --lexicon "$here/data/lexicon.txt" \
    --gmm-context triphone --gmm-max-train-utts 0 --gmm-total-gauss "$gauss" --tri-total-gauss "$gauss" "$@" \
    --out "$here/hmm"
  for context in mono tri; do
    model=$here/hmm
    [ $context = tri ] || model=$here/hmm_mono
    asr_kd check-hmm --feats "$here/dev.mfcc.h5" --data "$here/data/dev" --hmm "$model" --grammar uniform |
      tee "$here/$context.dev.txt"
    scales=$(sed -n 's/.*scale \(.*\), insertion penalty \(.*\)/--acwts \1 --insertion-penalties=\2/p' "$here/$context.dev.txt")
    # shellcheck disable=SC2086
    asr_kd check-hmm --feats "$here/test.mfcc.h5" --data "$here/data/test" --hmm "$model" --grammar uniform $scales \
      --hyps "$here/$context.hyp" >"$here/$context.test.txt"
    sed "s/^/$part $context: /" "$here/$context.test.txt" | tee -a "$exp/$what/results.txt"
    sed "s/^/$part-/" "$here/$context.hyp" >>"$exp/$what/$context.hyp"
  done
  sed "s/^/$part-/" "$here/data/test/text" >>"$exp/$what/ref"
}

for what in $only; do
  mkdir -p "$exp/$what"
  rm -f "$exp/$what/"{results.txt,ref,mono.hyp,tri.hyp}
  case $what in
    folds)
      for fold in 0 1 2 3 4 5 6 7 8 9; do
        "$python" "$root/data_prep/prepare_fsdd.py" ${corpus:+--corpus "$corpus"} --fold $fold \
          --out "$exp/folds/$fold/data" --seed 1
        compare folds $fold 8000 "${gauss:-1500}" --gmm-cmvn speaker
      done ;;
    speakers)
      for speaker in george jackson lucas nicolas theo yweweler; do
        "$python" "$root/data_prep/prepare_fsdd.py" ${corpus:+--corpus "$corpus"} --holdout-speaker $speaker \
          --out "$exp/speakers/$speaker/data" --seed 1
        compare speakers $speaker 8000 "${gauss:-1500}" --gmm-cmvn speaker
      done ;;
    mini)
      "$python" "$root/data_prep/prepare_mini.py" --out "$exp/mini/2h/data" --hours-train 2 --hours-dev 0.1 \
        --hours-test 0.5 --seed 1 --nj "$nj"
      compare mini 2h 16000 "${gauss:-3000}" ;;
    *) echo "error: --only $what: choose folds, speakers or mini" >&2; exit 2 ;;
  esac
  asr_kd score-words --ref "$exp/$what/ref" --hyp "mono=$exp/$what/mono.hyp" --hyp "tri=$exp/$what/tri.hyp" \
    --out "$exp/$what/scores" | tee -a "$exp/$what/results.txt"
done
