#!/usr/bin/env bash
# Filterbanks for the nets; MFCCs of the audio that is aligned (clean, where the recipe has such a copy).
. "$root/recipes/common/stage.sh"
require "$exp"/data/{train,dev,test}/wav.scp
sets=(train dev test)
[ ! -d "$exp/data/unlabelled" ] || sets+=(unlabelled) # speech that students alone learn from
data=() tables=()
for set in "${sets[@]}"; do
  data+=("$exp/data/$set")
  tables+=("$exp/feats/$set.fbank.h5")
done

from_config() { sed -n "s/^$1: //p" "$config"; }
# All sets in one process each: loading torch takes longer than the features of a small set.
run "$python" "$root/data_prep/extract_fbank.py" --data "${data[@]}" --out "${tables[@]}" --nj "$nj" \
  --sample-frequency "$(from_config sample_frequency)" --num-mel-bins "$(from_config num_mel_bins)" \
  --frame-length "$(from_config frame_length)" --frame-shift "$(from_config frame_shift)" \
  --low-freq "$(from_config low_freq)" --high-freq="$(from_config high_freq)" \
  --snip-edges "$(from_config snip_edges)" --dtype "$(from_config feats_dtype)"
run "$python" "$root/data_prep/extract_fbank.py" --kind mfcc --data "$exp"/data/{train,dev,test}"$clean_suffix" \
  --out "$exp"/feats/{train,dev,test}.mfcc.h5 --nj "$nj" --sample-frequency "$(from_config sample_frequency)" \
  --frame-length "$(from_config frame_length)" --frame-shift "$(from_config frame_shift)" \
  --snip-edges "$(from_config snip_edges)"
