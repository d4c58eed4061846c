// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package webhook answers the API server whether an ImagePrefetch or a PrefetchPolicy may be stored,
// and whether a Deployment is held. A handler decodes the request, calls a pure function of
// internal/policy or internal/hold, and encodes the answer. The handlers only read from caches, so
// every replica answers alike.
//
// config/webhook says what the API server asks about.
package webhook
