#!/usr/bin/env bash
# Run one stage of `make test`: announce it, time it, remember it.
#   stage.sh NAME COMMAND...     run a stage
#   stage.sh --summary           say what was run and how long it took
set -euo pipefail
times=build/stages.txt
mkdir -p build

if [ "$1" = --summary ]; then
    echo "================ all stages passed"
    [ ! -f "$times" ] || { cat "$times"; rm "$times"; }
    exit 0
fi

name=$1; shift
[ "$name" != tangled ] || rm -f "$times"   # the first stage opens a new list
echo "================ $name: $*"
start=$SECONDS
status=0
"$@" </dev/null || status=$?
took=$((SECONDS - start))
if [ "$status" != 0 ]; then
    echo "================ $name FAILED with status $status after $took s" >&2
    exit "$status"
fi
printf '%-16s passed %5d s\n' "$name" "$took" | tee -a "$times"
