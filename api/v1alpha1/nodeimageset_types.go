// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// RegistryPolicy says where a node may get an image from.
//
// +kubebuilder:validation:Enum=Default;Mirror;Local
type RegistryPolicy string

const (
	// RegistryPolicyDefault pulls as the kubelet would: through the node's
	// hosts.toml, the upstream registry included. The node is a seed.
	RegistryPolicyDefault RegistryPolicy = "Default"
	// RegistryPolicyMirror pulls from the node's mirrors only. The upstream registry
	// is never contacted.
	RegistryPolicyMirror RegistryPolicy = "Mirror"
	// RegistryPolicyLocal takes what the node has under the name. Neither registry nor mirror is
	// contacted.
	RegistryPolicyLocal RegistryPolicy = "Local"
)

// NodeImageSetSpec is what one node is to have. Only the controller writes it.
type NodeImageSetSpec struct {
	// The lists of images, here and in the status, are atomic. Each has one writer, which writes all of it;
	// in lists with keys the API server would keep track of every field of every entry, which makes up most
	// of the cost of a write.

	// nodeName is the name of the node, and of this object.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="nodeName cannot change: a NodeImageSet belongs to the node it is named after"
	NodeName string `json:"nodeName"`

	// imageSet are the images that the node is to keep or to pull now, each once.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=5000
	ImageSet []NodeImage `json:"imageSet,omitempty"`
}

// NodeImage is one image that a node is to have.
type NodeImage struct {
	// name is the normalized reference, as CRI names it:
	// "docker.io/library/nginx:latest", "ghcr.io/org/app@sha256:…".
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	Name string `json:"name"`

	// digest is what the node is to have under the name. If it is empty, a seed asks the
	// registry what the tag means and reports it, and a peer waits.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=160
	Digest string `json:"digest,omitempty"`

	// request asks the node to resolve the tag: while it has an ID that the request in the
	// status lacks, the node asks the registry what the tag means now. The IDs, separated by
	// commas, are those of the ImagePrefetches for which the tag is to be resolved.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=2048
	Request string `json:"request,omitempty"`

	// registryPolicy says where the image may come from. Default: Mirror.
	//
	// +optional
	// +default="Mirror"
	RegistryPolicy RegistryPolicy `json:"registryPolicy,omitempty"`

	// imageDownloadRetryLimit is how often the pull is tried again after the first
	// failure before the image is Failed. Default: 3.
	//
	// +optional
	// +default=3
	// +kubebuilder:validation:Minimum=0
	ImageDownloadRetryLimit *int32 `json:"imageDownloadRetryLimit,omitempty"`

	// retention: Pinned (default) keeps the image from the kubelet's garbage collection.
	//
	// +optional
	// +default="Pinned"
	Retention RetentionPolicy `json:"retention,omitempty"`

	// imagePullSecrets are where the credentials come from that may be used for the image, in the
	// namespaces of the ImagePrefetches that want it. Only an entry with the registryPolicy Default
	// has any. The agent cannot read them: it asks the controller.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	ImagePullSecrets []PullSecretSource `json:"imagePullSecrets,omitempty"`

	// joinedAt is when the node became one that is to have the image, if other nodes were to
	// have it before; empty otherwise. Rollouts that have been held since before that time do
	// not wait for the node.
	//
	// +optional
	JoinedAt *metav1.Time `json:"joinedAt,omitempty"`
}

// PullSecretSource names a Secret, or a ServiceAccount whose imagePullSecrets count, in any
// namespace.
type PullSecretSource struct {
	// kind is Secret (default) or ServiceAccount.
	//
	// +optional
	Kind PullSecretSourceKind `json:"kind,omitempty"`

	// namespace of the object.
	//
	// +required
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace"`

	// name of the object.
	//
	// +required
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
}

// PullSecretSourceKind is the kind of object that a PullSecretSource names; empty means Secret.
//
// +kubebuilder:validation:Enum=Secret;ServiceAccount
type PullSecretSourceKind string

const (
	// PullSecretSourceSecret: the object is a pull secret.
	PullSecretSourceSecret PullSecretSourceKind = "Secret"
	// PullSecretSourceServiceAccount: the object names pull secrets, or none, as for a Pod that
	// names none itself.
	PullSecretSourceServiceAccount PullSecretSourceKind = "ServiceAccount"
)

// IsServiceAccount reports whether the source is a ServiceAccount, which may well name no secrets.
func (s PullSecretSource) IsServiceAccount() bool { return s.Kind == PullSecretSourceServiceAccount }

// ImageState is how far one image is on one node.
//
// +kubebuilder:validation:Enum=Pending;Pulling;Present;Failed
type ImageState string

const (
	// ImagePending: the image waits for its first or its next try.
	ImagePending ImageState = "Pending"
	// ImagePulling: the image is being pulled.
	ImagePulling ImageState = "Pulling"
	// ImagePresent: the content of the digest is complete and unpacked, and CRI finds it
	// under the names that a Pod would use.
	ImagePresent ImageState = "Present"
	// ImageFailed: the retry limit is reached, or another try cannot help.
	ImageFailed ImageState = "Failed"
)

// Unfinished reports whether the agent still works on the image. It then writes the status at
// least every HeartbeatInterval.
func (s ImageState) Unfinished() bool { return s == ImagePending || s == ImagePulling }

// HeartbeatInterval is the longest time between two writes of an agent that has images to bring.
const HeartbeatInterval = 30 * time.Second

// ImageSource is where a node got an image from.
//
// +kubebuilder:validation:Enum=Local;Mirror;Upstream
type ImageSource string

const (
	// SourceLocal is the node itself: it had the image, and nothing was pulled.
	SourceLocal ImageSource = "Local"
	// SourceMirror is the mirror: the upstream registry was not asked.
	SourceMirror ImageSource = "Mirror"
	// SourceUpstream is the upstream registry, through the node's hosts.toml, as for the kubelet.
	SourceUpstream ImageSource = "Upstream"
)

// NodeImageSetStatus is what the node has. Only the node's agent writes it.
type NodeImageSetStatus struct {
	// observedGeneration is the generation of the spec that the agent has taken up.
	//
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// lastHeartbeatTime is when the agent last had nothing to report for 30 s while an image
	// was Pending or Pulling. It tells an agent that waits from one that is gone.
	//
	// +optional
	LastHeartbeatTime *metav1.Time `json:"lastHeartbeatTime,omitempty"`

	// conditions: Ready is True when every image of the spec is Present. Degraded is True when
	// something that the agent needs is wrong on the node; its message says what, and what to do.
	//
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=8
	Conditions []metav1.Condition `json:"conditions,omitempty"`

	// images has one entry for each image of the spec.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=5000
	Images []NodeImageStatus `json:"images,omitempty"`
}

// NodeImageStatus is how far one image is on the node.
type NodeImageStatus struct {
	// name is the name in the spec.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	Name string `json:"name"`

	// state is Pending, Pulling, Present or Failed.
	//
	// +required
	State ImageState `json:"state"`

	// digest is what the node has, or is pulling, under the name. A seed reports it as
	// soon as the tag is resolved, before the content is complete.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=160
	Digest string `json:"digest,omitempty"`

	// request has the IDs of the spec's request that digest answers.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=2048
	Request string `json:"request,omitempty"`

	// sizeBytes is the compressed size of the image for the node's platform, in bytes.
	//
	// +optional
	SizeBytes int64 `json:"sizeBytes,omitempty"`

	// pulledBytes is how much of it the running or the last pull received over the
	// network, in bytes.
	//
	// +optional
	PulledBytes int64 `json:"pulledBytes,omitempty"`

	// source is where it comes or came from.
	//
	// +optional
	Source ImageSource `json:"source,omitempty"`

	// attempts is how many pulls were started for the spec's digest, request and policy.
	//
	// +optional
	Attempts int32 `json:"attempts,omitempty"`

	// reason is one word for what went wrong last; empty when nothing did.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Reason string `json:"reason,omitempty"`

	// message explains the reason for a person. It contains no credentials.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Message string `json:"message,omitempty"`

	// startedAt is when the running or the last pull began.
	//
	// +optional
	StartedAt *metav1.Time `json:"startedAt,omitempty"`

	// finishedAt is when that pull ended. While the state is Pulling, it is since when
	// everything has been received, so that only work on the node is left, such as unpacking.
	//
	// +optional
	FinishedAt *metav1.Time `json:"finishedAt,omitempty"`
}

// NodeImageSet is what one node is to have (spec) and has (status). It is named as its node,
// and deleted with it.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=nis,categories=sluice
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Degraded",type=string,JSONPath=`.status.conditions[?(@.type=="Degraded")].status`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name == self.spec.nodeName",message="a NodeImageSet is named as its node: set metadata.name to spec.nodeName"
type NodeImageSet struct {
	metav1.TypeMeta `json:",inline"`

	// metadata is the standard object's metadata.
	//
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec is what the node is to have.
	//
	// +required
	Spec NodeImageSetSpec `json:"spec"`

	// status is what it has.
	//
	// +optional
	Status NodeImageSetStatus `json:"status,omitempty"`
}

// NodeImageSetList is a list of NodeImageSets.
//
// +kubebuilder:object:root=true
type NodeImageSetList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []NodeImageSet `json:"items"`
}
