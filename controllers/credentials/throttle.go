// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package credentials

import (
	"net"
	"sync"

	"golang.org/x/time/rate"
)

// A node asks once per pull from upstream, and few nodes do that at a time. The limits
// are far above it, and keep the API server from paying for a flood: each request costs
// it a TokenReview.
const (
	ratePerSource  = 20 // requests per second of one address
	burstPerSource = 100
	maxInFlight    = 64
	maxSources     = 4096
)

// throttle bounds the requests of each address and those in flight.
type throttle struct {
	inFlight chan struct{}

	mu sync.Mutex
	// Addresses are forgotten by generations, so that memory is bounded.
	recent, older map[string]*rate.Limiter
}

func newThrottle() *throttle {
	return &throttle{inFlight: make(chan struct{}, maxInFlight), recent: map[string]*rate.Limiter{}}
}

// admit says whether a request may go on; if so, leave is to be called at its end.
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
