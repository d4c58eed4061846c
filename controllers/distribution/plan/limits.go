// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import "time"

// These limits are not worth a setting.
const (
	// answerTimeout is how long a node that was told to pull keeps its opening before its agent
	// answers. An agent that runs answers within a second.
	answerTimeout = 5 * time.Second
	// serveTimeout is how long a node that pulls from the mirror keeps its opening before it has
	// received anything, while another node has the image. The manifest is the first thing to
	// come, at once or 5 s later if it is missed, and agents report 1 s, 3 s and 7 s after the
	// pull began.
	serveTimeout = 10 * time.Second
	// maxPartialWeight caps the weight of partial holders at this multiple of that of holders.
	// Without a cap the plan lets every node in while a slow seed fetches its last layers, and
	// then all ask the one node that has them.
	maxPartialWeight = 3
	// unpackFactor is how many times SeedTimeout a seed may take to unpack: its agent has nothing
	// to report meanwhile, and its peers can fetch the content already.
	unpackFactor = 10
	// siblingFactor is how many times SeedTimeout a seed that has stalled or failed with one image
	// keeps it longer while it pulls another image of the same prefetch: layers that both have
	// would come twice if another node took over.
	siblingFactor = 3
	// findTimeout is how long mirrors may take to find what a node has just got: those that were asked
	// for it before repeat for 5 s that nobody has it.
	findTimeout = 10 * time.Second
	// failureBackoff is how long a node that failed as a seed is passed over when no other is
	// left to try. It is the longest backoff of an agent, which has retried for a while itself.
	failureBackoff = time.Minute
	// refusalBackoff is that time after a refusal, which trying again at once does not change. It
	// doubles each time, up to maxRefusalBackoff: an image may be pushed after it is asked for,
	// and a registry in trouble may refuse what it has.
	refusalBackoff    = 15 * time.Second
	maxRefusalBackoff = 10 * time.Minute
	// minRefusals is how many nodes with the same credentials the registry must refuse before
	// the plan believes it and sends no others to ask.
	minRefusals = 2
)

// DefaultLimits are the limits of a controller without flags.
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

// orDefault replaces a limit that is unset, and would stop everything, by its default.
func (l Limits) orDefault() Limits {
	preset := DefaultLimits()
	if l.UpstreamPullers <= 0 {
		l.UpstreamPullers = preset.UpstreamPullers
	}
	if l.Fanout <= 0 {
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
