// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// Options of an Agent. Every field is required unless it says otherwise.
type Options struct {
	// Runtime of the node.
	Runtime Runtime
	// Status is where the outcome is written.
	Status StatusWriter
	// Credentials for the registry; nil is anonymous.
	Credentials Credentials
	// MaxParallelPulls bounds the pulls that run at a time.
	MaxParallelPulls int
	// NoProgressTimeout ends a pull that received nothing for so long.
	NoProgressTimeout time.Duration
	// VerifyInterval is how often presence is looked up again without any event.
	VerifyInterval time.Duration
	Log            logr.Logger
	// Metrics may be nil.
	Metrics *Metrics
}

const (
	// maxParallelChecks bounds lookups in the runtime's database; a pull does not
	// hold them up.
	maxParallelChecks = 4
	// batchDelay is how long a change of state waits for others to be written with it.
	batchDelay = 20 * time.Millisecond
	// sameStageDelay is how long news of one image waits while others are at the same stage:
	// the images of one prefetch are asked for, and come, at about the same time.
	sameStageDelay = 200 * time.Millisecond
	// transientDelay is how long a change waits that the next one is likely to supersede: a
	// pull that is over by then costs one write, not two.
	transientDelay = time.Second
	// acknowledgeDelay is how long it takes at most to say that a spec was taken up which
	// leaves nothing to do, if there is nothing else to say before.
	acknowledgeDelay = 3 * time.Second
	// Progress of a pull is written after 2 s, 4 s and so on, so that a long pull
	// costs few writes, up to every 30 s, so that it does not look dead.
	minProgressInterval = 2 * time.Second
	maxProgressInterval = 30 * time.Second
)

// Agent brings a node to a spec. Make it with New, and give it specs with Apply.
type Agent struct {
	Options

	inbox     chan func()
	done      chan struct{} // closed when Run returns
	synced    atomic.Bool
	connected atomic.Bool
	work      sync.WaitGroup

	// What follows belongs to the goroutine of Run.
	entries    map[string]*entry
	uid        types.UID
	generation int64
	lostAt     time.Time // when the runtime ceased to answer; zero while it does
	outage     *outage   // nil while the runtime can be worked with
	pulls      int
	checks     int
	retainDue  bool // the runtime is to be told what to retain
	retaining  bool
	verifyAt   time.Time
	reporter   reporter
}

// New returns an Agent that does nothing until Run.
func New(opts Options) *Agent {
	return &Agent{
		Options: opts,
		inbox:   make(chan func()),
		done:    make(chan struct{}),
		entries: map[string]*entry{},
	}
}

// Apply takes up the node's NodeImageSet; nil when there is none. It returns at once.
func (a *Agent) Apply(set *v1alpha1.NodeImageSet) {
	a.post(func() { a.apply(set) })
}

// Synced says whether the agent knows what the node shall hold.
func (a *Agent) Synced() bool { return a.synced.Load() }

// Connected says whether the runtime answers.
func (a *Agent) Connected() bool { return a.connected.Load() }

// Run works until ctx ends, and returns when nothing of it runs any more.
func (a *Agent) Run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer a.work.Wait()
	defer close(a.done)
	defer cancel()

	a.work.Go(func() { a.watch(ctx) })
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case f := <-a.inbox:
			f()
		case <-timer.C:
		}
		now := time.Now()
		wakeAt := a.advance(ctx, now)
		timer.Reset(wakeAt.Sub(now))
	}
}

// post runs f in the loop.
func (a *Agent) post(f func()) {
	select {
	case a.inbox <- f:
	case <-a.done:
	}
}

// postAfter runs f in the loop after a while.
func (a *Agent) postAfter(delay time.Duration, f func()) {
	time.AfterFunc(delay, func() { a.post(f) })
}

// advance starts whatever can start, and says when time alone calls for the next look.
func (a *Agent) advance(ctx context.Context, now time.Time) (wakeAt time.Time) {
	if a.verifyAt.IsZero() {
		a.verifyAt = now.Add(a.VerifyInterval)
	}
	if !now.Before(a.verifyAt) {
		a.verifyAll(now)
	}
	wakeAt = earliest(a.verifyAt, a.schedule(ctx, now))
	a.retain(ctx)
	return earliest(wakeAt, a.writeStatus(ctx, now))
}

// verifyAll has everything looked up again.
func (a *Agent) verifyAll(now time.Time) {
	a.verifyAt = now.Add(a.VerifyInterval)
	a.retainDue = true
	for _, e := range a.entries {
		e.needsCheck = true
	}
}

func earliest(a, b time.Time) time.Time {
	if b.IsZero() || (!a.IsZero() && a.Before(b)) {
		return a
	}
	return b
}
