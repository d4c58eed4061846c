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

// attempt is one running pull. The fields below mu are shared with the pull's goroutine; the others
// belong to the Agent's loop.
type attempt struct {
	pull PullRequest
	// requestIDs are those of the spec when the pull began. It does not answer later ones.
	requestIDs string
	started    time.Time
	// progressDue is when the progress is reported next, and progressInterval the time between that
	// report and the following one.
	progressDue      time.Time
	progressInterval time.Duration

	cancel    context.CancelCauseFunc
	abandoned bool

	mu       sync.Mutex
	progress Progress
	received time.Time // since when progress.Received is true; zero while it is false
}

var errAbandoned = errors.New("the spec has changed")

func (a *attempt) abandon() {
	a.abandoned = true
	a.cancel(errAbandoned)
}

// usefulFor reports whether the pull still serves an entry with that policy and digest.
func (a *attempt) usefulFor(policy v1alpha1.RegistryPolicy, want digest.Digest, resolve bool) bool {
	if a.abandoned || a.pull.Policy != policy {
		return false
	}
	resolved := a.latestProgress().Digest
	// As long as the registry has not answered, the digest may still be the right one.
	return resolve || resolved == "" || resolved == want
}

func (a *attempt) latestProgress() Progress {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.progress
}

// receivedAt is when the last content arrived, after which there is only work on the node; zero
// while content is still to come.
func (a *attempt) receivedAt() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.received
}

// recordProgress records progress. It reports whether the digest is new.
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

// run pulls, and ends the pull when there was no progress for the timeout. resolved is called when
// the digest is known.
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
		// The cause says more than "context canceled", which the runtime returns.
		err = fmt.Errorf("%w: %w", cause, err)
	}
	return result, err
}
