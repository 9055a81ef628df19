#!/usr/bin/env bash
# Give every peer an environment of its own under benchmarks/.peers/, from its pinned list here.
#   benchmarks/peers/setup.sh            all of them
#   benchmarks/peers/setup.sh arq saq    these
# A peer that cannot be installed (no Python new enough, no wheel) is said and passed over; the
# table then reports it as not run.
set -uo pipefail
cd "$(dirname "$0")"
home=../.peers
mkdir -p $home
printf '*\n' > $home/.gitignore

python_for() {  # ardiq asks for Python >= 3.12; the rest runs on what the fleet runs on
  local least=311 candidate
  [ "$1" = ardiq ] && least=312
  for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.14 \
    "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/python3 /usr/bin/python3; do
    command -v "$candidate" >/dev/null || continue
    "$candidate" -c "import sys; v = sys.version_info; sys.exit(v.major * 100 + v.minor < $least)" \
      2>/dev/null && { command -v "$candidate"; return; }
  done
  return 1
}

install() {
  local name=$1 list=$1.txt env=$home/$1 python state
  python=$(python_for "$name") || { echo "no Python new enough"; return 1; }
  state=$(sha256sum < "$list")
  [ -f "$env/.installed" ] && [ "$(cat "$env/.installed")" = "$state" ] && return 0
  rm -rf "$env"
  if command -v uv >/dev/null; then
    UV_PYTHON_DOWNLOADS=never uv venv -q --python "$python" "$env" &&
      VIRTUAL_ENV=$env uv pip sync -q --require-hashes --compile-bytecode "$list"
  else
    "$python" -m venv "$env" &&
      "$env/bin/pip" install -q --disable-pip-version-check --require-hashes -r "$list"
  fi || return 1
  printf '%s\n' "$state" > "$env/.installed"
}

[ $# -gt 0 ] || set -- *.txt
for list in "$@"; do
  name=${list%.txt}
  [ -f "$name.txt" ] || { echo "peers: no $name.txt" >&2; exit 2; }
  why=$(install "$name" 2>&1) || {
    rm -rf "${home:?}/$name"
    mkdir -p "$home/$name" && printf '%s\n' "$why" | tail -5 > "$home/$name/.failed"
    echo "peers: $name is left out: $why" >&2
  }
done
