#!/usr/bin/env bash
# Images and digits as features and alignments.
. "$root/recipes/mnist/mnist.sh"
options=(--out "$data" --dev-images "$dev_images")
[ -z "$corpus" ] || options+=(--corpus "$corpus")
[ -z "$num_images" ] || options+=(--num-images "$num_images")
[ "$any_version" != true ] || options+=(--any-version)
run "$python" "$root/data_prep/prepare_mnist.py" "${options[@]}"
