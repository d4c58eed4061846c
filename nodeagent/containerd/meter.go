// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/sluice-dev/sluice/nodeagent"
)

// tick is how often progress is told, at the most.
const tick = 250 * time.Millisecond

// meter gathers the progress of one pull and tells it on. Bytes are progress, and so
// is time spent on local work, such as unpacking, once the size is known and no
// transfer is open. Waiting for a registry or a mirror is not; waiting for another pull
// of the node is, as long as that one gets on.
type meter struct {
	report func(nodeagent.Progress)
	quit   chan struct{}
	ended  chan struct{}

	mu       sync.Mutex
	now      nodeagent.Progress
	told     nodeagent.Progress
	open     int // transfers that run or wait
	measured bool
	others   map[digest.Digest]int64 // what others have received that we wait for
	moved    bool                    // by them, since it was told last
	reserved int64                   // room on the disk, less by what is received
}

func newMeter(report func(nodeagent.Progress)) *meter {
	m := &meter{report: report, quit: make(chan struct{}), ended: make(chan struct{})}
	go m.run()
	return m
}

func (m *meter) run() {
	defer close(m.ended)
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-m.quit:
			return
		case <-ticker.C:
			m.tell()
		}
	}
}

// stop tells what is left to tell, and returns when nothing is reported any more and
// nothing reserved.
func (m *meter) stop() {
	close(m.quit)
	<-m.ended
	m.tell()
	m.reserve(0)
}

func (m *meter) tell() {
	m.mu.Lock()
	progress := m.now
	progress.Received = m.measured && m.open == 0
	news := progress != m.told || m.moved
	m.told, m.moved = progress, false
	m.mu.Unlock()
	if news || progress.Received {
		m.report(progress)
	}
}

// resolved tells the digest at once: peers wait for it.
func (m *meter) resolved(d digest.Digest) {
	m.mu.Lock()
	m.now.Digest = d
	m.mu.Unlock()
	m.tell()
}

func (m *meter) sized(size int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now.SizeBytes, m.measured = size, true
}

// add counts bytes; less than none takes back what turned out to be of no use.
func (m *meter) add(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now.PulledBytes += bytes
}

// watched notes how far another is with what we wait for.
func (m *meter) watched(d digest.Digest, offset int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.others == nil {
		m.others = map[digest.Digest]int64{}
	}
	m.moved = m.moved || m.others[d] != offset
	m.others[d] = offset
}

// reserve says how much room the pull will take from now on.
func (m *meter) reserve(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reserved = bytes + m.now.PulledBytes
}

// outstanding is what is left of it to be taken. What was unpacked still counts, since
// nothing tells how much that was: beside a pull that is nearly done there may be more
// room than this says.
func (m *meter) outstanding() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return max(0, m.reserved-m.now.PulledBytes)
}

// settle replaces what was counted on the way.
func (m *meter) settle(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now.PulledBytes = bytes
}

func (m *meter) pulled() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now.PulledBytes
}

// begin counts a transfer as open until end is called.
func (m *meter) begin() (end func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.open++
	return sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.open--
	})
}
