# Sourced by recipes/<corpus>/run.sh, which has set `recipe`, `usage`, and its own options as variables above.
# As in Kaldi, a variable that is set there becomes an option: `hours_train=0.5` is `--hours-train 0.5`.
set -euo pipefail

preset=quick
exp=exp/$recipe
stage=1
stop_stage=99
device=auto
seed=1
nj=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
common="corpus exp preset stage stop_stage device seed nj"
corpus=${corpus:-}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# A recipe that has nothing in common with the others sets stage_folders.
stage_names() {
  (cd "$root/recipes" && for folder in ${stage_folders:-common "$recipe"}; do ls "$folder"/[0-9]*.sh; done) |
    sed 's#.*/##; s#\.sh$##' | sort -u
}

preset_names() {
  (cd "$root/recipes/$recipe" && ls ./*.yaml) | xargs -n1 basename -s .yaml | xargs
}

show_usage() {
  cat <<USAGE
Usage: recipes/$recipe/run.sh [options]
$usage
Options of every recipe:
  --corpus DIR        corpus in its public layout (default: made or downloaded)
  --exp DIR           where everything is written (default exp/$recipe)
  --preset NAME       recipes/$recipe/NAME.yaml, one of $(preset_names) (default quick)
  --stage N           first stage to run (default 1)
  --stop-stage N      last stage to run
  --device NAME       auto, cpu or cuda (default auto)
  --seed N            of corpus, HMM and the first net (default 1)
  --nj N              processes (default: all cores)
  --ANY-KEY VALUE     any key of conf/*.yaml, e.g. --temperature 2 --num-members 10
Stages:
$(stage_names | sed 's#^#  #')
USAGE
}

. "$root/recipes/common/options.sh"
echo "# recipes/$recipe/run.sh $*" >&2
parse_options run.sh "$common $own_options" "--out --config" "$@"
check_device
for name in stage stop_stage seed nj; do
  [[ ${!name} =~ ^(0|[1-9][0-9]{0,8})$ ]] || { echo "error: --${name//_/-} ${!name}: expected a whole number" >&2; exit 2; }
done
[ "$nj" -ge 1 ] || { echo "error: --nj $nj: at least one process is needed" >&2; exit 2; }
[ -f "$root/recipes/$recipe/$preset.yaml" ] || { echo "error: --preset $preset: recipes/$recipe has $(preset_names)" >&2; exit 2; }
last_stage=$((10#$(stage_names | sed 's#_.*##' | tail -n 1)))
[ "$stage" -le "$last_stage" ] || { echo "error: --stage $stage: the last stage is $last_stage" >&2; exit 2; }
[ "$stage" -le "$stop_stage" ] || { echo "error: --stop-stage $stop_stage is before --stage $stage" >&2; exit 2; }
if [ -n "$corpus" ]; then
  [ -d "$corpus" ] || { echo "error: --corpus $corpus: no such folder" >&2; exit 2; }
  corpus=$(cd "$corpus" && pwd)
fi

. "$root/recipes/common/environment.sh"
make_folder --exp "$exp"
exp_shown=$exp
exp=$(cd "$exp" && pwd)
lock_folder "$exp"
asr_kd config --config "$root/recipes/$recipe/$preset.yaml" --gmm-seed "$seed" ${overrides[@]+"${overrides[@]}"} \
  --out "$exp/config.yaml" 9>&-

config=$exp/config.yaml
export recipe preset exp exp_shown device seed nj corpus config root clean_suffix
export PYTHONHASHSEED=0
for name in $own_options; do export "${name?}"; done
mkdir -p "$exp/log"
for number in $(stage_names | sed 's#_.*##'); do
  n=$((10#$number))
  if [ "$n" -ge "$stage" ] && [ "$n" -le "$stop_stage" ]; then
    # A recipe's own script takes the place of the common one of the same number.
    scripts=("$root/recipes/$recipe/${number}"_*.sh "$root/recipes/common/${number}"_*.sh)
    script=${scripts[0]}
    [ -f "$script" ] || script=${scripts[1]}
    name=$(basename "$script" .sh)
    echo "# $(date '+%F %T') stage $name" >&2
    export commands=$exp/log/$name.commands
    : >"$commands"
    # The stage has the lock, too: it outlives a run.sh that is killed alone, and a second run must not meet it at work.
    bash "$script" 2>&1 | tee "$exp/log/$name.log" >&2 9>&-
  fi
done
echo "# $(date '+%F %T') done; everything is in $exp" >&2
