# Sourced by the stages: the sets, and what makes a plain net of the configuration.
. "$root/recipes/common/stage.sh"
data=$exp/data
sets=(--feats "$data/train.feats.h5" --ali "$data/train.ali.h5" --dev-feats "$data/dev.feats.h5"
  --dev-ali "$data/dev.ali.h5" --device "$device" --config "$config")
plain=(--dropout 0 --dropout-schedule null --input-dropout 0 --max-norm 0 --image-jitter 0)
student=("${plain[@]}" --hidden-dim "$student_dim")
from_config() { sed -n "s/^$1: //p" "$config"; }
last_seed=$((seed + $(from_config num_seeds) - 1))
teacher=$exp/nnet/teacher/seed$seed
