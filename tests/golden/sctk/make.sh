#!/bin/bash
# What Debian's sctk 2.4.10 (sclite 2.10, sc_stats 1.3) makes of the random files here; run in this folder.
set -e
counts() { # REF FORMAT HYP FORMAT OPTIONS…: "utterance correct sub del ins" of each, in sclite's order
  sctk sclite -s "${@:5}" -r "$1" "$2" -h "$3" "$4" sys -o pralign -O "$tmp" >"$tmp/log" 2>&1
  awk '/^id: /{id = $2} /^Scores:/{print id, $6, $7, $8, $9}' "$tmp/$3.pra" | tr -d '()'
}
tmp=$(mktemp -d)
trap 'rm -r "$tmp"' EXIT
counts plain.ref.trn trn plain.a.trn trn -i spu_id >plain.counts
counts marked.ref.trn trn marked.a.trn trn -i spu_id -D >marked.counts
counts times.ref.stm stm times.a.ctm ctm -D >stm.counts
counts times.ref.ctm ctm times.a.ctm ctm >ctm.counts
counts times.ref.ctm ctm times.a.ctm ctm -T >ctm_by_times.counts
counts plain.ref.trn trn plain.a.trn trn -i spu_id -c >chars.counts
for s in a b; do
  sctk sclite -s -i spu_id -r plain.ref.trn trn -h plain.$s.trn trn $s -o sgml stdout -f 0
done | sctk sc_stats -p -t mapsswe -v -n - | grep MTCH_PR_RESULTS >mapsswe
