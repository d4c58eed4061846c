// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import "time"

// What is not worth a setting.
const (
	// answerTimeout is how long a node that was told to pull keeps its turn without a
	// word. An agent that runs answers within a second.
	answerTimeout = 5 * time.Second
	// serveTimeout is how long a node that pulls from the mirror keeps its turn without a
	// byte while others hold the image. The manifest comes first and at once, or 5 s later
	// if it is missed, and agents tell of it 1 s, 3 s and 7 s after their beginning.
	serveTimeout = 10 * time.Second
	// maxPartialWeight is how many times the nodes that have all of an image those count who
	// have some of it. Without a bound every node would be let in while a slow seed has
	// its last layers to come, and then all would ask the one node that has them.
	// test/simulation shows both: too little, and a hundred times too much.
	maxPartialWeight = 3
	// unpackFactor is how many times SeedTimeout a seed may take to unpack: meanwhile its
	// agent has nothing to tell, and the content is there already for its peers.
	unpackFactor = 10
	// failureBackoff is how long a node that failed as a seed is passed over when
	// nobody else is left to try: the longest backoff of an agent, which has tried for
	// a while itself.
	failureBackoff = time.Minute
	// refusalBackoff is that rest after an answer of the registry which trying again
	// at once does not change. It doubles each time, up to maxRestAfterRefusal: an image
	// may be pushed after it is asked for, and a registry in trouble says all sorts of things.
	refusalBackoff    = 15 * time.Second
	maxRefusalBackoff = 10 * time.Minute
	// minRefusals is how many nodes with the same credentials the registry must
	// refuse before the others are not sent to ask as well.
	minRefusals = 2
)

// DefaultLimits are the limits of a controller that is told none.
func DefaultLimits() Limits {
	return Limits{
		UpstreamPullers: 1,
		Fanout:          4,
		SeedTimeout:     2 * time.Minute,
		AgentTimeout:    time.Minute,
		MirrorFallback:  FallbackUpstream,
		FollowSeed:      true,
	}
}

// orDefault puts the default in place of what is unset and would stop everything.
func (l Limits) orDefault() Limits {
	preset := DefaultLimits()
	if l.UpstreamPullers < 1 {
		l.UpstreamPullers = preset.UpstreamPullers
	}
	if l.Fanout < 1 {
		l.Fanout = preset.Fanout
	}
	if l.SeedTimeout <= 0 {
		l.SeedTimeout = preset.SeedTimeout
	}
	if l.AgentTimeout <= 0 {
		l.AgentTimeout = preset.AgentTimeout
	}
	if l.MirrorFallback == "" {
		l.MirrorFallback = preset.MirrorFallback
	}
	return l
}
