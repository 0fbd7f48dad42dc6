#!/usr/bin/env bash
# Join isolated digits into connected ones, 3 to 7 words of one speaker with random pauses.
. "$root/recipes/common/stage.sh"
options=(--out "$exp/data" --seed "$seed")
[ -z "$corpus" ] || options+=(--corpus "$corpus")
[ "$any_version" != true ] || options+=(--any-version)
[ -z "$holdout_speaker" ] || options+=(--holdout-speaker "$holdout_speaker")
run "$python" "$root/data_prep/prepare_fsdd.py" "${options[@]}"
