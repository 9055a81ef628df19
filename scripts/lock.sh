#!/usr/bin/env bash
# Resolve the lock files: universal, with hashes, naming no host.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v uv >/dev/null || { echo "lock: needs uv (pip install uv)" >&2; exit 1; }
compile() {
  out=requirements/$1.lock; shift
  uv pip compile -q --universal --generate-hashes --no-header --python-version 3.11 \
    pyproject.toml --group setup "$@" -o "$out"
}
compile base
compile embedded --extra embedded --extra console -c requirements/base.lock
compile dev --extra embedded --extra console --extra opensandbox --group dev -c requirements/embedded.lock
# For the Python of any host's sandboxes (fleet packages prepare), so from the oldest on.
(
  cd requirements
  uv pip compile -q --universal --generate-hashes --no-header --no-annotate --python-version 3.9 \
    --no-build sandbox.in -o sandbox.lock
  # The server that `make test-docker` runs, in an environment of its own.
  uv pip compile -q --universal --generate-hashes --no-header --no-annotate --python-version 3.11 \
    opensandbox-server.in -o opensandbox-server.lock
)
! grep -nE 'https?://' requirements/*.lock
