// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package webhook answers the API server: may this ImagePrefetch or PrefetchPolicy be
// stored, and is this Deployment held. The handlers decode, ask a pure function of
// internal/policy or internal/hold, and encode. They read from caches only, change nothing, and
// are the same on every replica.
//
// config/webhook says what the API server asks about.
package webhook
