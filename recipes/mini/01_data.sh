#!/usr/bin/env bash
# Synthesise the corpus: clean, then reverberated and noisy; the phones' times are kept as truth.
. "$root/recipes/common/stage.sh"
[ -z "$corpus" ] || { echo "error: --corpus: recipes/mini speaks its own corpus; leave the option out" >&2; exit 1; }
if [ "$preset" = full ]; then
  defaults=(0.25 2 5.4) # of the last, twelve times what is transcribed
else
  defaults=(0.08 0.15 0)
fi
hours_dev=${hours_dev:-${defaults[0]}} hours_test=${hours_test:-${defaults[1]}} hours_unlabelled=${hours_unlabelled:-${defaults[2]}}
run "$python" "$root/data_prep/prepare_mini.py" --out "$exp/data" --hours-train "$hours_train" \
  --hours-dev "$hours_dev" --hours-test "$hours_test" --hours-unlabelled "$hours_unlabelled" --seed "$seed" --nj "$nj"
