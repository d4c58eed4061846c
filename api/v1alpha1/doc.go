// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 is the API of Sluice: what a tenant asks for (ImagePrefetch), what an
// administrator allows (PrefetchPolicy), and what one node is to have and has (NodeImageSet,
// whose spec the controller writes, and whose status the node's agent).
//
// +kubebuilder:object:generate=true
// +kubebuilder:ac:generate=true
// +kubebuilder:ac:output:package="../applyconfiguration"
// +groupName=sluice.dev
package v1alpha1
