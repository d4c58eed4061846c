// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/sluice-dev/sluice/nodeagent"
)

const (
	// growth is how much more room an image must have than what it had taken when it was stopped.
	growth = 1.5
	// lessonLifetime is how long it is remembered what an image needed.
	lessonLifetime = time.Hour
	// fullPause is how long an image is not tried again for which containerd had no space although
	// there was room: nobody can look up what a quota leaves.
	fullPause = 10 * time.Minute
)

// lessons are what images have shown that did not fit, by digest, so that the next try neither asks the
// registry nor writes in vain.
type lessons map[digest.Digest]lesson

type lesson struct {
	// refused is what the image needed when it was refused.
	refused need
	// shown is what it must have, because it took more than was expected.
	shown need
	// until is when the lesson is forgotten, and fullUntil when containerd may have space again.
	until, fullUntil time.Time
}

// teach changes what is remembered of a digest. The caller holds the lock.
func (d *disk) teach(dgst digest.Digest, change func(*lesson)) {
	now := time.Now()
	for old, l := range d.lessons {
		if now.After(l.until) {
			delete(d.lessons, old)
		}
	}
	if d.lessons == nil {
		d.lessons = lessons{}
	}
	l := d.lessons[dgst]
	change(&l)
	l.until = now.Add(lessonLifetime)
	d.lessons[dgst] = l
}

// recall is what is remembered of a digest.
func (d *disk) recall(dgst digest.Digest) lesson {
	d.mu.Lock()
	defer d.mu.Unlock()
	if l := d.lessons[dgst]; time.Now().Before(l.until) {
		return l
	}
	return lesson{}
}

// checkFull returns ErrInsufficientDisk if containerd had no space for the image lately.
func (d *disk) checkFull(dgst digest.Digest) error {
	if time.Now().Before(d.recall(dgst).fullUntil) {
		return fmt.Errorf("%w: containerd had none left for the image, as a quota may have it; it is tried again after %v", nodeagent.ErrInsufficientDisk, fullPause)
	}
	return nil
}

// correct is what the image needs, in the light of what it has shown.
func (d *disk) correct(dgst digest.Digest, n need) need { return n.max(d.recall(dgst).shown) }

func (d *disk) refusedNeed(dgst digest.Digest) need { return d.recall(dgst).refused }

func (d *disk) noteRefused(dgst digest.Digest, n need) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.teach(dgst, func(l *lesson) { l.refused = n })
}

// noteStopped takes up what a pull has shown that was stopped. One that took no more than it had
// reserved was not the cause.
func (d *disk) noteStopped(a *account) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := a.reserved
	switch {
	case a.taken != nil && !n.snapshots.covers(*a.taken):
		n.snapshots = n.snapshots.max(a.taken.times(growth))
	case a.taken == nil && len(d.accounts) == 1: // there was no time to look it up, but who else was it?
		n.snapshots = n.snapshots.max(a.drop).times(growth)
	}
	d.teach(a.digest, func(l *lesson) { l.shown, l.refused = l.shown.max(n), n })
}

func (d *disk) noteFull(a *account) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.teach(a.digest, func(l *lesson) { l.fullUntil = time.Now().Add(fullPause) })
}

// isFull reports whether the daemon had no space left. Through its RPCs nothing but the text comes.
func isFull(err error) bool {
	for _, cause := range []error{unix.ENOSPC, unix.EDQUOT} {
		if err != nil && !errors.Is(err, nodeagent.ErrRegistryUnavailable) && strings.Contains(err.Error(), cause.Error()) {
			return true
		}
	}
	return false
}
