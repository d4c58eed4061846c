// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/stack"
)

const (
	nodes       = 4
	controllers = 2
	// rate has a distribution take some seconds, so that a fault falls into it.
	rate = 2 * images.MiB
	// seedTimeout is short, so that a fault can last longer.
	seedTimeout = 20 * time.Second
	// other is a second namespace.
	other = "chaos"
)

// world is the cluster, and what stands in for the kubelet and the Deployment: it
// starts our programs again when they end.
type world struct {
	*testing.T
	*stack.Stack
	seeds *stack.SeedWatch

	ctx  context.Context
	work sync.WaitGroup

	mu   sync.Mutex
	off  map[string]bool // nodes that are without power, or gone
	down map[int]bool    // controllers that are not started again
}

func start(ctx context.Context, t *testing.T, logs string) *world {
	g := NewWithT(t)
	if logs != "" {
		var err error
		logs, err = os.MkdirTemp(logs, "chaos-")
		g.Expect(err).NotTo(HaveOccurred())
		t.Log("logs are in", logs)
	}
	s, err := stack.Start(ctx, stack.Options{
		Nodes: cluster.Nodes(nodes), Controllers: controllers, Race: true, LogDir: logs, Logf: t.Logf,
		ControllerFlags: []string{"--seed-timeout=" + seedTimeout.String(), "--agent-timeout=15s", "--verbosity=1"},
		AgentFlags:      []string{"--no-progress-timeout=10s"},
	})
	g.Expect(err).NotTo(HaveOccurred())
	ctx, cancel := context.WithCancel(ctx)
	w := &world{T: t, Stack: s, ctx: ctx, off: map[string]bool{}, down: map[int]bool{}}
	t.Cleanup(func() {
		cancel()
		w.work.Wait()
		g.Expect(s.Stop()).To(Succeed())
	})
	g.Expect(s.Client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: other}})).To(Succeed())
	w.seeds, err = s.WatchSeeds(ctx)
	g.Expect(err).NotTo(HaveOccurred())
	t.Cleanup(w.seeds.Stop)
	s.Upstream.SetRate(rate)
	for i, process := range s.Controllers() {
		up := func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return !w.down[i]
		}
		w.keep(process, up, func() (*cluster.Process, error) { return s.RestartController(ctx, i) })
	}
	for _, node := range s.Cluster.Nodes() {
		w.keepAgent(node)
	}
	return w
}

func (w *world) keepAgent(node *cluster.Node) {
	on := func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return !w.off[node.Name]
	}
	w.keep(w.Agent(node), on, func() (*cluster.Process, error) { return w.StartAgent(w.ctx, node) })
}

// keep starts a program again whenever it has ended, as long as its machine runs.
func (w *world) keep(process *cluster.Process, may func() bool, start func() (*cluster.Process, error)) {
	const pause = 100 * time.Millisecond
	w.work.Go(func() {
		for {
			select {
			case <-process.Done():
			case <-w.ctx.Done():
				return
			}
			if may() {
				if next, err := start(); next != nil {
					process = next
				} else {
					w.Logf("starting again: %v", err)
				}
			}
			if wait(w.ctx, pause) != nil {
				return
			}
		}
	})
}

// power says whether a node is to have its agent.
func (w *world) power(node *cluster.Node, on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.off[node.Name] = !on
}

// keepDown says whether a controller is left down when it has ended.
func (w *world) keepDown(controller int, down bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down[controller] = down
}

// leader is the controller that got the lease last, by what they log.
func (w *world) leader() (leader int) {
	var since time.Time
	for i, process := range w.Controllers() {
		log, err := os.ReadFile(process.Log)
		if err != nil {
			w.Fatal(err)
		}
		for lines := bufio.NewScanner(bytes.NewReader(log)); lines.Scan(); {
			var line struct {
				Time time.Time
				Msg  string
			}
			if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "Successfully acquired lease" && line.Time.After(since) {
				leader, since = i, line.Time
			}
		}
	}
	return leader
}

// nodeAt is the node with an address; nil if there is none any more.
func (w *world) nodeAt(address string) *cluster.Node {
	all := w.Cluster.Nodes()
	if at := slices.IndexFunc(all, func(n *cluster.Node) bool { return n.IP == address }); at >= 0 {
		return all[at]
	}
	return nil
}
