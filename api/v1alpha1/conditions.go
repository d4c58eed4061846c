// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// Conditions of an ImagePrefetch, which the controller sets, and of a NodeImageSet, which the node's
// agent sets.
const (
	// ConditionReady is True when every desired node has every image with the digest in
	// status.images, except for joining nodes, and for as many failed ones as
	// spec.failureTolerance allows. A NodeImageSet is Ready when every image of its spec is Present
	// on the node. Positive polarity: it is the summary.
	ConditionReady = "Ready"
	// ConditionDegraded is True when something works worse than asked for, whether
	// or not Ready is True. In a NodeImageSet it is about what the agent needs on the node, such as
	// containerd's configuration and mirrors, and no decision goes by it. Negative polarity: True
	// wants attention.
	ConditionDegraded = "Degraded"
)

// Reasons of the Ready condition of an ImagePrefetch.
const (
	// ReasonAllNodesHoldImages (True): every desired node has every image.
	ReasonAllNodesHoldImages = "AllNodesHoldImages"
	// ReasonFailuresTolerated (True): some nodes failed, no more than spec.failureTolerance.
	ReasonFailuresTolerated = "FailuresTolerated"
	// ReasonWaitingForSeeds (False): there is an image that no node has yet. A seed is
	// resolving or pulling it from the upstream registry.
	ReasonWaitingForSeeds = "WaitingForSeeds"
	// ReasonDistributing (False): every image is in the cluster, and nodes are
	// pulling it from the mirror.
	ReasonDistributing = "Distributing"
	// ReasonNodesFailed (False): more nodes failed than spec.failureTolerance
	// allows; status.failures says which and why.
	ReasonNodesFailed = "NodesFailed"
	// ReasonNodesDisagree (False): an image is of a repository that an administrator has listed as
	// local to the nodes, and they do not all have the same image under its name; the message says what
	// they have.
	ReasonNodesDisagree = "NodesDisagree"
	// ReasonNoMatchingNodes (False): no node matches spec.nodeSelector and
	// spec.nodeAffinity and is Ready, schedulable, and untainted or tolerated.
	ReasonNoMatchingNodes = "NoMatchingNodes"
	// ReasonInvalidSpec (False): the spec has an error that only its author can fix;
	// the message says which. Nothing is retried until the spec changes.
	ReasonInvalidSpec = "InvalidSpec"
	// ReasonPolicyDenied (False): a PrefetchPolicy, or the default policy, no
	// longer admits one of the images. Nothing new is pulled.
	ReasonPolicyDenied = "PolicyDenied"
	// ReasonUnsupported (False): the spec uses a field that this version does not serve yet.
	ReasonUnsupported = "Unsupported"
	// ReasonReconcileFailed (False): the controller could not write what it
	// decided; it tries again by itself.
	ReasonReconcileFailed = "ReconcileFailed"
)

// Reasons of the Degraded condition of an ImagePrefetch.
const (
	// ReasonAsExpected (False): nothing to report. Also of a NodeImageSet.
	ReasonAsExpected = "AsExpected"
	// ReasonNodeFailures (True): at least one node failed; status.failures says why.
	ReasonNodeFailures = "NodeFailures"
	// ReasonTooFewNodes (True): fewer nodes match than spec.replicas asks for; all of them are used.
	ReasonTooFewNodes = "TooFewNodes"
	// ReasonMirrorUnavailable (True): the mirror served nothing, so nodes pull from
	// the upstream registry, one after the other.
	ReasonMirrorUnavailable = "MirrorUnavailable"
	// ReasonPullSecretsLeftOut (True): a node is given at most 64 Secrets for one image, and
	// other ImagePrefetches, which come first by namespace and name, have used these up for an
	// image of this one. Pulls go on without those of its Secrets that found no place.
	ReasonPullSecretsLeftOut = "PullSecretsLeftOut"
)

// ReasonImagesPresent and its like are the reasons of the Ready condition of a
// NodeImageSet; the node's agent sets it.
const (
	// ReasonImagesPresent (True): every image of the spec is Present on the node.
	ReasonImagesPresent = "ImagesPresent"
	// ReasonImagesPending (False): at least one image is Pending or Pulling.
	ReasonImagesPending = "ImagesPending"
	// ReasonImagesFailed (False): none is on its way any more, and at least one is Failed.
	ReasonImagesFailed = "ImagesFailed"
	// ReasonUnsupportedRuntime (False): the node's container runtime is not
	// containerd 2.1 or newer; nothing is pulled there.
	ReasonUnsupportedRuntime = "UnsupportedRuntime"
)

// ReasonProblemsFound (True) is the reason of the Degraded condition of a NodeImageSet: the agent has found
// something wrong on its node. The message says what, and what to do, as sluice-agent --check does.
const ReasonProblemsFound = "ProblemsFound"

// Reasons of an image's state on a node, and of a failure in an ImagePrefetch's status.
const (
	// ReasonImageNotFound: the registry does not know the image. Final until the spec changes.
	ReasonImageNotFound = "ImageNotFound"
	// ReasonImagePullUnauthorized: the registry refused the credentials, or asks
	// for some. Final until they or the spec change.
	ReasonImagePullUnauthorized = "ImagePullUnauthorized"
	// ReasonImageNotOnNode: the image is of a repository that is local to the nodes, and the node
	// has none of its name, or not all of it. Looked for again.
	ReasonImageNotOnNode = "ImageNotOnNode"
	// ReasonCredentialsUnavailable: the controller did not give the registry
	// credentials, or the agent could not ask for them. Tried again.
	ReasonCredentialsUnavailable = "CredentialsUnavailable"
	// ReasonRegistryUnavailable: the registry could not be reached, or answered
	// with an error of its own. Tried again.
	ReasonRegistryUnavailable = "RegistryUnavailable"
	// ReasonNotOnMirror: the mirror did not have a manifest or layer. Tried again.
	ReasonNotOnMirror = "NotOnMirror"
	// ReasonNoProgress: the pull received nothing for too long and was stopped. Tried again.
	ReasonNoProgress = "NoProgress"
	// ReasonRuntimeUnavailable: containerd did not answer. Tried again. It is the reason
	// of the NodeImageSet's Ready condition (False) once that lasts for more than 30 s.
	ReasonRuntimeUnavailable = "RuntimeUnavailable"
	// ReasonPlatformNotProvided: the image has no manifest for the node's platform. Final until the
	// spec changes.
	ReasonPlatformNotProvided = "PlatformNotProvided"
	// ReasonImageInvalid: what the registry has under the name cannot run as a container: it is no
	// container image, or one of Docker's schema 1, or its manifest or config is too large. Final until
	// the spec changes.
	ReasonImageInvalid = "ImageInvalid"
	// ReasonInsufficientDisk: the pull would take the disk past the kubelet's eviction
	// threshold, or the node is under disk pressure.
	ReasonInsufficientDisk = "InsufficientDisk"
	// ReasonTooManyImages: the images of all ImagePrefetches on the node would make its
	// NodeImageSet larger than the API server stores, and this ImagePrefetch is not among
	// the oldest. None of its images is given to the node until there is room.
	ReasonTooManyImages = "TooManyImages"
	// ReasonPullFailed: any other failure; the message says which. Tried again.
	ReasonPullFailed = "PullFailed"
	// ReasonAgentNotRunning: the node's agent does not answer.
	ReasonAgentNotRunning = "AgentNotRunning"
)

// IsRefusal reports whether the reason of an image's state is a final answer of its registry: another
// try on the same node cannot help until the spec's entry or the credentials change.
func IsRefusal(reason string) bool {
	switch reason {
	case ReasonImageNotFound, ReasonImagePullUnauthorized, ReasonPlatformNotProvided, ReasonImageInvalid:
		return true
	}
	return false
}

// IsMirrorFailure reports whether the reason of an image's state, on a node that may use the mirror
// only, says that the mirror did not serve it. One that cannot be reached or hangs has served the
// node no better than one that misses content.
func IsMirrorFailure(reason string) bool {
	switch reason {
	case ReasonNotOnMirror, ReasonNoProgress, ReasonRegistryUnavailable:
		return true
	}
	return false
}

// Reasons of the Events on an ImagePrefetch that no condition has.
const (
	// ReasonPullSecretMissing (Warning): one of spec.imagePullSecrets, the ServiceAccount or one of
	// its secrets does not exist, or the controller may not read it. Pulls go on with the others.
	ReasonPullSecretMissing = "PullSecretMissing"
	// ReasonPullSecretMalformed (Warning): one of spec.imagePullSecrets, or an entry
	// of it, cannot be used; the note says which and why, without its content. Pulls
	// go on with what remains.
	ReasonPullSecretMalformed = "PullSecretMalformed"
)
