#!/usr/bin/env bash
# Evaluates a model unpruned, then pruned, and prints the two beside each other.
#
#   bash prune_compare.sh [flags of 'anchorprune eval']
#
# The results go to prune_compare/unpruned/ and prune_compare/pruned/ in the current folder.
# Pruning flags (--strategy, --k_anchors, --prune_layer, ...) act in the pruned run only.
# Without a model and a data set it runs the demo that comes with anchorprune.
set -euo pipefail

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
python=$here/.venv/bin/python
[[ -x $python ]] || python=python3
template='{dataset}_{pretrained}_{model}_{language}_{task}.json'

demo=yes
skip=no
attention=no
unpruned=()
for flag in "$@"; do
  case $flag in
    -h | --help)
      sed -n '2,/^set /{s/^# \{0,1\}//p;}' "$0"
      exit 0
      ;;
    --mod* | --pret* | --dat*) demo=no ;;
    --skip_e*) skip=yes ;;
    --ex*) attention=yes ;;
  esac
  # argparse takes --out for --output, and --enable for --enable_pruning.
  if [[ $flag == --o* && --output == "${flag%%=*}"* || $flag == --attention_o* ]]; then
    echo "$(basename "$0"): $flag: the results have their places under prune_compare/; leave it out" >&2
    exit 2
  fi
  [[ $flag == --e* && --enable_pruning == "$flag"* ]] || unpruned+=("$flag")
done
if [[ $demo == yes ]]; then
  set -- --model anchorprune-demo --pretrained bundled --dataset bundled "$@"
  unpruned=("${@:1:6}" ${unpruned[@]+"${unpruned[@]}"})
fi

mkdir -p prune_compare/unpruned prune_compare/pruned
start=prune_compare/.start.$$
trap 'rm -f "$start"; rmdir prune_compare/unpruned prune_compare/pruned prune_compare 2>/dev/null || true' EXIT
touch "$start"

unpruned_out=(--output "prune_compare/unpruned/$template")
pruned_out=(--output "prune_compare/pruned/$template")
if [[ $attention == yes ]]; then
  unpruned_out+=(--attention_output 'prune_compare/unpruned/attention_{dataset}_{pretrained}_{model}.pt')
  pruned_out+=(--attention_output 'prune_compare/pruned/attention_{dataset}_{pretrained}_{model}.pt')
fi

echo "== unpruned (pruning flags have no effect in this run)"
"$python" "$here/clip_benchmark/cli.py" eval "${unpruned[@]}" "${unpruned_out[@]}"
echo "== pruned"
"$python" "$here/clip_benchmark/cli.py" eval "$@" --enable_pruning "${pruned_out[@]}"

# The pairs of which this run wrote a half: --skip_existing may keep the other. If it kept all, every pair.
written=()
existing=()
for pruned in prune_compare/pruned/*.json; do
  name=${pruned##*/}
  [[ -f $pruned && -f prune_compare/unpruned/$name ]] || continue
  existing+=("$name")
  [[ $pruned -ot $start && prune_compare/unpruned/$name -ot $start ]] || written+=("$name")
done
if [[ $skip == yes && ${#written[@]} -eq 0 ]]; then
  written=(${existing[@]+"${existing[@]}"})
fi
if [[ ${#written[@]} -eq 0 ]]; then
  echo "$(basename "$0"): both runs ended, but left no pair of results to compare" >&2
  exit 1
fi
for name in "${written[@]}"; do
  echo
  "$python" "$here/clip_benchmark/cli.py" compare "prune_compare/unpruned/$name" "prune_compare/pruned/$name"
done
