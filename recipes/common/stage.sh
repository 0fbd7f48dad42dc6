# Sourced by every numbered stage: strict mode, and the two functions that a stage is made of.
set -euo pipefail
: "${exp:?this stage is run by its run.sh: give run.sh --stage and --stop-stage}"

# Stop with one clear line unless every file is there.
require() {
  for file in "$@"; do
    [ -e "$file" ] || { echo "error: $file is missing; run the stages before this one (--stage 1)" >&2; exit 1; }
  done
}

# Note the command for the report, as it would be typed in the repository's root, then run it.
run() {
  local shown
  shown=$(printf '%q ' "$@")
  shown=${shown//"$python"/python}
  shown=${shown//"$exp"/"$exp_shown"}
  shown=${shown//"$root/"/}
  echo "${shown/#asr_kd /asr-kd }" >>"$commands"
  "$@"
}
