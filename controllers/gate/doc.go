// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package gate ends the holds of Deployments: when their ImagePrefetch is Ready, when the hold times
// out, or when they no longer ask to be held. The decision is made in internal/hold, which the
// webhook that begins the holds shares.
package gate
