// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package installation has what the chart's hooks do to an installation as a whole: before an upgrade
// they update the CRDs, after an installation or an upgrade they wait for the webhooks, and before
// an uninstallation they undo what Sluice did to the cluster.
package installation
