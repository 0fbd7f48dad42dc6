#!/usr/bin/env bash
# Beyond Hinton, Vinyals & Dean 2015: compression that is not of shape alone, as Distiller combined it with distillation.
usage='Compression with and without distillation: nets that are narrower, shallower, pruned, of 8 and of 4 bits, each trained
by labels alone and by the soft targets of the base'\''s ensemble (of full precision) too, on the same schedule. The table
has parameters, bytes, the time of a frame on one CPU core, frame accuracy and WER, and what distillation gains.
Weights of the two terms of the loss: --soft-weight and --hard-weight, any of 0 or more.
Options of this experiment:
  --kinds LIST        of full, narrow (half the units), shallow (one hidden layer), pruned50 (two digits, percent), int8, int4, and
                      of these joined by + (default full,narrow,shallow,pruned50,pruned80,pruned90,int8,int4,pruned80+int8)
  --rounds N          rounds of measuring the time of a frame (default 20)
  --split NAME        accuracies and WER are of this set, dev or test (default dev); scales are chosen on dev'
kinds=full,narrow,shallow,pruned50,pruned80,pruned90,int8,int4,pruned80+int8
rounds=20
split=dev
own_options="kinds rounds split"
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
kind_list=${kinds//,/ }
[[ $kinds =~ ^[a-z0-9]+([+,][a-z0-9]+)*$ ]] || { echo "error: --kinds $kinds: expected names joined by + or commas" >&2; exit 2; }

# Configuration of a kind: options_of KIND.
options_of() {
  local part twice
  # Of widths, depths, prunings and quantizations a net has one each.
  twice=$(sed 's/int8/int4/g; s/pruned[1-9][0-9]/pruned/g' <<<"${1//+/$'\n'}" | sort | uniq -d)
  [ -z "$twice" ] || { echo "error: --kinds $1: joins two of one sort; see --help" >&2; exit 2; }
  for part in ${1//+/ }; do
    case $part in
      full) ;;
      narrow) echo --hidden-dim $(($(value_of hidden_dim) / 2)) ;;
      shallow) echo --num-hidden-layers 1 ;;
      pruned[1-9][0-9]) echo --prune-sparsity "0.${part#pruned}" ;;
      int8 | int4) echo --quantize "$part" ;;
      *) echo "error: --kinds $1: no such compression; see --help" >&2; exit 2 ;;
    esac
  done
}
for kind in $kind_list; do options_of "$kind" >/dev/null; done
# A net has one name: that its options are another one's is seen in whatever order they are joined.
nets=$(for kind in $kind_list; do echo "net $(options_of "$kind" | sort | xargs)"; done)
[ -z "$(sort <<<"$nets" | uniq -d)" ] || { echo "error: --kinds $kinds: names one net twice" >&2; exit 2; }
[[ $split = dev || $split = test ]] || { echo "error: --split $split: expected dev or test" >&2; exit 2; }
. "$root/recipes/paper/nets.sh" # takes `kinds` for its own
require "$base/ali/ali_train_pdf.counts" "$base/graph" "$base"/data/{dev,"$split"}

temperature=$(value_of temperature)
soft_targets ${#members[@]} "$temperature" "$out/targets.h5"
folders=()
# The rates fall as those on labels do: no mean of weights that are not yet pruned.
schedule=(--student-schedule null --student-average-share 0)
for kind in $kind_list; do
  options=($(options_of "$kind"))
  run asr_kd train --nj "$nj" "${sets[@]}" --as-long-as-students ${options[@]+"${options[@]}"} --seeds "$seeds" --out "$out/labels/$kind"
  run asr_kd distill --nj "$nj" --targets "$out/targets.h5" "${schedule[@]}" "${sets[@]}" "${from_scratch[@]}" ${options[@]+"${options[@]}"} \
    --seeds "$seeds" --out "$out/distilled/$kind"
  folders+=("$out/labels/$kind/seed${seed_list[0]}")
done

table() {
  run "$python" "$root/recipes/paper/compression_table.py" --nets "$out" --kinds $kind_list --seeds "${seed_list[@]}" "$@"
}
table --teachers "${members[@]}" --systems "$out/systems.yaml"
spoken=(--dev-feats "$base/feats/dev.fbank.h5" --dev-data "$base/data/dev"
  --test-feats "$base/feats/$split.fbank.h5" --test-data "$base/data/$split")
run asr_kd decode --systems "$out/systems.yaml" --graph "$base/graph" --counts "$base/ali/ali_train_pdf.counts" \
  "${spoken[@]}" --device "$device" --config "$config" --out "$out/decode.$split"
run asr_kd score --systems "$out/systems.yaml" --decoded "$out/decode.$split" --split "$split" \
  --feats "$base/feats/$split.fbank.h5" --ali "$base/ali/$split.h5" --data "$base/data/$split" --device "$device" \
  --config "$config" --out "$out/scores.$split"
run "$python" "$root/benchmarks/compression.py" --full "${members[0]}" --nets "${folders[@]}" --rounds "$rounds" \
  --out "$out/speed.json" >&2
table --scores "$out/scores.$split" --speed "$out/speed.json" --out "$out/compression.$split.json"
