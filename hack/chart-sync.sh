#!/usr/bin/env bash
# Copies into the chart what is generated elsewhere, and renders the chart into
# config/, for those who do not use Helm. `make verify` fails when that changes
# anything, so both always install the same.
set -euo pipefail
cd "$(dirname "$0")/.."
chart=charts/sluice
helm=(go tool -modfile=test/cluster/binaries/helm/go.mod helm)

# copy SOURCES… to a folder of the chart, which then holds nothing else.
copy() {
	local to=$chart/${*: -1}
	rm -rf "$to"
	mkdir -p "$to"
	cp "${@:1:$#-1}" "$to"
}
copy config/crd/*.yaml crds
copy config/rbac/{controller,role,agent}.yaml files/rbac
copy config/webhook/*.yaml files/webhook

# render prints templates as they are by default. What is Helm's alone is left out.
render() {
	echo "# Rendered from charts/sluice by hack/chart-sync.sh. DO NOT EDIT."
	"${helm[@]}" template sluice $chart --namespace sluice-system --kube-version 1.36.0 "$@" |
		sed -e '/^ *helm\.sh\//d' -e '/^ *app\.kubernetes\.io\/managed-by: Helm$/d'
}
render --no-hooks >config/install.yaml
render --show-only templates/hooks/uninstall.yaml | sed '/^  annotations:$/d' >config/uninstall/uninstall.yaml
