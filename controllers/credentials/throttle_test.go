// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package credentials

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func TestAFloodFromOneAddressIsCutOffAndHurtsNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newThrottle()
		for i := range burstPerSource {
			enter(t, l, fmt.Sprintf("10.0.0.1:%d", 1000+i), true) // ports do not make another source
		}
		enter(t, l, "10.0.0.1:1", false)
		enter(t, l, "10.0.0.2:1", true)
		enter(t, l, "[fd00::1]:1", true)
		<-time.After(time.Second / ratePerSource)
		enter(t, l, "10.0.0.1:1", true)
		enter(t, l, "10.0.0.1:1", false)
	})
}

func TestRequestsInFlightAreBounded(t *testing.T) {
	l := newThrottle()
	var done func()
	for i := range maxInFlight {
		var ok bool
		if done, ok = l.admit(fmt.Sprintf("10.0.%d.1:1", i)); !ok {
			t.Fatalf("request %d is turned away", i)
		}
	}
	if _, ok := l.admit("10.1.0.1:1"); ok {
		t.Error("one more than the limit is admitted")
	}
	done()
	enter(t, l, "10.1.0.1:1", true)
}

func TestManyAddressesTakeBoundedMemoryAndAreNotForgottenAtOnce(t *testing.T) {
	l := newThrottle()
	for range burstPerSource {
		enter(t, l, "10.0.0.1:1", true)
	}
	for i := range 3 * maxSources / 2 {
		enter(t, l, fmt.Sprintf("10.1.%d.%d:1", i/256, i%256), true)
	}
	if n := len(l.recent) + len(l.older); n > 2*maxSources {
		t.Errorf("%d addresses are kept, want at most %d", n, 2*maxSources)
	}
	if l.limiter("10.0.0.1").Tokens() > burstPerSource/2 {
		t.Error("a flooding address is forgotten as soon as others come")
	}
}

// enter admits a request and ends it.
func enter(t *testing.T, l *throttle, remote string, want bool) {
	t.Helper()
	done, ok := l.admit(remote)
	if ok {
		done()
	}
	if ok != want {
		t.Fatalf("request of %s admitted: %t, want %t", remote, ok, want)
	}
}
