// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"slices"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/upstream"
)

func TestWhatAFaultExcuses(t *testing.T) {
	const victim, another = "10.0.0.1", "10.0.0.2"
	const lasted = 30 * time.Second
	struck := time.Unix(1_700_000_000, 0)
	// sent is a transfer, by when it began and ended after the strike.
	sent := func(client string, began, ended time.Duration) upstream.Request {
		return upstream.Request{Client: client, Time: struck.Add(began), Done: true, End: struck.Add(ended)}
	}
	running := sent(another, -time.Second, 0)
	running.Done, running.End = false, time.Time{}
	for _, tt := range []struct {
		reason, fault string
		loses         bool
		request       upstream.Request
		want          bool
	}{
		{"it was under way at the strike", "agent killed", false, sent(another, -time.Second, time.Second), true},
		{"it is under way still", "agent killed", false, running, true},
		{"it came before the strike", "agent killed", false, sent(another, -3*time.Second, -time.Second), false},
		{"it came after the repair", "agent killed", false, sent(another, lasted+time.Second, lasted+2*time.Second), false},
		{"it began while the registry reset all", "registry resets in the middle of layers", false, sent(another, time.Second, 2*time.Second), true},
		{"the registry only hung for a while", "registry hangs", false, sent(another, -time.Second, time.Second), false},
		{"the node had it and is gone", "node gone for good", true, sent(victim, -3*time.Second, -2*time.Second), true},
		{"the node had it and is dead", "node dead, and its Node object stays", true, sent(victim, -3*time.Second, -2*time.Second), true},
		{"the node was about to have it", "node dead, and its Node object stays", true, sent(victim, -time.Second, time.Second), true},
		{"another node's transfer went on", "node dead, and its Node object stays", true, sent(another, -time.Second, time.Second), false},
		{"the next seed fetches in place of the dead one", "node dead, and its Node object stays", true, sent(another, 20*time.Second, 21*time.Second), false},
		{"the next seed begins at once", "node gone for good", true, sent(another, 100*time.Millisecond, time.Second), false},
	} {
		at := slices.IndexFunc(faults, func(f fault) bool { return f.name == tt.fault })
		if at < 0 {
			t.Fatalf("there is no fault %q", tt.fault)
		}
		r := &round{fault: faults[at], struck: struck, repaired: struck.Add(lasted)}
		if tt.loses {
			r.lost = &cluster.Node{Name: "victim", IP: victim}
		}
		if got := r.excused(tt.request); got != tt.want {
			t.Errorf("%s: %s: excused %t, want %t", tt.fault, tt.reason, got, tt.want)
		}
	}
}

func TestWhatWasSentAgain(t *testing.T) {
	const size = 1 << 20
	request := func(offset, bytes int64, complete bool) upstream.Request {
		return upstream.Request{Offset: offset, Bytes: bytes, Complete: complete}
	}
	for _, tt := range []struct {
		reason   string
		requests upstream.Requests
		want     bool
	}{
		{"once", upstream.Requests{request(0, size, true)}, false},
		{"cut, and gone on with from what was read", upstream.Requests{request(0, 65536, false), request(50000, size-50000, true)}, false},
		{"twice", upstream.Requests{request(0, size, true), request(0, size, true)}, true},
		{"cut, and begun again", upstream.Requests{request(0, 65536, false), request(0, size, true)}, true},
		{"the rest of it to one node, and all of it to another", upstream.Requests{request(400000, size-400000, true), request(0, size, true)}, true},
		{"the rest of it twice", upstream.Requests{request(0, 400000, false), request(390000, size-390000, true), request(390000, size-390000, true)}, true},
	} {
		if got := sentAgain(size, tt.requests); got != tt.want {
			t.Errorf("%s: sent again %t, want %t", tt.reason, got, tt.want)
		}
	}
}
