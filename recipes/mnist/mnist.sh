# Sourced by the stages: the sets, and what makes a plain net of the configuration.
. "$root/recipes/common/stage.sh"
data=$exp/data
sets=(--feats "$data/train.feats.h5" --ali "$data/train.ali.h5" --dev-feats "$data/dev.feats.h5"
  --dev-ali "$data/dev.ali.h5" --device "$device" --config "$config")
plain=(--dropout 0 --dropout-schedule null --input-dropout 0 --max-norm 0 --image-jitter 0)
student=("${plain[@]}" --hidden-dim "$student_dim")
from_config() { sed -n "s/^$1: //p" "$config"; }
shifted=(--image-jitter "$(from_config image_jitter)")
deformed=(--image-affine 0.15 --image-elastic 1.4 --image-jitter 0)
last_seed=$((seed + $(from_config num_seeds) - 1))
teacher=$exp/nnet/teacher/seed$seed
small_temperatures=$(from_config sweep_temperatures | tr -d '[] ' | tr , ' ') # 1.0 2.5 ...
