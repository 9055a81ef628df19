#!/bin/sh
# Stands in for the bootstrap.sh of OpenSandbox's execd image: starts execd and what was asked for.
# Like that one it stays, and buries whatever process ends as its child.
/opt/opensandbox/execd &
"$@" &
main=$!
trap 'kill -TERM "$main" 2>/dev/null; exit 0' TERM
wait "$main"
