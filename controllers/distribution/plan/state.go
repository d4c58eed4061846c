// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// State is all that a plan looks at: every node, and every prefetch, at one moment.
type State struct {
	// Now is compared with the times below; it decides nothing else.
	Now time.Time
	// Nodes in any order; names are unique.
	Nodes []Node
	// Prefetches in any order; keys are unique. Those that are being deleted, are denied or are
	// invalid are left out: an image that they alone wanted is wanted no more.
	Prefetches []Prefetch
	// Memory is that of the last Step, handed back unread. It is empty after a restart, at the cost
	// of another try by a seed that failed.
	Memory Memory
}

// Memory is what one plan tells the next: which nodes failed as seeds. It is opaque to the
// controller, and a plan does not change the one that it is given.
type Memory struct {
	images  map[string]imageHistory
	targets map[string]lastTargets // by UID of the prefetch
	joined  JoinedTimes
	served  JoinedTimes // the nodes that joined, as their entries say, and have had the image since
}

// Node is one node of the cluster and its NodeImageSet.
type Node struct {
	Name   string
	Labels map[string]string
	Taints []corev1.Taint
	// Platform is "os/arch" as the kubelet reports it, such as "linux/arm64".
	Platform string
	// Zone is topology.kubernetes.io/zone, or empty.
	Zone string
	// Ready is the node's Ready condition; Unschedulable its spec field (cordoned).
	Ready, Unschedulable bool
	// DiskPressure is the node's condition: the node gets no new pull, and its spec loses the
	// images that the node does not have.
	DiskPressure bool
	// KubeletImages are normalized image names that the kubelet lists. It lists only 50, and does
	// not say which digest a tag has: they tell which node to ask first, and prove nothing.
	KubeletImages []string
	// Entries are the images of the node's NodeImageSet, by normalized name.
	Entries map[string]Entry
	// Acknowledged says that the agent has seen the present spec (status.observedGeneration equals
	// metadata.generation). It is true for a node without a NodeImageSet.
	Acknowledged bool
	// Uncovered says that no agent is meant to run on the node.
	Uncovered bool
	// Unsupported says that the agent reported a runtime that it does not support.
	Unsupported bool
	// RuntimeDown says that the agent reported that the runtime has not answered for longer than a
	// restart takes.
	RuntimeDown bool
	// HeardAt is when the controller last saw the agent's status change, or saw Acknowledged become
	// false, whichever is later. A further change of an unacknowledged spec does not move it:
	// otherwise a dead agent might never become a silent one. Zero counts as Now.
	HeardAt time.Time
}

// Entry is one image of a NodeImageSet: what is asked of the node, and its answer.
type Entry struct {
	// Wanted is the entry of the spec; nil where the status has an image that the spec no longer
	// names.
	Wanted *v1alpha1.NodeImage
	// Status is the agent's answer; nil where there is none yet.
	Status *v1alpha1.NodeImageStatus
	// ChangedAt is when the controller last saw Status or Wanted change, and ProgressAt when it
	// last saw the image make progress (see Progressed). Zero counts as Now.
	ChangedAt, ProgressAt time.Time
}

// Prefetch is one ImagePrefetch.
type Prefetch struct {
	// Key is "namespace/name".
	Key       string
	Namespace string
	UID       string
	// CreatedAt decides which prefetch comes first where a node's set has no room for all.
	CreatedAt time.Time
	// Generation is that of the spec. When it changes, nodes that failed may try again.
	Generation int64
	// Refresh is what the tags are to be resolved for (imageprefetch.Refresh). When it changes,
	// they are asked for again.
	Refresh string
	// Images are normalized names, each once.
	Images []string
	// NodeLocal are those of the Images whose tags mean what the nodes have under the name. Of a
	// prefetch with a Refresh the registry is asked all the same.
	NodeLocal []string
	// Resolved is the recorded answer per image (status.images).
	Resolved map[string]Resolved

	NodeSelector map[string]string
	NodeAffinity *corev1.NodeAffinity
	Tolerations  []corev1.Toleration
	// Replicas is nil for all matching nodes.
	Replicas    *int32
	RetryLimit  int32
	Retention   v1alpha1.RetentionPolicy
	PullSecrets []v1alpha1.PullSecretSource
}

// Resolved is the digest of a tag, and the Refresh that it was resolved for.
type Resolved struct {
	Digest  string
	Refresh string
}

// MirrorFallback says what happens to a node that the mirror could not serve.
type MirrorFallback string

const (
	// FallbackUpstream makes the node a candidate for the upstream.
	FallbackUpstream MirrorFallback = "Upstream"
	// FallbackNever leaves it Failed.
	FallbackNever MirrorFallback = "Never"
)

// Limits bound a plan cluster-wide.
type Limits struct {
	// UpstreamPullers is how many nodes of one platform may pull an image from the upstream at a
	// time. Default 1.
	UpstreamPullers int
	// Fanout is how many nodes may pull an image from the mirror per holder. Default 4.
	Fanout int
	// MaxConcurrentPulls bounds the pulls of all images together; 0 is no bound.
	MaxConcurrentPulls int
	// SeedTimeout is how long a seed may make no progress before another takes over. While the
	// image waits for a slot of the agent, progress with any other image counts. While the seed
	// unpacks, it may take ten times as long.
	SeedTimeout time.Duration
	// AgentTimeout is how long an agent may owe an answer before its node counts as failed
	// (AgentNotRunning): leave a spec unacknowledged, or miss a heartbeat (v1alpha1.HeartbeatInterval)
	// while it has images to bring.
	AgentTimeout time.Duration
	// MirrorFallback is Upstream by default.
	MirrorFallback MirrorFallback
	// FollowSeed starts the first wave while the seed is still pulling, as soon as the seed has the
	// manifests.
	FollowSeed bool
}

// Step is what to do next. It is data: the same State and Limits give the same Step.
type Step struct {
	// Sets are the complete image lists of the nodes whose spec must change, by node name, each
	// sorted by image name. A node that is not in it stays as it is.
	Sets map[string][]v1alpha1.NodeImage
	// Prefetches tell, by key, what the plan means for each prefetch.
	Prefetches map[string]Outcome
	// WakeAt is when time alone changes the plan (a seed's or an agent's timeout); zero when only
	// events do.
	WakeAt time.Time
	// Joined are the nodes that came while images were being brought to others, and do not have
	// them yet.
	Joined JoinedTimes
	// Memory goes into the next State, unread.
	Memory Memory
}

// Outcome is what the plan means for one prefetch. Its lists may be shared between
// prefetches: read only.
type Outcome struct {
	// Nodes are the names of the desired nodes, sorted.
	Nodes []string
	// Digests are the resolved digests by normalized image name; an image that is being resolved is
	// absent.
	Digests map[string]Resolved
	// Uncovered are the nodes, sorted, that match and that no agent serves. They are not desired.
	Uncovered []string
	// Silent are the desired nodes whose agent does not answer, sorted.
	Silent []string
	// Full are the desired nodes, sorted, whose NodeImageSets have no room for the images beside
	// those of older prefetches. They get none of the images.
	Full []string
	// LeftOutSecrets are the names of pull secrets, sorted, that are not used for some image on
	// some node, because other prefetches of that image name as many as the API admits.
	LeftOutSecrets []string
	// MissingReplicas is by how many nodes the replicas exceed the nodes that match.
	MissingReplicas int
	// Refused are the images that the registry refused (unknown, unauthorized, platform) to every
	// node of a platform that was asked, with these platforms, sorted. They are asked for again on
	// a new generation, a refresh, other secrets, or after a long while.
	Refused map[string][]string
	// Undecided are the node-local images, by name, whose tags mean nothing yet: nil if nodes lack the
	// image or have not answered, or two nodes that have different ones.
	Undecided map[string]*Disagreement
	// WithoutMirror says that nodes pull from the upstream because the mirror served nothing.
	WithoutMirror bool
}

// Disagreement is two nodes that have different images under one name.
type Disagreement struct {
	Nodes, Digests [2]string
}
