// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package policy decides what a namespace may prefetch. It is pure. The webhook calls it when an
// ImagePrefetch is written, and the controller again on every pass, because a policy, a namespace's
// labels or the default may change in between.
//
// Several policies that select a namespace are combined as follows. It may prefetch from a
// repository that any of them allows (allowedRepositories). The restrictions (deniedRepositories,
// requireDigest, maxImages, maxNodes) of all of them apply, whichever policy allowed the
// repository. A namespace that no policy selects is subject to the [Default].
//
// Patterns are matched on the parsed reference, never on the string. A pattern that allows takes a
// domain literally. A pattern that denies takes it as the network does, so that the same registry
// under another spelling stays denied: letters in either case, any port unless the pattern names
// one, and the other names of Docker Hub.
package policy
