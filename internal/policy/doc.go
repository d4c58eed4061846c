// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package policy decides what a namespace may prefetch. It is pure: the webhook asks
// it when an ImagePrefetch is written, and the controller again on every pass, because
// a policy, a namespace's labels or the default may change in between.
//
// What selects a namespace adds up as follows. Grants (allowedRepositories) are a
// union. Restrictions (deniedRepositories, requireDigest, maxImages, maxNodes) all
// bind: those of each policy that selects the namespace, whichever policy allowed the
// repository. A namespace that no policy selects falls under the [Default].
//
// Patterns are matched on the parsed reference, never on the string. Allowing takes a
// domain literally. Denying takes it as the network does, so that the same registry
// under another spelling stays denied: letters in either case, any port unless the
// pattern names one, and the names under which Docker Hub also answers.
package policy
