// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/sluice-dev/sluice/nodeagent"
)

// progressInterval is the shortest time between two calls of onProgress for bytes.
const progressInterval = 250 * time.Millisecond

// meter gathers the progress of one pull and passes it to onProgress. Progress is:
//   - bytes that arrive;
//   - time that passes while the size is known and no transfer is open: that is local work, such as
//     unpacking;
//   - bytes that arrive for another pull of this node which this one waits for;
//   - bytes that a mirror without support for Range sends for the second time.
//
// Waiting for a registry or a mirror is no progress.
type meter struct {
	onProgress func(nodeagent.Progress)
	quit       chan struct{}
	ended      chan struct{}

	mu            sync.Mutex
	current       nodeagent.Progress
	notified      nodeagent.Progress
	openTransfers int // that run or wait
	sizeKnown     bool
	othersOffsets map[digest.Digest]int64 // bytes received by the pulls that this one waits for
	othersMoved   bool                    // an offset of theirs has changed since the last notify
}

func newMeter(onProgress func(nodeagent.Progress)) *meter {
	m := &meter{onProgress: onProgress, quit: make(chan struct{}), ended: make(chan struct{})}
	go m.run()
	return m
}

func (m *meter) run() {
	defer close(m.ended)
	ticker := time.NewTicker(progressInterval)
	defer ticker.Stop()
	for {
		select {
		case <-m.quit:
			return
		case <-ticker.C:
			m.notify()
		}
	}
}

// stop passes on the last progress. onProgress is not called after it returns.
func (m *meter) stop() {
	close(m.quit)
	<-m.ended
	m.notify()
}

// notify calls onProgress if there was progress since the last call.
func (m *meter) notify() {
	m.mu.Lock()
	progress := m.current
	progress.Received = m.sizeKnown && m.openTransfers == 0
	news := progress != m.notified || m.othersMoved
	m.notified, m.othersMoved = progress, false
	m.mu.Unlock()
	if news || progress.Received {
		m.onProgress(progress)
	}
}

// setDigest passes the digest on at once, because peers wait for it.
func (m *meter) setDigest(d digest.Digest) {
	m.mu.Lock()
	m.current.Digest = d
	m.mu.Unlock()
	m.notify()
}

func (m *meter) setSize(size int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.current.SizeBytes, m.sizeKnown = size, true
}

// addBytes counts bytes. A negative number takes back bytes that turned out to be wrong.
func (m *meter) addBytes(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.current.PulledBytes += bytes
}

// observeOther notes how many bytes have arrived that this pull waits for and that are not its own:
// another pull's of a blob, or those that were there before.
func (m *meter) observeOther(d digest.Digest, offset int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.othersOffsets == nil {
		m.othersOffsets = map[digest.Digest]int64{}
	}
	m.othersMoved = m.othersMoved || m.othersOffsets[d] != offset
	m.othersOffsets[d] = offset
}

// setBytes replaces the count of pulled bytes by an exact one.
func (m *meter) setBytes(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.current.PulledBytes = bytes
}

func (m *meter) pulledBytes() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.current.PulledBytes
}

// beginTransfer counts a transfer as open until end is called.
func (m *meter) beginTransfer() (end func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.openTransfers++
	return sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.openTransfers--
	})
}
