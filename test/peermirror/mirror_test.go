// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package peermirror_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/sluice-dev/sluice/test/peermirror"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The stand-in in process, on stores in memory.
func TestConformance(t *testing.T) {
	for name, env := range map[string]environment{
		"well": {
			start:    func(t *testing.T, n int) []node { return startMemory(t, n, nil) },
			patience: 10 * time.Millisecond,
		},
		"spegel": {
			start: func(t *testing.T, n int) []node {
				return startMemory(t, n, func(name string) *peermirror.Manners { return peermirror.Spegel(1, name) })
			},
			patience: 5100 * time.Millisecond,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conformance(t, env)
		})
	}
}

func TestPeersOfAFileComeAndGo(t *testing.T) {
	nodes := startMemory(t, 2, nil)
	d := nodes[0].commit(t, "content")

	file := filepath.Join(t.TempDir(), "peers")
	late := startOne(t, peermirror.Options{Peers: peermirror.PeersFile(file)})
	if got := ask(t, "GET", late, blob(d)); got.status != 404 {
		t.Errorf("without the file: %d", got.status)
	}
	if got := ask(t, "GET", late, "/readyz"); got.status != 500 {
		t.Errorf("without peers /readyz = %d", got.status)
	}
	write(t, file, nodes[0].url()+"\n"+nodes[1].url()+"\n")
	if got := ask(t, "GET", late, blob(d)); got.status != 200 {
		t.Errorf("with the file: %d", got.status)
	}
	if got := ask(t, "GET", late, "/readyz"); got.status != 200 {
		t.Errorf("with peers /readyz = %d", got.status)
	}
	write(t, file, nodes[1].url())
	if got := ask(t, "GET", late, blob(d)); got.status != 404 {
		t.Errorf("after the holder left the file: %d", got.status)
	}
}

func TestWithoutLeavesOneselfOut(t *testing.T) {
	got, err := peermirror.FixedPeers("http://a", "http://self", "http://b").Without("http://self")()
	if err != nil || strings.Join(got, " ") != "http://a http://b" {
		t.Errorf("peers = %v, %v", got, err)
	}
}

func TestASlowPeerDoesNotDelayAQuickOne(t *testing.T) {
	release := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer slow.Close()
	defer close(release)
	quick := startMemory(t, 1, nil)[0]
	d := quick.commit(t, "content")
	asking := startOne(t, peermirror.Options{
		Peers:          peermirror.FixedPeers(slow.URL, quick.url()),
		ResolveTimeout: 5 * time.Second,
	})
	begin := time.Now()
	if got := ask(t, "GET", asking, blob(d)); got.status != 200 {
		t.Errorf("GET = %d", got.status)
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("answered after %s", took)
	}
}

func TestResolveTimeoutBoundsTheSearch(t *testing.T) {
	release := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer slow.Close()
	defer close(release)
	asking := startOne(t, peermirror.Options{Peers: peermirror.FixedPeers(slow.URL), ResolveTimeout: 50 * time.Millisecond})
	if got := ask(t, "GET", asking, blob(digest.FromString("nothing"))); got.status != 404 {
		t.Errorf("GET = %d", got.status)
	}
}

func TestAPeerThatLosesItsContentIsPassedOver(t *testing.T) {
	liar := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			w.WriteHeader(http.StatusNotFound) // gone since the HEAD
		}
	}))
	defer liar.Close()
	honest := startMemory(t, 1, nil)[0]
	d := honest.commit(t, "content")
	asking := startOne(t, peermirror.Options{Peers: peermirror.FixedPeers(liar.URL, honest.url())})
	ask(t, "GET", asking, blob(d)).want(t, "content")
}

func TestATransferThatBreaksOffIsNotTakenForWhole(t *testing.T) {
	breaking := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Without a length only the way it ends tells that it is not whole.
		if r.Method == http.MethodGet {
			_, _ = w.Write(make([]byte, 500_000))
			panic(http.ErrAbortHandler)
		}
	}))
	defer breaking.Close()
	asking := startOne(t, peermirror.Options{Peers: peermirror.FixedPeers(breaking.URL)})
	response, err := browser.Get(asking.url() + blob(digest.FromString("content")))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if n, err := io.Copy(io.Discard, response.Body); err == nil {
		t.Errorf("%d bytes ended as if they were all", n)
	}
}

func TestABlobIsServedToPeersOnceItIsAdvertised(t *testing.T) {
	n := startOne(t, peermirror.Options{Peers: peermirror.FixedPeers()})
	var d digest.Digest
	for _, test := range []struct {
		reason     string
		advertised time.Time
		peer       int
	}{
		{"it is not advertised at all", time.Time{}, 404},
		{"it was advertised just now", time.Now().Add(time.Hour), 404},
		{"it was advertised 30 ms ago", time.Now().Add(-30 * time.Millisecond), 200},
	} {
		d = n.store.put("content", test.advertised)
		if got := ask(t, "GET", n, blob(d), peermirror.MirroredHeader+": true"); got.status != test.peer {
			t.Errorf("%s: a peer gets %d, want %d", test.reason, got.status, test.peer)
		}
		if got := ask(t, "GET", n, blob(d)); got.status != 200 {
			t.Errorf("%s: the node itself gets %d", test.reason, got.status)
		}
	}
}

func TestSpegelsFalseMisses(t *testing.T) {
	spegel := func(name string) *peermirror.Manners { return peermirror.Spegel(1, name) }
	t.Run("with three holders one of four GETs at once is answered, and the others slowly missed", func(t *testing.T) {
		nodes := startMemory(t, 4, spegel)
		const keys = 30
		var all sync.WaitGroup
		var alone, together atomic.Int32
		for i := range keys {
			content := strings.Repeat("x", i+1)
			var d digest.Digest
			for _, holder := range nodes[1:] {
				d = holder.commit(t, content)
			}
			all.Go(func() {
				var four sync.WaitGroup
				var answered atomic.Int32
				for range 4 {
					four.Go(func() {
						begin := time.Now()
						if ask(t, "GET", nodes[0], blob(d)).status == 200 {
							answered.Add(1)
						} else if took := time.Since(begin); took < 200*time.Millisecond {
							t.Errorf("missed after %s", took)
						}
					})
				}
				four.Wait()
				if answered.Load() > 1 {
					together.Add(1)
				} else {
					alone.Add(1)
				}
			})
		}
		all.Wait()
		if alone.Load() < keys/2 || together.Load() == 0 {
			t.Errorf("%d of %d times one was answered alone, %d times several, want the first 30 of 40 times",
				alone.Load(), keys, together.Load())
		}
	})
	t.Run("with one holder all are answered", func(t *testing.T) {
		nodes := startMemory(t, 2, spegel)
		d := nodes[1].commit(t, "content")
		for i := range 4 {
			if got := ask(t, "GET", nodes[0], blob(d)); got.status != 200 {
				t.Errorf("GET %d = %d %s", i, got.status, got.body)
			}
		}
	})
	t.Run("a miss repeats although a peer has it by then", func(t *testing.T) {
		nodes := startMemory(t, 2, spegel)
		d := digest.FromString("late")
		ask(t, "GET", nodes[0], blob(d))
		nodes[1].commit(t, "late")
		if got := ask(t, "GET", nodes[0], blob(d)); got.status != 404 {
			t.Errorf("GET = %d", got.status)
		}
	})
	t.Run("a slow peer delays a quick one by little", func(t *testing.T) {
		release := make(chan struct{})
		slow := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
		defer slow.Close()
		defer close(release)
		quick := startMemory(t, 1, nil)[0]
		d := quick.commit(t, "content")
		asking := startOne(t, peermirror.Options{
			Peers: peermirror.FixedPeers(slow.URL, quick.url()), Manners: spegel("a"), ResolveTimeout: time.Minute,
		})
		if got := ask(t, "GET", asking, blob(d)); got.status != 200 {
			t.Errorf("GET = %d", got.status)
		}
	})
}

func TestMetrics(t *testing.T) {
	holder := startMemory(t, 1, nil)[0]
	d := holder.commit(t, "content")
	registry := prometheus.NewPedanticRegistry()
	asking := startOne(t, peermirror.Options{Peers: peermirror.FixedPeers(holder.url()), Registerer: registry})
	ask(t, "GET", asking, blob(d))
	ask(t, "GET", asking, blob(digest.FromString("nothing")))
	ask(t, "GET", asking, blob(d), peermirror.MirroredHeader+": true") // a peer's request is not the node's
	err := testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP spegel_mirror_requests_total Requests of the node itself, by whether the mirror could answer.
# TYPE spegel_mirror_requests_total counter
spegel_mirror_requests_total{cache="hit",registry="registry.example"} 1
spegel_mirror_requests_total{cache="miss",registry="registry.example"} 1
`), "spegel_mirror_requests_total")
	if err != nil {
		t.Error(err)
	}
	if n, err := testutil.GatherAndCount(registry, "spegel_resolve_duration_seconds"); n != 1 || err != nil {
		t.Errorf("%d series of resolve durations, %v", n, err)
	}
}

func TestTheMirrorIsReadOnly(t *testing.T) {
	n := startMemory(t, 1, nil)[0]
	if got := ask(t, "DELETE", n, blob(n.commit(t, "content"))); got.status != 405 {
		t.Errorf("DELETE = %d", got.status)
	}
}

func blob(d digest.Digest) string { return repository + "/blobs/" + d.String() + namespace }

// memoryNode is a mirror on a store in memory.
type memoryNode struct {
	server *httptest.Server
	store  *memory
}

func startOne(t *testing.T, opts peermirror.Options) memoryNode {
	t.Helper()
	n := memoryNode{store: &memory{content: map[digest.Digest]stored{}, names: map[string]digest.Digest{}}}
	opts.Store = n.store
	mirror := peermirror.New(opts)
	n.server = httptest.NewServer(mirror)
	t.Cleanup(func() {
		n.server.Close()
		mirror.Close()
	})
	return n
}

// startMemory starts nodes that all know each other, oneself included.
func startMemory(t *testing.T, n int, manners func(name string) *peermirror.Manners) []node {
	t.Helper()
	var mu sync.Mutex
	var urls []string
	all := func() ([]string, error) {
		mu.Lock()
		defer mu.Unlock()
		return urls, nil
	}
	nodes := make([]node, n)
	for i := range nodes {
		opts := peermirror.Options{Peers: all}
		if manners != nil {
			opts.Manners = manners(string(rune('a' + i)))
		}
		one := startOne(t, opts)
		nodes[i] = one
		mu.Lock()
		urls = append(urls, one.url())
		mu.Unlock()
	}
	return nodes
}

func (n memoryNode) url() string { return n.server.URL }

// commit puts content there that has been advertised long ago.
func (n memoryNode) commit(_ *testing.T, content string) digest.Digest {
	return n.store.put(content, time.Now().Add(-time.Minute))
}

func (n memoryNode) tag(_ *testing.T, name string, target digest.Digest) {
	n.store.mu.Lock()
	defer n.store.mu.Unlock()
	n.store.names[name] = target
}

type stored struct {
	content    string
	advertised time.Time
}

type memory struct {
	mu      sync.Mutex
	content map[digest.Digest]stored
	names   map[string]digest.Digest
}

func (m *memory) put(content string, advertised time.Time) digest.Digest {
	d := digest.FromString(content)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.content[d] = stored{content, advertised}
	return d
}

func (m *memory) Resolve(_ context.Context, name string) (digest.Digest, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, found := m.names[name]
	if !found {
		return "", peermirror.ErrNotFound
	}
	return d, nil
}

func (m *memory) Open(_ context.Context, d digest.Digest) (peermirror.Content, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, found := m.content[d]
	if !found {
		return peermirror.Content{}, peermirror.ErrNotFound
	}
	return peermirror.Content{
		ReadSeekCloser: readSeekCloser{strings.NewReader(s.content)}, Digest: d, Advertised: s.advertised,
	}, nil
}

type readSeekCloser struct{ *strings.Reader }

func (readSeekCloser) Close() error { return nil }
