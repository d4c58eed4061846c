// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// schedule starts checks and pulls for as long as there are slots. It returns when the next try is
// due.
func (a *Agent) schedule(ctx context.Context, now time.Time) (wakeAt time.Time) {
	if !a.connected.Load() {
		return time.Time{} // onRuntimeConnected has everything checked
	}
	var queue []*entry
	for _, e := range a.entries {
		switch e.nextStep(now) {
		case stepCheck:
			if a.checks < maxParallelChecks {
				a.startCheck(ctx, e)
			}
		case stepWait:
			wakeAt = earliest(wakeAt, e.retryAt)
		case stepPull:
			if e.looksLocally() {
				if a.looks < maxParallelChecks {
					a.startPull(ctx, e, now)
				}
				continue
			}
			if e.queuedAt.IsZero() {
				e.queuedAt = now
			}
			queue = append(queue, e)
		case stepNone:
		}
	}
	slices.SortFunc(queue, func(x, y *entry) int {
		if c := x.queuedAt.Compare(y.queuedAt); c != 0 {
			return c
		}
		return strings.Compare(x.spec.Name, y.spec.Name)
	})
	for _, e := range queue[:min(len(queue), a.MaxParallelPulls-a.pulls)] {
		a.startPull(ctx, e, now)
	}
	return wakeAt
}

func (a *Agent) startCheck(ctx context.Context, e *entry) {
	want, _ := e.wanted()
	e.checking, e.needsCheck = true, false
	a.checks++
	a.work.Go(func() {
		presence, err := a.Runtime.Check(ctx, e.ref, want)
		a.post(func() { a.onChecked(e, want, presence, err) })
	})
}

func (a *Agent) onChecked(e *entry, want digest.Digest, presence Presence, err error) {
	e.checking = false
	a.checks--
	now := time.Now()
	current, _ := e.wanted()
	switch {
	case e.removed:
		a.forget(e)
	case want != current:
		e.needsCheck = true
	case err != nil:
		a.Log.Error(err, "Failed to check image", "image", e.spec.Name)
		a.postAfter(backoff(1), func() { e.needsCheck = true })
	case presence.Present:
		if !e.present && e.status.Source == "" {
			e.status.Source = v1alpha1.SourceLocal
		}
		if !e.present { // a present entry is checked after its own pull, which has been reported
			a.reporter.writeWithin(now, batchDelay)
		}
		e.status.SizeBytes = presence.SizeBytes
		e.succeed(want)
	case e.present:
		a.Log.Info("Image was no longer complete", "image", e.spec.Name, "digest", want)
		e.present = false
		e.status.Attempts = 0
		a.reporter.writeWithin(now, transientDelay)
	default:
		a.reporter.writeWithin(now, transientDelay)
	}
}

func (a *Agent) startPull(ctx context.Context, e *entry, now time.Time) {
	want, resolve := e.wanted()
	if resolve || e.looksLocally() {
		want = ""
	}
	ctx, cancel := context.WithCancelCause(ctx)
	att := &attempt{
		pull:             PullRequest{Ref: e.ref, Digest: want, Policy: e.spec.RegistryPolicy, Pinned: pinned(e.spec)},
		requestIDs:       e.spec.Request,
		started:          now,
		progressDue:      now.Add(transientDelay),
		progressInterval: minProgressInterval,
		cancel:           cancel,
	}
	e.attempt, e.queuedAt = att, time.Time{}
	e.status.Attempts++
	*a.running(att)++
	a.Log.Info("Started pull", "image", e.spec.Name, "digest", want, "policy", att.pull.Policy, "attempt", e.status.Attempts)

	spec := e.spec
	a.work.Go(func() {
		defer cancel(nil)
		missing, err := a.addCredentials(ctx, spec, &att.pull)
		var result Result
		if err == nil {
			failed := a.addNodeCredentials(ctx, spec.Name, &att.pull)
			result, err = att.run(ctx, a.Runtime, a.NoProgressTimeout, func() {
				a.post(func() { a.onResolved(e, att) })
			})
			err = Redact(explainRefusal(err, failed), att.pull.Credentials)
		}
		if missing != nil && refused(err) {
			err = fmt.Errorf("%w; without them: %s", missing, err.Error())
		}
		a.post(func() { a.onPulled(e, att, result, err) })
	})
}

// running counts the attempts that are limited together. One that looks for what the node has waits for
// no slot: other nodes wait for its answer, and it fetches nothing.
func (a *Agent) running(att *attempt) *int {
	if att.pull.Policy == v1alpha1.RegistryPolicyLocal {
		return &a.looks
	}
	return &a.pulls
}

// optionalCredentialsTimeout is how long a pull waits for credentials that it may do without.
const optionalCredentialsTimeout = 5 * time.Second

// addCredentials asks for the credentials of a seed. The controller may be away, and a pull fails for
// that only if somebody has named a Secret for it. A ServiceAccount may well have none: then the pull
// goes on, and missing is why nothing is known of them.
func (a *Agent) addCredentials(ctx context.Context, spec v1alpha1.NodeImage, pull *PullRequest) (missing, err error) {
	if a.Credentials == nil || pull.Policy != v1alpha1.RegistryPolicyDefault || len(spec.ImagePullSecrets) == 0 {
		return nil, nil
	}
	optional := !slices.ContainsFunc(spec.ImagePullSecrets, func(s v1alpha1.PullSecretSource) bool { return !s.IsServiceAccount() })
	if optional {
		limited, cancel := context.WithTimeout(ctx, optionalCredentialsTimeout)
		defer cancel()
		ctx = limited
	}
	pull.Credentials, err = a.Credentials.For(ctx, spec.Name)
	if err != nil && optional {
		a.Log.Info("Pulled without the credentials of service accounts", "image", spec.Name, "error", err.Error())
		return err, nil
	}
	return nil, err
}

// onResolved records the registry's answer while the pull still runs, because peers wait for the
// digest.
func (a *Agent) onResolved(e *entry, att *attempt) {
	if e.attempt != att || att.abandoned || att.pull.Digest != "" {
		return
	}
	a.recordAnswer(e, att, att.latestProgress().Digest)
	delay := batchDelay
	for _, other := range a.entries {
		if o := other.attempt; o != nil && o.pull.Digest == "" && o.latestProgress().Digest == "" {
			delay = sameStageDelay
		}
	}
	a.reporter.writeWithin(time.Now(), delay)
}

// recordAnswer records the digest that an attempt got for the tag.
func (a *Agent) recordAnswer(e *entry, att *attempt, d digest.Digest) {
	if e.answer.digest == d && e.answer.requestIDs == att.requestIDs {
		return
	}
	before, _ := e.wanted()
	e.answer = answer{digest: d, requestIDs: att.requestIDs, specDigest: digest.Digest(e.spec.Digest)}
	if want, _ := e.wanted(); want != before {
		e.present = false
	}
	a.Log.Info("Resolved tag", "image", e.spec.Name, "digest", d, "requestIDs", att.requestIDs)
}

func (a *Agent) onPulled(e *entry, att *attempt, result Result, err error) {
	now := time.Now()
	e.attempt = nil
	*a.running(att)--
	a.Metrics.observe(att, result, err, now.Sub(att.started))
	if !errors.Is(err, ErrInsufficientDisk) {
		a.retryInsufficientDisk() // the pull's reservation is free again
	}
	switch {
	case e.removed:
		a.forget(e)
		return
	case att.abandoned:
		e.needsCheck = true
		return
	}
	e.status.StartedAt, e.status.FinishedAt = timestamp(att.started), timestamp(now)
	e.status.PulledBytes = max(att.latestProgress().PulledBytes, result.PulledBytes)
	if err != nil {
		if e.looksLocally() {
			e.answer = answer{} // what the name meant before is not what is waited for
		}
		before := e.failed
		if e.status.PulledBytes > 0 && att.pull.Policy == v1alpha1.RegistryPolicyMirror {
			// The seed may be slower than NoProgressTimeout. What arrived stays for the next try,
			// so a try that brought anything is no failure in a row.
			e.failures = 0
		}
		e.fail(err, now)
		a.Log.Info("Pull failed", "image", e.spec.Name, "reason", e.status.Reason, "message", e.status.Message,
			"attempt", e.status.Attempts, "failed", e.failed)
		delay := transientDelay // the next try is likely to supersede this failure
		if e.failed && !before {
			delay = batchDelay
		}
		a.reporter.writeWithin(now, delay)
		return
	}
	if att.pull.Digest == "" {
		a.recordAnswer(e, att, result.Digest)
	}
	e.status.Source, e.status.SizeBytes = result.Source, result.SizeBytes
	e.succeed(result.Digest)
	a.Log.Info("Finished pull", "image", e.spec.Name, "digest", result.Digest, "source", result.Source,
		"bytes", result.PulledBytes, "duration", now.Sub(att.started))
	if a.pulls > 0 {
		a.reporter.writeWithin(now, sameStageDelay)
		return
	}
	a.reporter.writeWithin(now, batchDelay)
}
