// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"

	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/nodeagent/containerd/mirror"
)

// answerTimeout is how long a mirror may answer nothing at all. Spegel takes its
// resolve timeout to say that nobody has something; docs/install.md advises at most 5 s for it.
const answerTimeout = 10 * time.Second

// readHosts reads the hosts of an image's registry.
func (r *Runtime) readHosts(ctx context.Context, req nodeagent.PullRequest, credentials func(string) (string, string, error)) (*mirror.Hosts, error) {
	hosts, err := r.registries.Read(ctx, req.Ref.Domain(), credentials)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(hosts.Unusable, hosts.Rejected); err != nil && r.unusable.note(req.Ref.Domain(), err.Error()) {
		select {
		case r.noticed <- struct{}{}:
		default: // it is looked at already
		}
	}
	return &hosts, nil
}

func (r *Runtime) mirrorClient(hosts *mirror.Hosts, req nodeagent.PullRequest) *mirror.Client {
	return &mirror.Client{
		Hosts:          hosts.Mirrors,
		Registry:       req.Ref.Domain(),
		Repository:     req.Ref.Path(),
		UserAgent:      r.UserAgent,
		Throttle:       &r.throttle,
		AnswerTimeout:  min(answerTimeout, r.NoProgressTimeout),
		SilenceTimeout: r.NoProgressTimeout,
	}
}

func hostNames(hosts []docker.RegistryHost) (names []string) {
	for _, host := range hosts {
		names = append(names, host.Host)
	}
	return names
}

// said remembers what was said, so that it is said once.
type said struct {
	mu    sync.Mutex
	words map[string]string
}

// note reports whether the words about a subject are new.
func (s *said) note(subject, words string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.words[subject] == words {
		return false
	}
	if s.words == nil {
		s.words = map[string]string{}
	}
	s.words[subject] = words
	return true
}

// stuckFor is how long a registry's mirrors are looked at more closely after a pull of a seed has
// received nothing.
const stuckFor = 5 * time.Minute

// stuck remembers registries of which a pull has received nothing.
type stuck struct {
	mu    sync.Mutex
	until map[string]time.Time
}

func (s *stuck) note(registry string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.until == nil {
		s.until = map[string]time.Time{}
	}
	s.until[registry] = time.Now().Add(stuckFor)
}

func (s *stuck) lately(registry string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Before(s.until[registry])
}
