#!/usr/bin/env bash
# Tied triphones against monophones as GMM-HMMs, with equal numbers of Gaussians: log-likelihood a frame and WER on
# speech that neither has seen, at fixed scales. fsdd holds out each of its six speakers in turn; mini is spoken anew.
# Usage: benchmarks/triphones.sh [--corpus DIR of fsdd] [--exp DIR] [--nj N]
set -euo pipefail
corpus='' exp=exp/triphones nj=2
while [ $# -gt 0 ]; do
  case $1 in
    --corpus) corpus=$2 ;;
    --exp) exp=$2 ;;
    --nj) nj=$2 ;;
    -h | --help) sed -n '2,4s/^# //p' "$0"; exit 0 ;;
    *) echo "error: unknown option $1; see --help" >&2; exit 2 ;;
  esac
  shift 2
done
. "$(dirname "${BASH_SOURCE[0]}")/../recipes/common/environment.sh"
mkdir -p "$exp"

compare() { # compare NAME DATA_DIR SET SAMPLE_FREQUENCY GAUSSIANS OPTION…: train on train, score SET
  local name=$1 data=$2 set=$3 rate=$4 gauss=$5 hmm=$exp/$1/hmm
  shift 5
  for part in train "$set"; do
    "$python" "$root/data_prep/extract_fbank.py" --kind mfcc --data "$data/$part" --out "$exp/$name/$part.mfcc.h5" \
      --sample-frequency "$rate" --nj "$nj"
  done
  asr_kd train-hmm --feats "$exp/$name/train.mfcc.h5" --data "$data/train" --lexicon "$data/lexicon.txt" \
    --gmm-context triphone --gmm-max-train-utts 0 --gmm-total-gauss "$gauss" --tri-total-gauss "$gauss" "$@" --out "$hmm"
  for context in mono tri; do
    local model=$hmm
    [ $context = tri ] || model=${hmm}_mono
    asr_kd check-hmm --feats "$exp/$name/$set.mfcc.h5" --data "$data/$set" --hmm "$model" --grammar uniform \
      --acwts 0.1 --insertion-penalties 0 | sed "s/^/$name $context: /" | tee -a "$exp/results.txt"
  done
}

: >"$exp/results.txt"
for speaker in george jackson lucas nicolas theo yweweler; do
  "$python" "$root/data_prep/prepare_fsdd.py" ${corpus:+--corpus "$corpus"} --holdout-speaker "$speaker" \
    --out "$exp/fsdd-$speaker/data" --seed 1
  compare "fsdd-$speaker" "$exp/fsdd-$speaker/data" test 8000 1500 --gmm-cmvn speaker
done
"$python" "$root/data_prep/prepare_mini.py" --out "$exp/mini/data" --hours-train 2 --hours-dev 0.05 --hours-test 0.5 \
  --seed 1 --nj "$nj"
compare mini "$exp/mini/data" test 16000 3000
