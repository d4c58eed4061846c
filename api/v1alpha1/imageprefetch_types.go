// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// ImageReference names an image by tag, by digest or both, as in a Pod:
// "nginx", "ghcr.io/org/app:v2", "registry:5000/app@sha256:…". The default of the
// registry is docker.io and that of the tag "latest", as for the kubelet.
//
// The rule repeats the grammar of github.com/distribution/reference, so that a
// reference that does not parse is rejected when it is applied.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=512
// +kubebuilder:validation:XValidation:rule=`self.matches('^((localhost|[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?([.][a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?)*|[[][a-fA-F0-9:]+[]])(:[0-9]+)?/)?[a-z0-9]+(([._]|__|[-]+)[a-z0-9]+)*(/[a-z0-9]+(([._]|__|[-]+)[a-z0-9]+)*)*(:[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127})?(@sha256:[a-f0-9]{64}|@sha384:[a-f0-9]{96}|@sha512:[a-f0-9]{128})?$') && !self.matches('^[a-f0-9]{64}$')`,message="not an image reference: write REGISTRY/REPOSITORY:TAG or REGISTRY/REPOSITORY@sha256:DIGEST, with a repository in lower case and no spaces or scheme, such as ghcr.io/org/app:v2"
type ImageReference string

// RetentionPolicy says how long a prefetched image is kept on a node.
//
// +kubebuilder:validation:Enum=Pinned;BestEffort
type RetentionPolicy string

const (
	// RetentionPinned keeps the image from the kubelet's garbage collection for as
	// long as an ImagePrefetch wants it on the node.
	RetentionPinned RetentionPolicy = "Pinned"
	// RetentionBestEffort leaves the image to the kubelet's garbage collection.
	RetentionBestEffort RetentionPolicy = "BestEffort"
)

// DefaultImageDownloadRetryLimit is the default of imageDownloadRetryLimit, in an ImagePrefetch
// and in a NodeImageSet.
const DefaultImageDownloadRetryLimit int32 = 3

// ImagePrefetchSpec is what a tenant asks for: these images on those nodes.
type ImagePrefetchSpec struct {
	// images are the images to bring to the nodes, 1 to 100, each listed once.
	//
	// +required
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=100
	// +kubebuilder:validation:XValidation:rule="self.all(image, self.exists_one(other, other == image))",message="an image is listed more than once: remove the duplicate"
	Images []ImageReference `json:"images"`

	// nodeSelector chooses nodes by their labels, as in a Pod. Default: every node
	// that takes ordinary Pods.
	//
	// +optional
	// +kubebuilder:validation:MaxProperties=32
	NodeSelector map[string]string `json:"nodeSelector,omitempty"`

	// nodeAffinity chooses nodes by its required terms, as in a Pod. A node must match
	// nodeSelector as well. Default: none.
	//
	// +optional
	// +kubebuilder:validation:XValidation:rule="!has(self.preferredDuringSchedulingIgnoredDuringExecution)",message="nodeAffinity has no preferences here: write requiredDuringSchedulingIgnoredDuringExecution alone"
	// +kubebuilder:validation:XValidation:rule="has(self.requiredDuringSchedulingIgnoredDuringExecution)",message="nodeAffinity is empty: write requiredDuringSchedulingIgnoredDuringExecution, or leave nodeAffinity out"
	NodeAffinity *corev1.NodeAffinity `json:"nodeAffinity,omitempty"`

	// tolerations admit tainted nodes, as in a Pod. Default: untainted nodes only.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	Tolerations []corev1.Toleration `json:"tolerations,omitempty"`

	// replicas is the number of nodes that are to have the images, chosen among the
	// matching ones and spread over zones. Default: all matching nodes.
	//
	// +optional
	// +kubebuilder:validation:XValidation:rule="self >= 1",message="replicas must be 1 or more; leave it out to prefetch to every matching node"
	Replicas *int32 `json:"replicas,omitempty"`

	// imagePullSecrets are Secrets of the same namespace with registry credentials, as
	// in a Pod. Default: those of the ServiceAccount.
	//
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=16
	ImagePullSecrets []SecretReference `json:"imagePullSecrets,omitempty"`

	// serviceAccountName is the ServiceAccount of the same namespace whose imagePullSecrets count
	// where imagePullSecrets is empty, as for a Pod. Default: "default".
	//
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')",message="not the name of a ServiceAccount: write one of this namespace, such as robot"
	ServiceAccountName string `json:"serviceAccountName,omitempty"`

	// imageDownloadRetryLimit is how often a node tries an image again after the first
	// failure. Then the node counts as failed, and one that pulls from the mirror may get
	// a turn at the upstream registry (--mirror-fallback). Default: 3.
	//
	// +optional
	// +default=3
	// +kubebuilder:validation:XValidation:rule="self >= 0 && self <= 100",message="imageDownloadRetryLimit must be between 0 and 100"
	ImageDownloadRetryLimit *int32 `json:"imageDownloadRetryLimit,omitempty"`

	// failureTolerance is how many nodes may fail while Ready is True: a number, or a
	// percentage of the desired nodes, rounded down. Default: 0.
	//
	// +optional
	// +default=0
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:MaxLength=4
	// +kubebuilder:validation:XValidation:rule="type(self) == int ? int(self) >= 0 : string(self).matches('^(100|[0-9]{1,2})%$')",message="failureTolerance must be a number of nodes such as 2, or a percentage in quotes such as \"10%\""
	FailureTolerance *intstr.IntOrString `json:"failureTolerance,omitempty"`

	// retention says how long the images stay: Pinned (default) keeps them from the
	// kubelet's garbage collection while this object wants them, BestEffort does not.
	//
	// +optional
	// +default="Pinned"
	Retention RetentionPolicy `json:"retention,omitempty"`
}

// SecretReference names a Secret in the namespace of the object it stands in.
type SecretReference struct {
	// name of the Secret.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
}

// ImagePrefetchStatus says how far the distribution is. No list in it grows with the
// cluster: node detail is in the NodeImageSets.
type ImagePrefetchStatus struct {
	// observedGeneration is the generation of the spec that this status describes.
	//
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// conditions are Ready and Degraded.
	//
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=8
	Conditions []metav1.Condition `json:"conditions,omitempty"`

	// desiredNodes is the number of nodes that are to have the images.
	//
	// +optional
	DesiredNodes int32 `json:"desiredNodes"`

	// readyNodes is the number of desired nodes that have every image.
	//
	// +optional
	ReadyNodes int32 `json:"readyNodes"`

	// pullingNodes is the number of desired nodes that are pulling some image now.
	//
	// +optional
	PullingNodes int32 `json:"pullingNodes"`

	// failedNodes is the number of desired nodes on which some image failed.
	//
	// +optional
	FailedNodes int32 `json:"failedNodes"`

	// joiningNodes is the number of desired nodes that came after this object was Ready,
	// and do not have every image yet. Ready does not wait for them.
	//
	// +optional
	JoiningNodes int32 `json:"joiningNodes,omitempty"`

	// uncoveredNodes is the number of selected nodes that cannot get images: no agent is
	// meant to run there, or their runtime is not supported. They are not desired.
	//
	// +optional
	UncoveredNodes int32 `json:"uncoveredNodes,omitempty"`

	// firstReadyTime is when Ready was True for the first time.
	//
	// +optional
	FirstReadyTime *metav1.Time `json:"firstReadyTime,omitempty"`

	// images has one entry for each image of the spec, in the order of the spec.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=100
	Images []ImageStatus `json:"images,omitempty"`

	// failures are examples of what went wrong, at most 10, ordered by node and image.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=10
	Failures []NodeFailure `json:"failures,omitempty"`
}

// ImageStatus says how far one image of an ImagePrefetch is.
type ImageStatus struct {
	// name is the image as the spec writes it.
	//
	// +required
	// +kubebuilder:validation:MaxLength=512
	Name string `json:"name"`

	// digest is what every node is to have under the name. Empty until the tag is resolved.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=160
	Digest string `json:"digest,omitempty"`

	// refresh is the value of the sluice.dev/refresh annotation that digest was resolved
	// for, or the SHA-256 of a value of more than 256 bytes; empty if there was none. While
	// it differs from the present one, the tag is being resolved again.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=256
	Refresh string `json:"refresh,omitempty"`

	// sizeBytes is the compressed size of the image: the bytes that a node without
	// any of its layers receives, in bytes.
	//
	// +optional
	SizeBytes int64 `json:"sizeBytes,omitempty"`

	// readyNodes is the number of desired nodes that have the image.
	//
	// +optional
	ReadyNodes int32 `json:"readyNodes"`

	// upstreamPulls is the number of desired nodes that got the image from the upstream
	// registry, and neither from the mirror nor from what they had.
	//
	// +optional
	UpstreamPulls int32 `json:"upstreamPulls"`
}

// NodeFailure is one image that failed on one node.
type NodeFailure struct {
	// node is the name of the node.
	//
	// +required
	// +kubebuilder:validation:MaxLength=253
	Node string `json:"node"`

	// image is the image as the spec writes it.
	//
	// +required
	// +kubebuilder:validation:MaxLength=512
	Image string `json:"image"`

	// reason is one word, such as ImageNotFound.
	//
	// +required
	// +kubebuilder:validation:MaxLength=64
	Reason string `json:"reason"`

	// message explains the reason for a person. It contains no credentials.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Message string `json:"message,omitempty"`
}

// ImagePrefetch brings images to nodes and keeps them there.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=ipf,categories=sluice
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Nodes",type=integer,JSONPath=`.status.desiredNodes`
// +kubebuilder:printcolumn:name="Holding",type=integer,JSONPath=`.status.readyNodes`
// +kubebuilder:printcolumn:name="Failed",type=integer,JSONPath=`.status.failedNodes`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type ImagePrefetch struct {
	metav1.TypeMeta `json:",inline"`

	// metadata is the standard object's metadata.
	//
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec is what is asked for.
	//
	// +required
	Spec ImagePrefetchSpec `json:"spec"`

	// status is how far it is.
	//
	// +optional
	Status ImagePrefetchStatus `json:"status,omitempty"`
}

// ImagePrefetchList is a list of ImagePrefetches.
//
// +kubebuilder:object:root=true
type ImagePrefetchList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ImagePrefetch `json:"items"`
}
