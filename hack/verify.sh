#!/usr/bin/env bash
# Fails when what is generated differs from the commit after `make generate`, staged or
# not, when a module is not tidy, when a file lacks its licence header, or when a
# document is too wide or names what is not there.
set -euo pipefail
cd "$(dirname "$0")/.."

fail=0
# Not the modules that only pin programs for the test cluster: tidying them would
# download what the tests of all of Kubernetes need, and -mod=readonly checks them.
for dir in $(git ls-files '*go.mod' ':!test/cluster/binaries' | xargs -n1 dirname); do
	if ! (cd "$dir" && go mod tidy -diff >/dev/null); then
		echo "verify: $dir/go.mod is not tidy: run 'go mod tidy' in $dir" >&2
		fail=1
	fi
done

if missing=$(git ls-files '*.go' | xargs grep -L '^// SPDX-License-Identifier: Apache-2.0' | grep -v zz_generated); then
	echo "verify: no licence header in:" "$missing" >&2
	fail=1
fi

generated=(api config charts docs/api.md docs/metrics.md)
if ! git diff HEAD --exit-code --stat -- "${generated[@]}" >&2 || [ -n "$(git ls-files --others --exclude-standard -- "${generated[@]}")" ]; then
	git ls-files --others --exclude-standard -- "${generated[@]}" >&2
	echo "verify: generated files differ: run 'make generate' and commit the result" >&2
	fail=1
fi
# Not what is generated: its tables are as wide as the comments that they are made of.
if ! go run ./hack/documents $(git ls-files '*.md' "${generated[@]/#/:!}") >&2; then
	fail=1
fi
exit $fail
