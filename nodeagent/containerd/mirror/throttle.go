// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"context"
	"sync"
	"time"
)

// Throttle lets one request at a time through for a key, and none during the pause that follows a
// request that failed. A key is a blob on a mirror. All clients of a node share one Throttle, so
// that two images with a common layer ask for it once.
type Throttle struct {
	// AfterMiss is the pause after the mirror answered without the blob. Spegel repeats a miss
	// for some 2.5 s and is likely to be wrong for 5 s.
	AfterMiss time.Duration
	// AfterError is the pause after the mirror gave no answer.
	AfterError time.Duration
	// AfterSilence is the pause for everything on a mirror that has answered nothing for long.
	AfterSilence time.Duration
	// AfterDistrust is how long a mirror is asked last that has begun to send something and has not sent
	// all of it, or something else.
	AfterDistrust time.Duration
	// Began is when the process began. For StartTimeout from then on, a mirror that has never
	// answered may be starting still, as on a node that has just joined.
	Began        time.Time
	StartTimeout time.Duration

	mu    sync.Mutex
	keys  map[string]*keyState
	hosts map[string]hostState
}

// hostState is of a mirror that has answered, or was silent.
type hostState struct{ answered, silentUntil, distrustedUntil time.Time }

// noteAnswer notes that a mirror has answered, whatever it said.
func (t *Throttle) noteAnswer(host string) {
	t.change(host, func(s *hostState) { s.answered, s.silentUntil = time.Now(), time.Time{} })
}

// distrust has a mirror asked last for the AfterDistrust.
func (t *Throttle) distrust(host string) {
	t.change(host, func(s *hostState) { s.distrustedUntil = time.Now().Add(t.AfterDistrust) })
}

func (t *Throttle) change(host string, change func(*hostState)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.hosts == nil {
		t.hosts = map[string]hostState{}
	}
	state := t.hosts[host]
	change(&state)
	t.hosts[host] = state
}

// noteSilence notes that a mirror has left a request of that time without an answer, and reports
// whether it counts as silent: it has not answered another one since. A mirror that waits for one
// node that hangs, or for a large layer, is not silent.
func (t *Throttle) noteSilence(host string, asked time.Time) (silent bool) {
	t.change(host, func(s *hostState) {
		if silent = s.answered.Before(asked); silent {
			s.silentUntil = time.Now().Add(t.AfterSilence)
		}
	})
	return silent
}

// Young reports whether the StartTimeout is not over yet.
func (t *Throttle) Young() bool { return time.Since(t.Began) < t.StartTimeout }

// mayBeStarting reports whether a mirror may not be up for the first time yet.
func (t *Throttle) mayBeStarting(host string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, known := t.hosts[host]
	return !known && t.Young()
}

// silent reports whether a mirror is not to be asked for anything now.
func (t *Throttle) silent(host string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return time.Now().Before(t.hosts[host].silentUntil)
}

// distrustedUntil is until when a mirror is to be asked last; zero if it is not.
func (t *Throttle) distrustedUntil(host string) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	if until := t.hosts[host].distrustedUntil; time.Now().Before(until) {
		return until
	}
	return time.Time{}
}

type keyState struct {
	token       chan struct{} // has one element while no request runs
	users       int           // run or wait
	pausedUntil time.Time
}

// acquire waits until no other request for the key runs and its pause is over. release lets the
// next one in, after a pause.
func (t *Throttle) acquire(ctx context.Context, key string) (release func(pause time.Duration), err error) {
	s := t.addUser(key)
	select {
	case <-s.token:
	case <-ctx.Done():
		t.removeUser(s)
		return nil, context.Cause(ctx)
	}
	if err := sleep(ctx, t.pauseLeft(s)); err != nil {
		s.token <- struct{}{}
		t.removeUser(s)
		return nil, err
	}
	return func(pause time.Duration) {
		t.mu.Lock()
		s.pausedUntil = time.Now().Add(pause)
		t.mu.Unlock()
		s.token <- struct{}{}
		t.removeUser(s)
	}, nil
}

// waitReady waits until the key's pause is over. It does not reserve the key: another request may
// run by then.
func (t *Throttle) waitReady(ctx context.Context, key string) error {
	t.mu.Lock()
	s := t.keys[key]
	t.mu.Unlock()
	if s == nil {
		return nil
	}
	return sleep(ctx, t.pauseLeft(s))
}

func (t *Throttle) pauseLeft(s *keyState) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return time.Until(s.pausedUntil)
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (t *Throttle) addUser(key string) *keyState {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.keys == nil {
		t.keys = map[string]*keyState{}
	}
	if t.keys[key] == nil {
		t.keys[key] = &keyState{token: make(chan struct{}, 1)}
		t.keys[key].token <- struct{}{}
	}
	t.keys[key].users++
	return t.keys[key]
}

// removeUser forgets every key that has neither user nor pause. The pause of a key may end long
// after its last user left, so all keys are looked at.
func (t *Throttle) removeUser(leaving *keyState) {
	t.mu.Lock()
	defer t.mu.Unlock()
	leaving.users--
	now := time.Now()
	for key, s := range t.keys {
		if s.users == 0 && !s.pausedUntil.After(now) {
			delete(t.keys, key)
		}
	}
}
