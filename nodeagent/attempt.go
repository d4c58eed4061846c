// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// attempt is one running pull. Progress and the timeout are shared with its
// goroutine; the rest belongs to the Agent's loop.
type attempt struct {
	pull PullRequest
	// requestIDs is the request of the spec when it began: what came later is not
	// answered by it.
	requestIDs string
	started    time.Time
	// progressDue is when its progress is written next, and pause how long after that.
	progressDue      time.Time
	progressInterval time.Duration

	cancel    context.CancelCauseFunc
	abandoned bool

	mu       sync.Mutex
	progress Progress
	received time.Time // since when Progress says so; zero if it does not
}

var errAbandoned = errors.New("the spec asks for something else now")

func (a *attempt) abandon() {
	a.abandoned = true
	a.cancel(errAbandoned)
}

// usefulFor says whether its outcome is still of use.
func (a *attempt) usefulFor(policy v1alpha1.RegistryPolicy, want digest.Digest, resolve bool) bool {
	if a.abandoned || a.pull.Policy != policy {
		return false
	}
	resolved := a.latestProgress().Digest
	// While the registry is still being asked, nothing says that the answer differs.
	return resolve || resolved == "" || resolved == want
}

func (a *attempt) latestProgress() Progress {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.progress
}

// receivedAt is since when there is nothing left but work on the node; zero if there is.
func (a *attempt) receivedAt() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.received
}

// recordProgress records progress, and says whether the digest is news.
func (a *attempt) recordProgress(p Progress) (resolved bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	resolved = p.Digest != "" && a.progress.Digest != p.Digest
	if !p.Received {
		a.received = time.Time{}
	} else if a.received.IsZero() {
		a.received = time.Now()
	}
	a.progress = p
	return resolved
}

// run pulls with a timeout on lack of progress. resolved is called once, when the
// digest is known.
func (a *attempt) run(ctx context.Context, runtime Runtime, timeout time.Duration, resolved func()) (Result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(timeout, func() {
		cancel(fmt.Errorf("%w for %v", ErrNoProgress, timeout))
	})
	defer watchdog.Stop()

	result, err := runtime.Pull(ctx, a.pull, func(p Progress) {
		watchdog.Reset(timeout)
		if a.recordProgress(p) {
			resolved()
		}
	})
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(err, cause) {
		// The cause says more than the "context canceled" that came of it.
		err = fmt.Errorf("%w: %w", cause, err)
	}
	return result, err
}
