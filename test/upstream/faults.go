// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"net/http"
	"slices"
	"time"

	"golang.org/x/time/rate"
)

// SetRate bounds the uplink: all bodies together, in bytes per second. 0 is
// unlimited.
func (s *Server) SetRate(bytesPerSecond int64) {
	s.update(func() {
		s.uplink = nil
		if bytesPerSecond > 0 {
			// Small pieces share the uplink evenly between connections; large ones
			// cost less. A hundredth of a second's worth is both.
			piece := min(max(bytesPerSecond/100, 512), 64<<10)
			s.uplink = rate.NewLimiter(rate.Limit(bytesPerSecond), int(piece))
		}
	})
}

// SetLatency makes every request wait before anything else happens to it.
func (s *Server) SetLatency(latency time.Duration) {
	s.update(func() { s.latency = latency })
}

// Outage is how a registry is out of reach.
type Outage int

const (
	// Refuse closes all connections and refuses new ones, as a dead process does.
	Refuse Outage = iota
	// Hang keeps connections, also new ones, and sends nothing, as a firewall
	// that drops packets does. What waited goes on after Restore.
	Hang
)

// CutOff takes the registry out of reach until Restore.
func (s *Server) CutOff(outage Outage) error {
	var err error
	s.update(func() {
		if outage == Hang {
			s.hanging = true
			return
		}
		err = s.disconnect()
	})
	return err
}

// Restore ends a CutOff. The address stays the same.
func (s *Server) Restore() error {
	var err error
	s.update(func() {
		s.hanging = false
		if s.http == nil {
			err = s.listen(s.address)
		}
	})
	return err
}

// Effect is what a fault does to a request.
type Effect struct {
	action action
	status int
	after  int64
	fault  *fault // whose removal ends a stall
	echoes bool
	echoed string // by this answer
}

type action int

const (
	none action = iota
	answer
	resetting
	stall
)

// Answer refuses the request with the status.
func Answer(status int) Effect { return Effect{action: answer, status: status} }

// Echo refuses the request with the status and repeats the client's credentials in the
// message: those of the request, or those that its token was given for. It befalls only
// requests that show some.
func Echo(status int) Effect { return Effect{action: answer, status: status, echoes: true} }

// ResetAfter resets the connection when n bytes of the body have arrived. It
// befalls only GETs of content that is larger.
func ResetAfter(n int64) Effect { return Effect{action: resetting, after: n} }

// StallAfter sends n bytes of the body and then nothing, until the fault is
// removed. It befalls only GETs of content that is larger.
func StallAfter(n int64) Effect { return Effect{action: stall, after: n} }

func (e Effect) breaksAfter() (int64, bool) {
	return e.after, e.action == resetting || e.action == stall
}

// reaches reports whether the request has a body long enough for the effect, and credentials
// if it repeats them.
func (e Effect) reaches(r *Request, shown string) bool {
	if e.echoes && shown == "" {
		return false
	}
	after, breaks := e.breaksAfter()
	return !breaks || r.Method == http.MethodGet && r.Size > after
}

type fault struct {
	match   Match
	left    int // negative: for ever
	effect  Effect
	removed bool
}

// Inject makes the effect befall the next times requests that match, or all of
// them if times is 0, until remove is called. Of several faults that match a
// request the first injected one strikes.
func (s *Server) Inject(match Match, times int, effect Effect) (remove func()) {
	f := &fault{match: match, left: times, effect: effect}
	if times == 0 {
		f.left = -1
	}
	f.effect.fault = f
	s.update(func() { s.faults = append(s.faults, f) })
	return func() {
		s.update(func() {
			f.removed = true
			s.faults = slices.DeleteFunc(s.faults, func(other *fault) bool { return other == f })
		})
	}
}

// strike finds the fault that befalls the request.
func (s *Server) strike(request *Request, r *http.Request) Effect {
	s.mu.Lock()
	defer s.mu.Unlock()
	shown := s.protection.shown(r)
	for _, f := range s.faults {
		if f.left != 0 && f.effect.reaches(request, shown) && f.match(*request) {
			f.left--
			effect := f.effect
			if effect.echoes {
				effect.echoed = "no access for " + shown
			}
			return effect
		}
	}
	return Effect{}
}

// delay holds a request back before it is answered.
func (s *Server) delay(ctx context.Context) error {
	s.mu.Lock()
	latency := s.latency
	s.mu.Unlock()
	if latency > 0 {
		timer := time.NewTimer(latency)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return s.connected(ctx)
}

// connected returns when the uplink does not hang.
func (s *Server) connected(ctx context.Context) error {
	return s.waitUntil(ctx, func() bool { return !s.hanging })
}

// acquire waits until the uplink takes a piece of what is wanted, and says how
// large it is. It is asked for each piece, so that a change of rate or an
// outage meets also the bodies on the way.
func (s *Server) acquire(ctx context.Context, want int) (int, error) {
	for {
		if err := s.connected(ctx); err != nil {
			return 0, err
		}
		s.mu.Lock()
		uplink, changed := s.uplink, s.changed
		s.mu.Unlock()
		if uplink == nil {
			return want, nil
		}
		piece := min(want, uplink.Burst())
		reservation := uplink.ReserveN(time.Now(), piece)
		timer := time.NewTimer(reservation.Delay())
		select {
		case <-timer.C:
			return piece, nil
		case <-changed:
			reservation.Cancel()
		case <-ctx.Done():
			reservation.Cancel()
			return 0, ctx.Err()
		}
		timer.Stop()
	}
}
