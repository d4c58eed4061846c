#!/usr/bin/env bash
# Runs the fuzz targets of the tree one after another, all together for so many seconds, each
# with so many workers. What one finds is written below testdata of its package, and from then
# on is a case of its tests.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=$1 workers=$2
mapfile -t targets < <(git grep -oE '^func Fuzz[A-Za-z0-9]*' -- '*_test.go')
each=$(((seconds + ${#targets[@]} - 1) / ${#targets[@]}))
for target in "${targets[@]}"; do
	file=${target%%:*} name=${target##*func }
	echo "== $name in $(dirname "$file"), ${each}s"
	go test -run '^$' -fuzz "^$name\$" -fuzztime "${each}s" -parallel "$workers" "./$(dirname "$file")"
done
