// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"crypto/x509"
	"slices"
	"time"

	"github.com/sluice-dev/sluice/nodeagent"
)

// The node is looked at when the daemon is connected, a minute later, and then at longer and longer
// intervals: what is mended is to be seen soon, and mirrors are not to be asked all the time.
const (
	minExamineInterval = time.Minute
	maxExamineInterval = 10 * time.Minute
)

// Examine looks at all that the agent needs on the node. It returns a finding for each thing, in an order
// that stays the same.
func (r *Runtime) Examine(ctx context.Context) []nodeagent.Finding {
	findings := append(r.examineDaemon(ctx), r.examineScratch(), examineAuthorities())
	return append(findings, r.examineRegistries(ctx)...)
}

// examineRepeatedly calls found with what is wrong, and again when that has changed, until ctx ends. It
// looks at once when something was noticed elsewhere.
func examineRepeatedly(ctx context.Context, noticed <-chan struct{},
	examine func(context.Context) []nodeagent.Finding, found func([]nodeagent.Finding),
) {
	var last []nodeagent.Finding
	for first, interval := true, minExamineInterval; ; first, interval = false, min(2*interval, maxExamineInterval) {
		wrong := slices.DeleteFunc(examine(ctx), func(f nodeagent.Finding) bool { return f.Severity == nodeagent.SeverityOK })
		if ctx.Err() != nil {
			return
		}
		if first || !slices.Equal(wrong, last) {
			found(wrong)
		}
		last = wrong
		select {
		case <-ctx.Done():
			return
		case <-noticed:
		case <-time.After(interval):
		}
	}
}

func good(subject, format string, args ...any) nodeagent.Finding {
	return nodeagent.NewFinding(nodeagent.SeverityOK, subject, format, args...)
}

func warning(subject, format string, args ...any) nodeagent.Finding {
	return nodeagent.NewFinding(nodeagent.SeverityWarning, subject, format, args...)
}

func failure(subject, format string, args ...any) nodeagent.Finding {
	return nodeagent.NewFinding(nodeagent.SeverityError, subject, format, args...)
}

// examineScratch looks whether the agent can write hosts.toml files for the daemon.
func (r *Runtime) examineScratch() nodeagent.Finding {
	const subject = "scratch path"
	if err := r.registries.TryScratch(); err != nil {
		return failure(subject, "%v: mount a folder of the node there that can be written, or name one with --scratch-path", err)
	}
	return good(subject, "%s can be written", r.ScratchPath)
}

// examineAuthorities looks whether the agent trusts any HTTPS server.
func examineAuthorities() nodeagent.Finding {
	const subject = "certificate authorities"
	pool, err := x509.SystemCertPool()
	if err != nil || pool.Equal(x509.NewCertPool()) {
		return warning(subject, "none is seen here, so that the agent trusts no HTTPS server without a \"ca\" in its hosts.toml, "+
			"and asks registries through containerd: name the node's folder of them in agent.trustDirs, such as /etc/pki")
	}
	return good(subject, "those of the system are seen here")
}
