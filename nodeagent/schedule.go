// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// schedule starts checks and pulls as far as there are slots, and returns when the
// next try is due.
func (a *Agent) schedule(ctx context.Context, now time.Time) (wake time.Time) {
	if !a.connected.Load() {
		return time.Time{} // reconnecting looks at everything again
	}
	var queue []*image
	for _, i := range a.images {
		switch i.next(now) {
		case check:
			if a.checks < maxParallelChecks {
				a.startCheck(ctx, i)
			}
		case wait:
			wake = earliest(wake, i.due)
		case pull:
			if i.since.IsZero() {
				i.since = now
			}
			queue = append(queue, i)
		case rest:
		}
	}
	slices.SortFunc(queue, func(x, y *image) int {
		if c := x.since.Compare(y.since); c != 0 {
			return c
		}
		return strings.Compare(x.entry.Name, y.entry.Name)
	})
	for _, i := range queue[:min(len(queue), a.MaxParallelPulls-a.pulls)] {
		a.startPull(ctx, i, now)
	}
	return wake
}

func (a *Agent) startCheck(ctx context.Context, i *image) {
	want, _ := i.wanted()
	i.checking, i.unchecked = true, false
	a.checks++
	a.work.Go(func() {
		presence, err := a.Runtime.Check(ctx, i.ref, want)
		a.post(func() { a.checked(i, want, presence, err) })
	})
}

func (a *Agent) checked(i *image, want digest.Digest, presence Presence, err error) {
	i.checking = false
	a.checks--
	now := time.Now()
	current, _ := i.wanted()
	switch {
	case i.gone:
		a.forget(i)
	case want != current:
		i.unchecked = true
	case err != nil:
		a.Log.Error(err, "Failed to check image", "image", i.entry.Name)
		a.later(backoff(1), func() { i.unchecked = true })
	case presence.Present:
		if !i.present && i.status.Source == "" {
			i.status.Source = v1alpha1.SourceLocal
		}
		if !i.present { // else it was our own pull that had it looked up
			a.report.change(now, batch)
		}
		i.status.SizeBytes = presence.SizeBytes
		i.succeed(want)
	case i.present:
		a.Log.Info("Image was no longer complete", "image", i.entry.Name, "digest", want)
		i.present = false
		i.status.Attempts = 0
		a.report.change(now, settle)
	default:
		a.report.change(now, settle)
	}
}

func (a *Agent) startPull(ctx context.Context, i *image, now time.Time) {
	want, ask := i.wanted()
	if ask {
		want = ""
	}
	ctx, cancel := context.WithCancelCause(ctx)
	att := &attempt{
		request: Request{Ref: i.ref, Digest: want, Policy: i.entry.RegistryPolicy, Pinned: pinned(i.entry)},
		answers: i.entry.Request,
		started: now,
		report:  now.Add(settle),
		pause:   minReportPause,
		cancel:  cancel,
	}
	i.attempt, i.since = att, time.Time{}
	i.status.Attempts++
	a.pulls++
	a.Log.Info("Started pull", "image", i.entry.Name, "digest", want, "policy", att.request.Policy, "attempt", i.status.Attempts)

	// What needs no credentials must not wait for the controller, which may be away.
	private := len(i.entry.ImagePullSecrets) > 0
	a.work.Go(func() {
		defer cancel(nil)
		result, err := Result{}, error(nil)
		if a.Credentials != nil && att.request.Policy == v1alpha1.RegistryPolicyDefault && private {
			att.request.Credentials, err = a.Credentials.For(ctx, i.entry.Name)
		}
		if err == nil {
			result, err = att.run(ctx, a.Runtime, a.NoProgressTimeout, func() {
				a.post(func() { a.resolved(i, att) })
			})
			err = Redact(err, att.request.Credentials)
		}
		a.post(func() { a.pulled(i, att, result, err) })
	})
}

// resolved takes up the answer of the registry before the content is complete:
// peers follow it.
func (a *Agent) resolved(i *image, att *attempt) {
	if i.attempt != att || att.abandoned || att.request.Digest != "" {
		return
	}
	a.answered(i, att, att.seen().Digest)
	pause := batch
	for _, other := range a.images {
		if o := other.attempt; o != nil && o.request.Digest == "" && o.seen().Digest == "" {
			pause = together
		}
	}
	a.report.change(time.Now(), pause)
}

func (a *Agent) answered(i *image, att *attempt, d digest.Digest) {
	if i.answer.digest == d && i.answer.request == att.answers {
		return
	}
	before, _ := i.wanted()
	i.answer = answer{digest: d, request: att.answers, over: digest.Digest(i.entry.Digest)}
	if want, _ := i.wanted(); want != before {
		i.present = false
	}
	a.Log.Info("Resolved tag", "image", i.entry.Name, "digest", d, "request", att.answers)
}

func (a *Agent) pulled(i *image, att *attempt, result Result, err error) {
	now := time.Now()
	i.attempt = nil
	a.pulls--
	a.Metrics.observe(att, result, err, now.Sub(att.started))
	if !errors.Is(err, ErrInsufficientDisk) {
		a.roomMade() // what it had reserved, at least
	}
	switch {
	case i.gone:
		a.forget(i)
		return
	case att.abandoned:
		i.unchecked = true
		return
	}
	i.status.StartedAt, i.status.FinishedAt = timestamp(att.started), timestamp(now)
	i.status.PulledBytes = max(att.seen().PulledBytes, result.PulledBytes)
	if err != nil {
		before := i.failed
		if i.status.PulledBytes > 0 && att.request.Policy == v1alpha1.RegistryPolicyMirror {
			// It follows a seed that is slower than our patience: each try that brings
			// something is a new beginning. What it brought stays.
			i.failures = 0
		}
		i.fail(err, now)
		a.Log.Info("Pull failed", "image", i.entry.Name, "reason", i.status.Reason, "message", i.status.Message,
			"attempt", i.status.Attempts, "failed", i.failed)
		pause := settle // the next try is likely to supersede it
		if i.failed && !before {
			pause = batch
		}
		a.report.change(now, pause)
		return
	}
	if att.request.Digest == "" {
		a.answered(i, att, result.Digest)
	}
	i.status.Source, i.status.SizeBytes = result.Source, result.SizeBytes
	i.succeed(result.Digest)
	a.Log.Info("Finished pull", "image", i.entry.Name, "digest", result.Digest, "source", result.Source,
		"bytes", result.PulledBytes, "duration", now.Sub(att.started))
	if a.pulls > 0 {
		a.report.change(now, together)
		return
	}
	a.report.change(now, batch)
}
