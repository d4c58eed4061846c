// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// RepositoryPattern matches parsed repositories, never strings: a domain, then path
// segments. "ghcr.io/org/app" is that repository. A "*" is any one segment, "/**" at the
// end any depth below, and "*.example.com" at the start any subdomain.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=512
type RepositoryPattern string

// PrefetchPolicySpec says what the namespaces it selects may prefetch. A namespace
// selected by several policies may use what any of them allows and none denies.
type PrefetchPolicySpec struct {
	// namespaceSelector selects namespaces by their labels. An empty selector selects all.
	//
	// +required
	NamespaceSelector metav1.LabelSelector `json:"namespaceSelector"`

	// allowedRepositories are the repositories that may be prefetched from. Default: none.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=256
	AllowedRepositories []RepositoryPattern `json:"allowedRepositories,omitempty"`

	// deniedRepositories are repositories that may not be prefetched from, whatever
	// any policy allows. Default: none.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=256
	DeniedRepositories []RepositoryPattern `json:"deniedRepositories,omitempty"`

	// requireDigest admits only images that are named by digest. Default: false.
	//
	// +optional
	RequireDigest *bool `json:"requireDigest,omitempty"`

	// maxImages is the number of images that one ImagePrefetch may list. Default: the limit
	// of the kind, 100.
	//
	// +optional
	// +kubebuilder:validation:XValidation:rule="self >= 1",message="maxImages must be 1 or more; to allow no images, allow no repositories"
	MaxImages *int32 `json:"maxImages,omitempty"`

	// maxNodes is the number of nodes that one ImagePrefetch may use. With it, an
	// ImagePrefetch must set replicas, to this or less. Default: no limit.
	//
	// +optional
	// +kubebuilder:validation:XValidation:rule="self >= 1",message="maxNodes must be 1 or more; to allow no images, allow no repositories"
	MaxNodes *int32 `json:"maxNodes,omitempty"`
}

// PrefetchPolicy says which repositories the tenants of some namespaces may
// prefetch from. Only administrators write it.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=pfp,categories=sluice
// +kubebuilder:printcolumn:name="Allowed",type=string,JSONPath=`.spec.allowedRepositories`
// +kubebuilder:printcolumn:name="Denied",type=string,JSONPath=`.spec.deniedRepositories`,priority=1
// +kubebuilder:printcolumn:name="RequireDigest",type=boolean,JSONPath=`.spec.requireDigest`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type PrefetchPolicy struct {
	metav1.TypeMeta `json:",inline"`

	// metadata is the standard object's metadata.
	//
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec is what is allowed.
	//
	// +required
	Spec PrefetchPolicySpec `json:"spec"`
}

// PrefetchPolicyList is a list of PrefetchPolicies.
//
// +kubebuilder:object:root=true
type PrefetchPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []PrefetchPolicy `json:"items"`
}
