#!/usr/bin/env bash
# Make .venv hold exactly the locked packages of a lock file, from nothing if need be.
#   scripts/setup.sh embedded   what running needs, the embedded model's engine included
#   scripts/setup.sh dev        that, and what tests and linters need
# Installs Debian packages it misses when run as root; otherwise prints the command and ends.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:?embedded or dev}
lock=requirements/$what.lock

need=()
command -v python3 >/dev/null || need+=(python3)
[ -x /usr/bin/python3 ] || [ -x /usr/local/bin/python3 ] || need+=(python3)  # runs inside the jail
if ! command -v uv >/dev/null; then
  python3 -c 'import ensurepip, venv' 2>/dev/null || need+=(python3-venv)
fi
if [ "$what" = dev ]; then
  command -v redis-server >/dev/null || need+=(redis-server)
fi
if [ ${#need[@]} -gt 0 ]; then
  install="apt-get update && apt-get install -y --no-install-recommends ${need[*]}"
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "setup: installing ${need[*]}" >&2
    apt-get update -qq
    # Packages that bring a service must not start it: the tests run their own on free ports.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
      printf '#!/bin/sh\nexit 101\n' > $policy; chmod +x $policy
      trap 'rm -f $policy' EXIT
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -yqq --no-install-recommends "${need[@]}" >/dev/null
  else
    printf 'setup: missing: %s. Install with:\n  sudo sh -c "%s"\n' "${need[*]}" "$install" >&2
    exit 1
  fi
fi

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "setup: $("$python" --version) is too old; Python 3.11 or newer is needed (PYTHON=python3.12 make …)" >&2
  exit 1
fi
mark=.venv/.locked
state="$what $(cat pyproject.toml "$lock" | sha256sum | cut -d' ' -f1) $("$python" -c 'import sys; print(sys.base_prefix)')"
if [ -f $mark ] && { [ "$(cat $mark)" = "$state" ] || [ "$(cat $mark)" = "${state/#embedded/dev}" ]; }; then
  exit 0
fi
# What the dev lock holds serves the other purpose too.
if [ "$what" = embedded ] && [ -f $mark ] && grep -q ^dev $mark; then exec "$0" dev; fi

echo "setup: installing locked packages into .venv" >&2
if command -v uv >/dev/null; then
  [ -x .venv/bin/python ] || UV_PYTHON_DOWNLOADS=never uv venv -q --python "$(command -v "$python")" .venv
  VIRTUAL_ENV=.venv uv pip sync -q --require-hashes --compile-bytecode "$lock"
  VIRTUAL_ENV=.venv uv pip install -q --no-deps --no-build-isolation -e .
else
  [ -x .venv/bin/pip ] || "$python" -m venv --clear .venv
  .venv/bin/pip install -q --disable-pip-version-check --require-hashes -r "$lock"
  .venv/bin/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
fi
printf '%s\n' "$state" > $mark
