#!/usr/bin/env bash
# The demo: every example task once through the whole fleet, then a look at what came of it.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?output folder}
rm -rf "$out"
up() { .venv/bin/fleet up tasks.jsonl --output "$out" --until-done "$@"; }
status=0
up || status=$?
if [ $status = 69 ]; then
  echo "demo: no model can be had (see above), so the oracle plays the reference solutions instead."
  status=0
  up --agent oracle || status=$?
fi
echo
.venv/bin/fleet export sft --output "$out" --out "$out/sft.jsonl" --include-embedded
echo
.venv/bin/fleet show code-01-fibonacci --output "$out"
cat <<TEXT

What it left behind:
  $out/trajectories/   one folder a task: each attempt, and its review beside it
  $out/sft.jsonl       accepted attempts as OpenAI messages and tools
Read on:  .venv/bin/fleet show TASK --output $out    (code-01-fibonacci … code-24-schedule)
TEXT
exit $status
