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

// backoff is how long to wait after so many failures in a row: doubled each time
// from one second to a minute, less up to half of it, so that nodes which failed
// together do not come back together.
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
