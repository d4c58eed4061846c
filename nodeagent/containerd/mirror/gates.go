// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"context"
	"sync"
	"time"
)

// Gates let one request at a time through for a key, and none for a while after a
// request that failed. They are shared by all clients of a node: two images with a
// layer in common are one key.
type Gates struct {
	// AfterMiss is how long a key rests after the mirror answered without it.
	// Spegel repeats a miss for some 2.5 s and is likely to be wrong for 5 s.
	AfterMiss time.Duration
	// AfterError is how long a key rests when the mirror gave no answer.
	AfterError time.Duration

	mu    sync.Mutex
	gates map[string]*gate
}

type gate struct {
	turn  chan struct{} // holds one token
	users int
	until time.Time
}

// enter waits for the key's turn. leave ends it, and has the key rest.
func (g *Gates) enter(ctx context.Context, key string) (leave func(rest time.Duration), err error) {
	gate := g.take(key)
	select {
	case <-gate.turn:
	case <-ctx.Done():
		g.drop(gate)
		return nil, context.Cause(ctx)
	}
	if err := sleep(ctx, g.rest(gate)); err != nil {
		gate.turn <- struct{}{}
		g.drop(gate)
		return nil, err
	}
	return func(rest time.Duration) {
		g.mu.Lock()
		gate.until = time.Now().Add(rest)
		g.mu.Unlock()
		gate.turn <- struct{}{}
		g.drop(gate)
	}, nil
}

// rested waits until the key does not rest. It may be asked for by another then.
func (g *Gates) rested(ctx context.Context, key string) error {
	g.mu.Lock()
	gate := g.gates[key]
	g.mu.Unlock()
	if gate == nil {
		return nil
	}
	return sleep(ctx, g.rest(gate))
}

func (g *Gates) rest(gate *gate) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return time.Until(gate.until)
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

func (g *Gates) take(key string) *gate {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gates == nil {
		g.gates = map[string]*gate{}
	}
	if g.gates[key] == nil {
		g.gates[key] = &gate{turn: make(chan struct{}, 1)}
		g.gates[key].turn <- struct{}{}
	}
	g.gates[key].users++
	return g.gates[key]
}

// drop forgets gates that nobody waits at and that rest no more, also those that
// were left while resting.
func (g *Gates) drop(left *gate) {
	g.mu.Lock()
	defer g.mu.Unlock()
	left.users--
	now := time.Now()
	for key, gate := range g.gates {
		if gate.users == 0 && !gate.until.After(now) {
			delete(g.gates, key)
		}
	}
}
