// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"math/rand/v2"
	"time"
)

const (
	minBackoff = time.Second
	maxBackoff = time.Minute
)

// backoff is how long to wait after so many failures in a row. It doubles from a second to a
// minute. A random part of up to a half is taken off, so that nodes that failed at the same time do
// not try again at the same time.
func backoff(failures int) time.Duration {
	d := minBackoff
	for range failures - 1 {
		if d *= 2; d >= maxBackoff {
			d = maxBackoff
			break
		}
	}
	return d - rand.N(d/2)
}
