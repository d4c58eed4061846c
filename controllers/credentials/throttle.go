// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package credentials

import (
	"net"
	"sync"

	"golang.org/x/time/rate"
)

// Each request costs the API server a TokenReview, so these limits spare it a flood of them. They
// are far above normal use: a node asks once per pull from upstream, and few nodes pull from there
// at a time.
const (
	ratePerSource  = 20 // requests per second of one address
	burstPerSource = 100
	maxInFlight    = 64
	maxSources     = 4096
)

// throttle bounds the rate of requests from each address, and the number in flight from all.
type throttle struct {
	inFlight chan struct{}

	mu sync.Mutex
	// recent and older are two generations of addresses. The older one is dropped when the recent
	// one is full, so that memory is bounded.
	recent, older map[string]*rate.Limiter
}

func newThrottle() *throttle {
	return &throttle{inFlight: make(chan struct{}, maxInFlight), recent: map[string]*rate.Limiter{}}
}

// admit reports whether a request may go on. If so, done must be called when it ends.
func (l *throttle) admit(remote string) (done func(), ok bool) {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		host = remote
	}
	if !l.limiter(host).Allow() {
		return nil, false
	}
	select {
	case l.inFlight <- struct{}{}:
		return func() { <-l.inFlight }, true
	default:
		return nil, false
	}
}

func (l *throttle) limiter(host string) *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	limiter, ok := l.recent[host]
	if ok {
		return limiter
	}
	if limiter, ok = l.older[host]; !ok {
		limiter = rate.NewLimiter(ratePerSource, burstPerSource)
	}
	if len(l.recent) == maxSources {
		l.recent, l.older = map[string]*rate.Limiter{}, l.recent
	}
	l.recent[host] = limiter
	return limiter
}
