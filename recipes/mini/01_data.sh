#!/usr/bin/env bash
# Synthesise the corpus: clean, then reverberated and noisy; the phones' times are kept as truth.
. "$root/recipes/common/stage.sh"
[ -z "$corpus" ] || { echo "error: --corpus: recipes/mini speaks its own corpus; leave the option out" >&2; exit 1; }
if [ -z "$hours_unlabelled" ]; then
  hours_unlabelled=0
  [ "$preset" != full ] || hours_unlabelled=5.4 # twelve times what is transcribed
fi
run "$python" "$root/data_prep/prepare_mini.py" --out "$exp/data" --hours-train "$hours_train" \
  --hours-dev "$hours_dev" --hours-test "$hours_test" --hours-unlabelled "$hours_unlabelled" --seed "$seed" --nj "$nj"
