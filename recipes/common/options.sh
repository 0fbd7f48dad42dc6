# Sourced by what a user starts: its options, and the lock of the folder that it writes to.

# parse_options SCRIPT KNOWN REFUSED ARGUMENT…: as in Kaldi, `--its-name value` or `--its-name=value` sets the variable
# its_name, for every name in KNOWN (a list with blanks); one that is true or false before stays so. Any other is taken
# for a configuration key and kept in `overrides`; REFUSED is an error.
overrides=()
parse_options() {
  local script=$1 known=$2 refused=$3 option
  shift 3
  while [ $# -gt 0 ]; do
    case $1 in
      -h | --help) show_usage; exit 0 ;;
      --[a-z]*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
      --[a-z]*) ;;
      *) echo "error: unexpected argument $1; see --help" >&2; exit 2 ;;
    esac
    [[ " $refused " != *" $1 "* ]] || { echo "error: $1 is not for $script; see --help" >&2; exit 2; }
    # A value that begins with -- is the next option, unless it is several words in one, as --view-options takes.
    [[ $# -ge 2 && ($2 != --* || $2 == *" "*) ]] || { echo "error: $1 needs a value; see --help" >&2; exit 2; }
    [[ $2 != "~/"* ]] || set -- "$1" "$HOME/${2#"~/"}" "${@:3}" # which bash leaves alone behind a `=`
    option=${1#--}
    option=${option//-/_}
    if [[ " $known " == *" $option "* ]]; then
      if [[ ${!option-} =~ ^(true|false)$ && ! $2 =~ ^(true|false)$ ]]; then
        echo "error: $1 $2: expected true or false" >&2
        exit 2
      fi
      printf -v "$option" '%s' "$2"
    elif ! grep -q "^$option:" "$root"/conf/*.yaml; then
      echo "error: unknown option $1; see --help, and conf/*.yaml for the keys" >&2
      exit 2
    else
      overrides+=("$1=$2") # in one word, for values such as -2,0,2
    fi
    shift 2
  done
}

check_device() {
  [[ $device =~ ^(auto|cpu|cuda(:[0-9]+)?)$ ]] || { echo "error: --device $device: expected auto, cpu or cuda" >&2; exit 2; }
}

# make_folder OPTION FOLDER
make_folder() {
  mkdir -p "$2" 2>/dev/null || { echo "error: $1 $2: cannot be made a folder" >&2; exit 1; }
}

# One run at a time in a folder; the lock goes with this process and what inherits it, whatever ends them. A run that was
# killed a moment ago may take seconds to go on a machine that is busy, so the lock is asked for again before it is refused.
lock_folder() {
  exec 9>"$1/.lock"
  "$python" - 2>/dev/null <<'PYTHON' || {
import fcntl, time
for attempt in range(100):
    try:
        fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
    except BlockingIOError:
        time.sleep(0.1)
else:
    raise SystemExit(1)
PYTHON
    echo "error: another run is at work in $1, perhaps a stage of one that was stopped; wait for it to end, or stop it" >&2
    exit 1
  }
}
