#!/usr/bin/env bash
# Checks on 64 images that a model runs unpruned and pruned; takes the flags of prune_compare.sh.
#
#   bash prune_test.sh [flags of 'anchorprune eval']
#
# The last line starts with OK and names the tokens; the exit code is not 0 if a run fails.
set -euo pipefail

# Of a flag given twice the last one counts, so the defaults come first.
# shellcheck source=prune_compare.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/prune_compare.sh" --limit 64 --batch_size 16 --num_workers 0 "$@"

echo
for name in "${written[@]}"; do
  "$python" - "prune_compare/unpruned/$name" "prune_compare/pruned/$name" <<'PYTHON'
import json
import sys

unpruned, pruned = (json.load(open(path, encoding="utf-8")) for path in sys.argv[1:])
pruning = (pruned.get("pruning") or {}).get("measured")
if unpruned.get("pruning") or not pruning:
    sys.exit(f"{sys.argv[2]}: the pruned run did not prune, or the unpruned one did")
dropped = "" if pruning["effective"] else " (nothing was dropped: the budget covers all tokens)"
name = f"{pruned['model']} {pruned['pretrained']}, {pruned['dataset']}"
print(f"OK {name}: {pruning['tokens_before']} tokens before, {pruning['tokens_after']} after{dropped}")
PYTHON
done
