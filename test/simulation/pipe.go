// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"container/heap"
	"time"
)

// pipe is a line of a fixed bandwidth that its transfers share evenly.
//
// It keeps what each transfer would have received had it been there from the start, so
// that one that comes or goes costs no look at the others.
type pipe struct {
	clock     *clock
	bandwidth float64 // bytes per second
	received  float64 // by each transfer, since the start
	since     time.Duration
	transfers transferQueue
	timer     int // the valid one
	carried   float64
}

// transfer is one blob on its way; canceled ones are only counted as far as they came.
type transfer struct {
	pipe     *pipe
	until    float64 // pipe.received when it is complete
	size     float64
	done     func()
	position int // in the queue; -1 when it is not on its way
}

func (p *pipe) send(size float64, done func()) *transfer {
	p.advance()
	t := &transfer{pipe: p, until: p.received + size, size: size, done: done}
	heap.Push(&p.transfers, t)
	p.schedule()
	return t
}

func (t *transfer) cancel() {
	if t.position < 0 {
		return
	}
	t.pipe.advance()
	t.pipe.carried += t.size - (t.until - t.pipe.received)
	heap.Remove(&t.pipe.transfers, t.position)
	t.pipe.schedule()
}

func (p *pipe) advance() {
	if n := len(p.transfers); n > 0 {
		p.received += (p.clock.now - p.since).Seconds() * p.bandwidth / float64(n)
	}
	p.since = p.clock.now
}

// schedule waits for the transfer that is complete first, as things stand now. What
// lacks less than a byte is complete: the rest is rounding.
func (p *pipe) schedule() {
	p.timer++
	n := len(p.transfers)
	if n == 0 {
		return
	}
	timer := p.timer
	left := max(0, p.transfers[0].until-p.received) * float64(n) / p.bandwidth
	p.clock.after(time.Duration(left*float64(time.Second))+1, func() {
		if timer != p.timer {
			return
		}
		p.advance()
		var complete []*transfer
		for len(p.transfers) > 0 && p.transfers[0].until-p.received < 1 {
			complete = append(complete, heap.Pop(&p.transfers).(*transfer))
		}
		p.schedule()
		for _, t := range complete {
			p.carried += t.size
			t.done()
		}
	})
}

type transferQueue []*transfer

func (q transferQueue) Len() int           { return len(q) }
func (q transferQueue) Less(i, j int) bool { return q[i].until < q[j].until }
func (q transferQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].position, q[j].position = i, j
}
func (q *transferQueue) Push(x any) {
	t := x.(*transfer)
	t.position = len(*q)
	*q = append(*q, t)
}
func (q *transferQueue) Pop() any {
	last := len(*q) - 1
	t := (*q)[last]
	t.position = -1
	*q = (*q)[:last]
	return t
}
