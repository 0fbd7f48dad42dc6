# Sourced by recipes/paper/NAME.sh, which has set `usage`, and its own options as variables named in `own_options`.
# Leaves: base, out, device, nj, config (a file), seed_list (an array), python, and the functions of stage.sh.
set -euo pipefail

name=$(basename "$0" .sh)
base=
out=
seeds=1-3
device=auto
nj=1
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

show_usage() {
  cat <<USAGE
Usage: recipes/paper/$name.sh --base DIR --out DIR [options]
$usage
Prints a Markdown table and writes its rows below OUT; what is there already is not made again.
Options of all of recipes/paper:
  --base DIR          experiment of a recipe for speech (fsdd, mini, mboshi, …) up to stage 4 or later; nothing is written there
  --out DIR           where everything is written
  --seeds LIST        like 1-3 or 1,2,5 (default $seeds)
  --device NAME       auto, cpu or cuda (default auto)
  --nj N              processes where there is a use for them (default 1)
  --ANY-KEY VALUE     any key of conf/*.yaml (default: as the base has it, after its sweep)
USAGE
}

. "$root/recipes/common/options.sh"
shown_arguments="$*"
parse_options "$name.sh" "base out seeds device nj ${own_options:-}" --config "$@"
for option in base out; do
  [ -n "${!option}" ] || { echo "error: --$option is needed; see --help" >&2; exit 2; }
done
check_device
[[ $seeds =~ ^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$ ]] || { echo "error: --seeds $seeds: expected 1-3 or 1,2,5" >&2; exit 2; }
seed_list=()
for part in ${seeds//,/ }; do seed_list+=($(seq "${part%-*}" "${part#*-}")); done
[ -f "$base/config.yaml" ] || { echo "error: --base $base: no config.yaml there; run a recipe such as recipes/fsdd/run.sh first" >&2; exit 1; }

. "$root/recipes/common/environment.sh"
echo "# recipes/paper/$name.sh $shown_arguments" >&2
base=$(cd "$base" && pwd)
make_folder --out "$out/log"
exp_shown=$out
out=$(cd "$out" && pwd)
lock_folder "$out"
config=$out/config.yaml
swept=()
[ ! -f "$base/sweep/best.yaml" ] || swept=(--config "$base/sweep/best.yaml")
asr_kd config --config "$base/config.yaml" ${swept[@]+"${swept[@]}"} ${overrides[@]+"${overrides[@]}"} --out "$config"
exp=$out
commands=$out/log/$name.commands
: >"$commands"
. "$root/recipes/common/stage.sh"

value_of() { sed -n "s/^$1: //p" "$config"; } # value_of KEY: as the configuration of this run has it
