// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package install_test

import (
	"slices"
	"testing"

	"github.com/sluice-dev/sluice/test/install"
)

func TestNeedlessRights(t *testing.T) {
	asked := func(verb, resource, namespace, name string) request {
		return request{right: right{account: "sluice-a", verb: verb, group: "apps", resource: resource, namespace: namespace, name: name}}
	}
	denied := asked("get", "deployments", "default", "app")
	denied.denied = true
	tests := []struct {
		reason  string
		granted right
		asked   []request
		want    string
	}{
		{
			reason:  "what was asked for in some namespace needs a ClusterRole",
			granted: right{account: "sluice-a", verb: "get", group: "apps", resource: "deployments"},
			asked:   []request{asked("get", "deployments", "default", "app")},
		},
		{
			reason:  "another verb is another right",
			granted: right{account: "sluice-a", verb: "delete", group: "apps", resource: "deployments"},
			asked:   []request{asked("get", "deployments", "default", "app")},
			want:    "sluice-a: delete deployments.apps: not used",
		},
		{
			reason:  "what another account asks for proves nothing",
			granted: right{account: "sluice-b", verb: "get", group: "apps", resource: "deployments"},
			asked:   []request{asked("get", "deployments", "default", "app")},
			want:    "sluice-b: get deployments.apps: not used",
		},
		{
			reason:  "a denied request used no right",
			granted: right{account: "sluice-a", verb: "get", group: "apps", resource: "deployments"},
			asked:   []request{denied},
			want:    "sluice-a: get deployments.apps: not used",
		},
		{
			reason:  "an informer watches without a list",
			granted: right{account: "sluice-a", verb: "list", group: "apps", resource: "deployments"},
			asked:   []request{asked("watch", "deployments", "", "")},
		},
		{
			reason:  "a Role is enough for what is asked for in Sluice's namespace alone",
			granted: right{account: "sluice-a", verb: "create", group: "apps", resource: "deployments"},
			asked:   []request{asked("create", "deployments", install.Namespace, "app")},
			want:    "sluice-a: create deployments.apps: used in the namespace of Sluice alone, and granted in all",
		},
		{
			reason:  "a Role of Sluice's namespace gives nothing elsewhere",
			granted: right{account: "sluice-a", verb: "get", group: "apps", resource: "deployments", namespace: install.Namespace},
			asked:   []request{asked("get", "deployments", "default", "app")},
			want:    "sluice-a: get deployments.apps in sluice-system: not used",
		},
		{
			reason:  "each resource name is a right of its own",
			granted: right{account: "sluice-a", verb: "get", group: "apps", resource: "deployments", name: "other"},
			asked:   []request{asked("get", "deployments", "default", "app")},
			want:    "sluice-a: get deployments.apps/other: not used",
		},
		{
			reason:  "an object of Sluice's own can be named",
			granted: right{account: "sluice-a", verb: "delete", group: "apps", resource: "deployments", namespace: install.Namespace},
			asked:   []request{asked("delete", "deployments", install.Namespace, "sluice-controller")},
			want:    "sluice-a: delete deployments.apps in sluice-system: used for sluice-controller alone, and granted for all",
		},
		{
			reason:  "RBAC does not know the name of what is created",
			granted: right{account: "sluice-a", verb: "create", group: "apps", resource: "deployments", namespace: install.Namespace},
			asked:   []request{asked("create", "deployments", install.Namespace, "sluice-controller")},
		},
	}
	for _, test := range tests {
		var want []string
		if test.want != "" {
			want = []string{test.want}
		}
		if got := needlessRights([]right{test.granted}, test.asked); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", test.reason, got, want)
		}
	}
}
