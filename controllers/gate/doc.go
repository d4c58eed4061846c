// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package gate releases held Deployments: when their ImagePrefetch is Ready, when
// their hold times out, or when they no longer ask for it. What it decides is in
// internal/hold, shared with the webhook that holds them.
package gate
