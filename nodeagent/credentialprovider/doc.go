// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package credentialprovider asks the credential provider plugins of the node for credentials, such
// as those for ECR, GAR and ACR. It reads the kubelet's own configuration of them, and does as the
// kubelet does (k8s.io/kubernetes/pkg/credentialprovider/plugin): the same plugins run for an image,
// with the same request, and their answers are kept for as long.
//
// It differs from the kubelet in six points, and in those of internal/keyring:
//   - A provider with tokenAttributes is left out. It wants a token of the Pod's service account, and
//     there is no Pod yet.
//   - Unknown fields are ignored, because the kubelet may be newer.
//   - An answer may have 1 MiB at most.
//   - The timeout also ends the processes that a plugin has started.
//   - Two pulls of one image at the same moment may both run a plugin.
//   - Nothing that a plugin writes is in an error. The first line that a failed one wrote to stderr is
//     in the log; of the kubelet, all of it.
package credentialprovider
