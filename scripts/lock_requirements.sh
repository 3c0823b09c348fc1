#!/usr/bin/env bash
# Writes requirements.lock: every package of the image but torch, pinned with the hashes of its files. Run it after a change
# of pyproject.toml or constraints.txt; needs uv (pip install uv) and access to a package index.
#
# torch and what only its CUDA builds need are left out: the image takes a CPU build from PyTorch's own index, whose files
# have other hashes than PyPI's.
set -euo pipefail

cd "$(dirname "$0")/.."
cuda=(torch triton)
resolve() { # further options: the packages on standard output
    uv pip compile pyproject.toml -c constraints.txt --generate-hashes --python-version 3.11 --python-platform linux \
        --no-annotate --no-header --quiet "$@"
}
mapfile -t -O 2 cuda < <(resolve | grep -oE '^(nvidia|cuda)[a-z0-9-]*' || true)
{
    echo "# Made by scripts/lock_requirements.sh: install with pip install --require-hashes --no-deps -r requirements.lock"
    resolve "${cuda[@]/#/--no-emit-package=}"
} >requirements.lock.new
mv requirements.lock.new requirements.lock
