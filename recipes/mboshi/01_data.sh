#!/usr/bin/env bash
# The official dev set is test; dev is held out of training by sentence. Letters with their tone marks are phones.
. "$root/recipes/common/stage.sh"
options=(--out "$exp/data" --unlabelled-share "$unlabelled_share")
[ -z "$corpus" ] || options+=(--corpus "$corpus")
[ "$any_version" != true ] || options+=(--any-version)
run "$python" "$root/data_prep/prepare_mboshi.py" "${options[@]}"
