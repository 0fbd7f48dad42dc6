#!/usr/bin/env bash
# Section 5 of Hinton, Vinyals & Dean 2015, and what it left open: the specialists distilled back into one net.
usage='Specialists beside a generalist (Hinton, Vinyals & Dean 2015, section 5): a net of the base, the same with
specialists by three clusterings, and a plain ensemble that took as many frames to train; accuracy by the number of
specialists that cover a state; and, which the paper left open, both distilled into one net of the generalist'\''s size.
All is scored on dev. The generalist of seed N is the base'\''s member N, its ensemble members N, N+1, ... of the base.
Options of this experiment:
  --clusterings LIST  of kmeans, confusions, random; the first is distilled (default all three, in this order)'
clusterings=kmeans,confusions,random
own_options="clusterings"
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

clusterings=${clusterings//,/ }
first_clustering=${clusterings%% *}
members=("$base"/nnet/member/seed*/net.json)
require "$base"/feats/{train,dev}.fbank.h5 "$base"/ali/{train,dev}.h5 "$base/ali/ali_train_pdf.counts" "$base/graph"
for seed in "${seed_list[@]}"; do require "$base/nnet/member/seed$seed/net.json"; done
sets=(--feats "$base/feats/train.fbank.h5" --ali "$base/ali/train.h5"
  --dev-feats "$base/feats/dev.fbank.h5" --dev-ali "$base/ali/dev.h5" --device "$device" --config "$config")

size=()
if [ "$(value_of specialist_size)" = null ]; then
  # Half as many states again as a partition gives each, so that some are covered twice.
  size=(--specialist-size "$("$python" - "${members[0]}" "$(value_of num_specialists)" <<'PYTHON'
import json, math, sys
num_pdfs = json.load(open(sys.argv[1]))["labels"]["num_pdfs"]
print(min(math.ceil(1.5 * num_pdfs / int(sys.argv[2])), num_pdfs - 1))
PYTHON
  )")
fi
for clustering in $clusterings; do
  for seed in "${seed_list[@]}"; do
    run asr_kd train-specialists --generalist "$base/nnet/member/seed$seed" "${sets[@]}" --clustering "$clustering" \
      ${size[@]+"${size[@]}"} --seed "$seed" --nj "$nj" --out "$out/$clustering/seed$seed"
  done
done

# Who answers together: systems.yaml, the plain ensembles having as many members as the specialists' frames pay for.
"$python" - "$base" "$out" "$clusterings" "${seed_list[@]}" <<'PYTHON'
import json, re, sys
from pathlib import Path

base, out, clusterings, seeds = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3].split(), sys.argv[4:]

def frames(folder):
    return sum(row["num_frames"] for row in json.loads((folder / "net.json").read_text())["training"]["history"])

def specialists(clustering, seed):
    folder = out / clustering / f"seed{seed}"
    num = len(json.loads((folder / "specialists.json").read_text())["classes"])
    return [folder / f"spec{number}" for number in range(1, num + 1)]

member = lambda number: base / "nnet/member" / f"seed{number}"
numbers = sorted(int(re.search(r"\d+$", path.name)[0]) for path in base.glob("nnet/member/seed*") if (path / "net.json").exists())
cost = sum(frames(each) for seed in seeds for each in specialists(clusterings[0], seed)) / sum(frames(member(s)) for s in seeds)
wanted = max(2, round(1 + cost))
if wanted > len(numbers):
    print(f"# the specialists' frames pay for {wanted} members, the base has {len(numbers)}", file=sys.stderr)
def ensemble(seed):
    begin = numbers.index(int(seed))
    return [member((numbers + numbers)[begin + offset]) for offset in range(min(wanted, len(numbers)))]

entry = lambda name, role, nets, combination=None: {"name": name, "role": role, "nets": [[str(net) for net in each] for each in nets], **({"combination": combination} if combination else {})}
teachers = [entry("generalist", "baseline", [[member(s)] for s in seeds])]
teachers += [entry(f"specialists-{c}", "specialists", [[member(s), *specialists(c, s)] for s in seeds], "specialists") for c in clusterings]
teachers.append(entry("ensemble", "ensemble", [ensemble(s) for s in seeds], "arithmetic"))
students = [entry(f"{name}-distilled", "student", [[out / "student" / name / f"seed{s}"] for s in seeds]) for name in ("specialists", "ensemble")]
(out / "systems.yaml").write_text(json.dumps(teachers + students, indent=1))  # JSON is YAML
for number, seed in enumerate(seeds):
    for name, system in (("specialists", teachers[1]), ("ensemble", teachers[-1])):
        (out / f"teachers-{name}-{seed}").write_text("\n".join(system["nets"][number]) + "\n")
PYTHON

for seed in "${seed_list[@]}"; do
  start=()
  [ "$(value_of student_start)" = random ] || start=(--initialise "$base/nnet/member/seed$seed")
  for name in specialists ensemble; do
    mapfile -t teachers <"$out/teachers-$name-$seed"
    combination=arithmetic
    [ $name = ensemble ] || combination=specialists
    run asr_kd soft-targets --teachers "${teachers[@]}" --combination $combination --feats "$base/feats/train.fbank.h5" \
      --device "$device" --config "$config" --out "$out/targets/$name-seed$seed.h5"
    run asr_kd distill --nj "$nj" --targets "$out/targets/$name-seed$seed.h5" "${sets[@]}" --combination $combination \
      ${start[@]+"${start[@]}"} --seeds "$seed" --out "$out/student/$name"
  done
done

dev=(--dev-feats "$base/feats/dev.fbank.h5" --dev-data "$base/data/dev")
run asr_kd decode --systems "$out/systems.yaml" --graph "$base/graph" --counts "$base/ali/ali_train_pdf.counts" \
  "${dev[@]}" "${dev[@]/#--dev/--test}" --device "$device" --config "$config" --out "$out/decode"
run asr_kd score --systems "$out/systems.yaml" --decoded "$out/decode" --split dev --feats "$base/feats/dev.fbank.h5" \
  --ali "$base/ali/dev.h5" --data "$base/data/dev" --device "$device" --config "$config" --out "$out/scores"

"$python" - "$out" <<'PYTHON'
import json, sys
from pathlib import Path

from asr_kd.scoring.estimates import FRAME_METRICS, WORD_METRICS, Estimates
from asr_kd.scoring.system_list import read_systems
from asr_kd.scoring.systems import SystemScores

out = Path(sys.argv[1])
specs = {spec.name: spec for spec in read_systems(out / "systems.yaml")}
systems = {name: SystemScores.load(out / "scores" / f"{name}.json") for name in specs}
estimates = Estimates(list(systems.values()), FRAME_METRICS | WORD_METRICS)
frames = {name: sum(row["num_frames"] for seed in spec.cards() for card in seed for row in card["training"]["history"]) for name, spec in specs.items()}
rows = [{"system": "paper, JFT: generalist", "frame_accuracy": 25.0}, {"system": "paper, JFT: + 61 specialists", "frame_accuracy": 26.1, "difference": 1.1, "relative": 4.4}]
for name, system in systems.items():
    value = estimates.estimate(system, "frame_accuracy")["value"]
    row = {"system": name, "num_nets": system.num_members, "train_frames": frames[name] / frames["generalist"], "frame_accuracy": value,
           "cross_entropy": estimates.estimate(system, "cross_entropy")["value"], "wer": estimates.estimate(system, "wer")["value"]}
    if name != "generalist":
        test = estimates.compare(system, systems["generalist"], "frame_accuracy")
        base = value - test["difference"]
        row |= {"difference": test["difference"], "ci95": test["ci95"], "p_value": test["p_value"], "relative": 100 * test["difference"] / base}
    rows.append(row)
(out / "specialists.json").write_text(json.dumps(rows, indent=1))

def cell(row, key, form, end=""):
    return "–" if row.get(key) is None else f"{row[key]:{form}}{end}"

print("| system | nets | frames trained on, in generalists | frame accuracy | over the generalist | relative | 95 % interval | cross-entropy | WER |")
print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
for row in rows:
    interval = "–" if not row.get("ci95") else f"{row['ci95'][0]:+.2f} to {row['ci95'][1]:+.2f}"
    print("|", " | ".join([row["system"], cell(row, "num_nets", "d"), cell(row, "train_frames", ".2f"), cell(row, "frame_accuracy", ".2f", " %"),
          cell(row, "difference", "+.2f"), cell(row, "relative", "+.1f", " %"), interval, cell(row, "cross_entropy", ".3f"), cell(row, "wer", ".2f", " %")]), "|")
PYTHON

generalists=("${seed_list[@]/#/$base/nnet/member/seed}")
for clustering in $clusterings; do
  printf '\n%s, by the number of specialists that cover a state (paper, JFT: +3.4 %% relative at 1, +16.1 %% at 10 and more):\n\n' "$clustering"
  run asr_kd specialist-coverage --generalists "${generalists[@]}" --specialists "${seed_list[@]/#/$out/$clustering/seed}" \
    --feats "$base/feats/dev.fbank.h5" --ali "$base/ali/dev.h5" --device "$device" --config "$config" \
    --out "$out/coverage-$clustering.json"
done
