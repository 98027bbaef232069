#!/usr/bin/env bash
# Exported modules, cleaned notebooks and README.md are what the notebooks give; outputs are whole.
set -euo pipefail
cd "$(dirname "$0")/.."
state() { find nbs bloodcell_nb README.md -type f ! -path '*/__pycache__/*' ! -path '*/.ipynb_checkpoints/*' -print0 | sort -z | xargs -0 sha256sum; }
before=$(state)
nbdev_export
nbdev_clean
make --no-print-directory readme
after=$(state)
if [ "$before" != "$after" ]; then
    echo "these files are not what nbdev_export, nbdev_clean and make readme give; run them and commit:" >&2
    diff <(echo "$before") <(echo "$after") | awk '/^>/ {print "  " $3}' >&2
    exit 1
fi
python tests/check_notebooks.py
