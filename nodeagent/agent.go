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
	// Runtime is the node's.
	Runtime Runtime
	// Status writes the NodeImageSet's status.
	Status StatusWriter
	// Credentials are for the registry; nil is anonymous.
	Credentials Credentials
	// NodeCredentials are for the registry, beside Credentials; nil is none.
	NodeCredentials NodeCredentials
	// MaxParallelPulls is the number of slots: how many pulls run at the same time.
	MaxParallelPulls int
	// NoProgressTimeout is how long a pull may make no progress before it ends.
	NoProgressTimeout time.Duration
	// VerifyInterval is the time between two checks of all images without any event.
	VerifyInterval time.Duration
	Log            logr.Logger
	// Metrics may be nil.
	Metrics *Metrics
}

const (
	// maxParallelChecks is how many checks run at the same time, beside the pulls, and how many looks
	// for what a name means. It spares the runtime's database.
	maxParallelChecks = 4

	// The delays until a change is reported. One report has all changes until then, so each delay
	// saves writes.

	// batchDelay is for a change that the controller waits for.
	batchDelay = 20 * time.Millisecond
	// sameStageDelay is for a change of one entry while others are about to change in the same way:
	// the images of one prefetch are resolved, and come, at about the same time.
	sameStageDelay = 200 * time.Millisecond
	// transientDelay is for a change that the next one is likely to supersede: a pull that ends
	// within it costs one write.
	transientDelay = time.Second
	// acknowledgeDelay is for the acknowledgement of a spec that leaves nothing to do.
	acknowledgeDelay = 3 * time.Second

	// The progress of a pull is reported after 2 s, 4 s and so on, so that a long pull costs few
	// writes, and then with each heartbeat, so that the controller sees that it moves.
	minProgressInterval = 2 * time.Second
	maxProgressInterval = v1alpha1.HeartbeatInterval
)

// Agent brings the images of a spec onto a node. Make it with New, and give it specs with Apply.
type Agent struct {
	Options

	inbox     chan func()   // what the loop is to run
	done      chan struct{} // closed when Run returns
	synced    atomic.Bool
	connected atomic.Bool
	work      sync.WaitGroup

	// The fields below belong to the loop, which is the goroutine of Run.
	entries    map[string]*entry
	uid        types.UID
	generation int64
	lostAt     time.Time // when the runtime was lost; zero while it is connected
	outage     *outage   // nil while there is none to report
	findings   []Finding // what is wrong on the node
	examined   bool      // findings are there, even if there are none
	pulls      int       // that run
	checks     int       // that run
	looks      int       // that run, for what the node has under a name
	retainDue  bool      // the list of images to retain may have changed
	retaining  bool
	verifyAt   time.Time
	reporter   reporter
}

// New returns an Agent. It does nothing until Run.
func New(opts Options) *Agent {
	return &Agent{
		Options: opts,
		inbox:   make(chan func()),
		done:    make(chan struct{}),
		entries: map[string]*entry{},
	}
}

// Apply gives the agent the node's NodeImageSet, or nil if there is none. It returns at once.
func (a *Agent) Apply(set *v1alpha1.NodeImageSet) {
	a.post(func() { a.apply(set) })
}

// Synced reports whether the agent knows the node's spec, or that there is none.
func (a *Agent) Synced() bool { return a.synced.Load() }

// Connected reports whether the runtime answers.
func (a *Agent) Connected() bool { return a.connected.Load() }

// Run is the loop. It ends with ctx, and returns when all goroutines of the agent have ended.
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

// post has the loop run f. The methods whose names begin with "on" are only called like this.
func (a *Agent) post(f func()) {
	select {
	case a.inbox <- f:
	case <-a.done:
	}
}

// postAfter has the loop run f after the delay.
func (a *Agent) postAfter(delay time.Duration, f func()) {
	time.AfterFunc(delay, func() { a.post(f) })
}

// advance starts every check, pull and write that can start. It returns when the time alone calls
// for the next call.
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

// verifyAll has all images checked again, and the pins set again.
func (a *Agent) verifyAll(now time.Time) {
	a.verifyAt = now.Add(a.VerifyInterval)
	a.retainDue = true
	for _, e := range a.entries {
		e.needsCheck = true
	}
}

// earliest returns the earlier of two times. A zero time is never.
func earliest(a, b time.Time) time.Time {
	if b.IsZero() || (!a.IsZero() && a.Before(b)) {
		return a
	}
	return b
}
