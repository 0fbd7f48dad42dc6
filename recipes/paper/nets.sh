# Sourced after common.sh by experiments whose table has a row for every kind of net: regularisers, transfer_sets,
# temperature_size. Leaves: sets (options of what trains), members (folders), members_steps, split.
require "$base"/feats/{train,"$split"}.fbank.h5 "$base"/ali/{train,"$split"}.h5 "$base/feats/dev.fbank.h5" "$base/ali/dev.h5"
sets=(--feats "$base/feats/train.fbank.h5" --ali "$base/ali/train.h5"
  --dev-feats "$base/feats/dev.fbank.h5" --dev-ali "$base/ali/dev.h5" --device "$device" --config "$config")
shopt -s nullglob
members=("$base"/nnet/member/seed*/net.json)
shopt -u nullglob
[ ${#members[@]} -gt 0 ] || { echo "error: --base $base: no nets in nnet/member; run stage 4 there first" >&2; exit 1; }
mapfile -t members < <(printf '%s\n' "${members[@]%/net.json}" | sort -V) # seed2 before seed10

# Steps that the net in a folder took: steps_of FOLDER.
steps_of() {
  "$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["training"]["history"][-1]["step"])' "$1/net.json"
}
members_steps=$(steps_of "${members[0]}")

# Whether a configuration key was given to this script.
given() { [[ " ${overrides[*]-} " == *" --$1="* ]]; }

# Options that leave the labels out of the loss, unless weights were given.
soft_only=()
given soft-weight || given hard-weight || soft_only=(--soft-weight 1)

# Students of these experiments know no more than nets of labels do when they begin, whatever the base's students start
# from: a member has the base's shape, and has seen all frames.
! given student-start || { echo "error: --student-start: the experiment says what its students start from" >&2; exit 2; }
from_scratch=(--student-start random)

# The first so many members' soft targets of the training set at a temperature: soft_targets NUMBER TEMPERATURE FILE.
soft_targets() {
  run asr_kd soft-targets --teachers "${members[@]:0:$1}" --feats "$base/feats/train.fbank.h5" --device "$device" \
    --config "$config" --temperature "$2" --out "$3"
}

kinds=()
# A row of the table: kind NAME FOLDER [PAPER'S TRAIN ACCURACY] [PAPER'S TEST ACCURACY].
kind() { kinds+=("$(printf '%s\t%s\t%s\t%s' "$1" "$2" "${3:--}" "${4:--}")"); }

# Count the errors of all nets of all kinds on the split, and print the table: print_table [STATES].
print_table() {
  local nets=() line folder seed
  for line in "${kinds[@]}"; do
    folder=$(cut -f 2 <<<"$line")
    for seed in "${seed_list[@]}"; do nets+=("$folder/seed$seed"); done
  done
  printf '%s\n' "${kinds[@]}" >"$out/kinds.tsv"
  run asr_kd count-errors --nets "${nets[@]}" --feats "$base/feats/$split.fbank.h5" --ali "$base/ali/$split.h5" \
    --device "$device" --config "$config" --out "$out/errors.$split.json" >&2
  "$python" "$root/recipes/paper/net_table.py" --kinds "$out/kinds.tsv" --errors "$out/errors.$split.json" \
    --states "${1:-}" --out "$out/$name.json"
}
