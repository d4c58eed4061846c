// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"strings"
	"testing"
	"time"
)

const agent = "system:serviceaccount:sluice-system:sluice-agent"

func line(stage, verb, user, resource, subresource, at string) string {
	return `{"kind":"Event","apiVersion":"audit.k8s.io/v1","stage":"` + stage + `","verb":"` + verb + `","user":{"username":"` + user +
		`"},"objectRef":{"resource":"` + resource + `","subresource":"` + subresource + `","name":"node-1"},"responseStatus":{"code":200},` +
		`"requestReceivedTimestamp":"` + at + `"}` + "\n"
}

func TestWrites(t *testing.T) {
	const early, late = "2026-01-01T00:00:00.000000Z", "2026-01-01T00:01:00.000000Z"
	log := strings.Join([]string{
		line("ResponseComplete", "patch", agent, "nodeimagesets", "status", early),
		line("RequestReceived", "patch", agent, "nodeimagesets", "status", late), // the same request at another stage
		line("ResponseComplete", "patch", agent, "nodeimagesets", "status", late),
		line("ResponseComplete", "watch", agent, "nodeimagesets", "", late),
		line("ResponseComplete", "update", agent, "leases", "", late),
		line("ResponseComplete", "create", agent, "tokenreviews", "", late),
		line("ResponseComplete", "update", "system:serviceaccount:sluice-system-2:other", "nodeimagesets", "", late),
		line("ResponseComplete", "update", "system:node:node-1", "nodes", "status", late),
		`{"kind":"Event","stage":"ResponseCom`, // still being written
	}, "")
	writes, err := read(strings.NewReader(log))
	if err != nil {
		t.Fatal(err)
	}
	if len(writes) != 6 {
		t.Errorf("read %d writes, want 6:\n%s", len(writes), writes.Report())
	}
	since, err := time.Parse(time.RFC3339, "2026-01-01T00:00:30Z")
	if err != nil {
		t.Fatal(err)
	}
	got := writes.Where(By("sluice-system"), Distributing, After(since)).Report()
	if want := "   1 patch nodeimagesets/status by sluice-system:sluice-agent\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
