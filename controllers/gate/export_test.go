// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

// FindOrphans is for tests outside of the package, which have an API server.
var FindOrphans = (*Reconciler).findOrphans
