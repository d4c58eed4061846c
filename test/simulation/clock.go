// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"container/heap"
	"time"
)

// clock is simulated time: what is due happens in order, at once.
type clock struct {
	now    time.Duration // since the beginning
	events eventQueue
	serial int
}

// after has something happen later.
func (c *clock) after(d time.Duration, do func()) {
	c.serial++
	heap.Push(&c.events, event{at: c.now + d, serial: c.serial, do: do})
}

// run lets everything happen until done says so, nothing is left, or the time is up.
func (c *clock) run(limit time.Duration, done func() bool) {
	for len(c.events) > 0 && !done() {
		next := heap.Pop(&c.events).(event)
		if next.at > limit {
			return
		}
		c.now = next.at
		next.do()
	}
}

type event struct {
	at     time.Duration
	serial int // first come, first served
	do     func()
}

type eventQueue []event

func (q eventQueue) Len() int { return len(q) }
func (q eventQueue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].serial < q[j].serial
}
func (q eventQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *eventQueue) Push(x any)   { *q = append(*q, x.(event)) }
func (q *eventQueue) Pop() any {
	last := len(*q) - 1
	x := (*q)[last]
	(*q)[last] = event{}
	*q = (*q)[:last]
	return x
}
