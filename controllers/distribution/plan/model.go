// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// A number in this file is the phase of Next that sets a field. Later phases only read it.

// planner is what the phases of one plan hand on.
type planner struct {
	now    time.Time // 1
	limits Limits    // 1
	// 1: by name and by key.
	nodes      []*node
	prefetches []*prefetch
	// 2: 11 drops who has the image.
	joined JoinedTimes
	// 2: 11 adds who has the image: the nodes that joined, and have had it since.
	served JoinedTimes
	// 3: by name.
	images []*image
	// 5, 8, 10: how many pulls of all images run, or are ordered by this plan.
	pulls int
	// Any phase: when time alone changes the plan.
	wake time.Time
	// 5: scratch of collectDemand, by node index.
	demands []nodeDemand
}

// node is a Node, and what the plan finds out about it.
type node struct {
	*Node
	// 1: the place in planner.nodes.
	index int
	// 1: the agent owes an answer for too long.
	silent bool
	// 2: what its set comes to; nil unless some set may become too large.
	size *setSize
	// 3: its set has a status for some image.
	agentKnown bool
	// 3: when some image last showed that the agent's slots get on.
	slotProgressAt time.Time
	// 5, 8: the images that it has or is the seed of.
	imageCount int
	// 9: the images that the mirror does not serve it, and those that it pulls otherwise.
	starvedImages, progressingImages int
	// 11
	changes []entryChange
}

// entryChange is the entry that a node's spec is to have for an image; nil for none.
type entryChange struct {
	image string
	entry *v1alpha1.NodeImage
}

// setSize is what the prefetches of a node make of its NodeImageSet. Nodes with the same prefetches
// share one, so that there are never more to count than nodes.
type setSize struct {
	images map[string]bool
	bytes  int
	nodes  int // that share it
	// withLast is what it comes to with last, the prefetch that was tried most recently.
	last     *prefetch
	withLast int
}

// prefetch is a Prefetch, and what the plan finds out about it.
type prefetch struct {
	*Prefetch
	// 1: the place in planner.prefetches.
	index int
	// 1: the mark of its question in the entry of a resolver.
	requestID string
	// 2
	targets         *targetNodes
	missingReplicas int
	// 2: the nodes, sorted, that do not join for it.
	knownNodes []string
	// 5: the names of its pull secrets that found no place on some node.
	leftOutSecrets map[string]bool
	// 5, 8: by node index, how many of its images the node is the seed of.
	seedImages map[int]int
	// 5: by node index, how many of these the node is still pulling.
	pullingImages map[int]int
	// 5: by node index, when the last of its images came there from the registry.
	arrivedAt map[int]time.Time
	// 5: by node index, of how many of its images the agent has yet to see that the entry is gone.
	leavingImages map[int]int
}

// targetNodes are the nodes of one prefetch, or of several that select alike. Phase 2 sets it.
type targetNodes struct {
	// desired nodes are to have the images.
	desired []*node
	// retained nodes match but take no Pods at the moment (not Ready, cordoned, under pressure).
	// They are not waited for, get nothing new, and keep what they have: a node that comes back a
	// minute later has lost no pin.
	retained []*node
	// uncovered nodes match, but no agent serves them. They are retained as well.
	uncovered []*node
	// full nodes are desired, but their sets have no room for the images beside those of older
	// prefetches.
	full []*node

	names, silentNames, fullNames []string // of the desired nodes, full ones included
	uncoveredNames                []string
}

// lastTargets is what the last plan did for one prefetch. Phase 11 of that plan sets it.
type lastTargets struct {
	// nodes, sorted, are those that were desired and match still: one that was not Ready or cordoned
	// for a while does not join when it comes back.
	nodes  []string
	images []string // sorted
}

// replicaCandidate is a node that may be one of a prefetch's replicas. Phase 2 sets it.
type replicaCandidate struct {
	node *node
	// missing is the number of images that its spec does not name yet; a node that cannot pull
	// misses more than any other.
	missing int
	// zoneRank is its place among the nodes of its zone.
	zoneRank int
	hash     uint64
}

// image is one image, and what all prefetches together want of it.
type image struct {
	name string
	// 3: the prefetches that want it, by key; the entries that nodes have of it, by node; and what
	// the last plan remembered.
	prefetches []*prefetch
	entries    []nodeEntry
	history    imageHistory // 7, 8 add failures
	// 4: the digest that nodes are to have; empty until the tag is resolved.
	digest string
	// 4: the prefetches that know the digest.
	resolved map[*prefetch]bool
	// 4: the request IDs in use, and, sorted, those that no agent has answered.
	requestIDs     map[string]bool
	openRequestIDs []string
	// 4: the prefetches for which nodes are still to say what they have under the name, these nodes,
	// and two that have said different things.
	asking       []*prefetch
	asked        map[*node]bool
	disagreement *Disagreement
	// 5: by node and by platform.
	placements []*placement
	groups     []*platformGroup
	// 8: the platforms to which the registry refused it, as far as they may ask.
	refusedPlatforms map[string]bool
	// 11: as in Outcome.
	withoutMirror bool
}

// nodeEntry is an entry that some node has of an image.
type nodeEntry struct {
	node *node
	Entry
}

// imageHistory is what plans remember of one image.
type imageHistory struct {
	// requestIDs are those of the prefetches that want the image, in one piece. When they change,
	// every node may try again.
	requestIDs string
	failures   map[string]seedFailure // by node name
}

// seedFailure is how a node failed as a seed.
type seedFailure struct {
	at time.Time
	// refused says that it was a refusal, and refusals how many the node got in a row.
	refused  bool
	refusals int
	accessGroup
}

// accessGroup is the nodes that a refusal speaks for: those of one platform with the same
// credentials.
type accessGroup struct{ platform, secretsKey string }

// refusalSummary is how many nodes of an access group were refused an image, how often together,
// and when last.
type refusalSummary struct {
	nodes, times int
	last         time.Time
}

// requirements are what the prefetches of a node ask of its entry for an image. Phase 5 sets it.
type requirements struct {
	retryLimit int32
	retention  v1alpha1.RetentionPolicy
	secretRefs []secretRef
	leftOut    []secretRef // those beyond maxSecrets
	secrets    []v1alpha1.PullSecretSource
	secretsKey string // the secrets in one comparable piece
	// namedSecrets counts those that are Secrets.
	namedSecrets int
	// resolved: a prefetch that knows the digest wants the image; unresolved: one that does not.
	resolved, unresolved bool
}

// secretRef is where credentials come from and its place in the order in which they are tried:
// prefetches by key, and the secrets of each as its spec lists them, which is the order of the kubelet.
type secretRef struct {
	secret                  v1alpha1.PullSecretSource
	prefetchIndex, position int
}

// nodeDemand is what is wanted of one node for an image, while that is collected.
type nodeDemand struct {
	requirements *requirements
	desired      bool
}

// placement is one image on one node.
type placement struct {
	// 5
	node *node
	Entry
	requirements *requirements // nil: no prefetch wants the image here
	desired      bool          // some prefetch waits for the node
	current      bool          // the spec asks for the present digest, or for what the tag means
	state        pullState
	counted      bool // its pull is one of planner.pulls
	// 6
	listing kubeletListing
	// 7, 8: from this plan on it is a seed no longer.
	demoted bool
	// 7, 8, 10: the entry that the spec is to have; nil for none.
	next *v1alpha1.NodeImage
	// 9: the mirror serves it nothing.
	starved bool
}

// pullState is how a node gets on with what its spec asks of it for one image.
type pullState int

const (
	idle    pullState = iota // the spec asks nothing
	pulling                  // the image may still come
	stalled                  // no progress for too long
	failed                   // the agent gave up
	lost                     // the node or its agent is gone or unfit
	present                  // the agent reports it
)

// kubeletListing is what the list of a node's kubelet says about an image.
type kubeletListing int

const (
	notListed    kubeletListing = iota
	nameListed                  // something under that name
	digestListed                // that very digest
)

// platformGroup is the placements of one platform; only they can serve each other. Phase 5 sets it,
// but for starved.
type platformGroup struct {
	platform   string
	placements []*placement
	// seedsLeft is how many nodes more may be promoted; 8 counts down.
	seedsLeft int
	// holders is how many nodes can serve the image; holdersSince is when the first was seen.
	holders      int
	holdersSince time.Time
	// fromMirror reports whether a holder got it from the mirror, and fromUpstream counts those that got
	// it from the upstream.
	fromMirror   bool
	fromUpstream int
	// 9: how many placements the mirror serves nothing although there are holders.
	starved int
}

// seedScore is what speaks for a node as the next seed, in the order in which it counts (8).
type seedScore struct {
	placement *placement
	// failedAt is when it last failed as a seed of this image: who never did comes first, and then
	// who failed longest ago.
	failedAt time.Time
	// present: its agent reports the image, so that only a HEAD request goes upstream.
	present bool
	listing kubeletListing
	// secrets counts the Secrets that prefetches name: one without them must not stop one that has them.
	secrets int
	// siblingImages counts the images of the same prefetches that it is the seed of: layers that
	// they share come once.
	siblingImages int
	// receivedBytes is what it has already, from following the last seed.
	receivedBytes int64
	// imageCount counts images of any prefetch.
	imageCount int
}

// wave is the placements of one platform that wait to be admitted to the mirror (10).
type wave struct {
	image    *image
	openings int
	queue    []*placement
	// listed placements have the digest according to their kubelets. They need no opening, because
	// most have nothing to pull; but lists may be old, so they count for the limit of the cluster.
	listed []*placement
}

// queueClass is the part of a wave's queue in which a node waits; the lowest comes first.
type queueClass int

const (
	classListed  queueClass = iota // its kubelet lists the image's name
	classKnown                     // its agent has reported something before
	classUnknown                   // its agent has not
	classStarved                   // the mirror serves it no other image either
	queueClasses                   // how many there are
)
