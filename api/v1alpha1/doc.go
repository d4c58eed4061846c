// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 is the API of Sluice: what a tenant asks for (ImagePrefetch),
// what an administrator allows (PrefetchPolicy), and what one node shall hold and
// holds (NodeImageSet, written by the controller and answered by the node's agent).
//
// +kubebuilder:object:generate=true
// +kubebuilder:ac:generate=true
// +kubebuilder:ac:output:package="../applyconfiguration"
// +groupName=sluice.dev
package v1alpha1
