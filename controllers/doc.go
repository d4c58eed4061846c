// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package controllers has what runs in sluice-controller, beside the webhooks. Each controller is a
// package of its own, and none imports another:
//
//   - distribution plans which node pulls which image, and from where: ImagePrefetches
//     become one NodeImageSet per node, and the nodes' answers become their status. Its
//     decisions are in distribution/plan, which is pure.
//   - gate releases the rollouts that the webhook holds. Its decisions are in
//     internal/hold, which the webhook shares.
//   - credentials serves registry credentials to the agents: those for an image to the nodes
//     that pull it. internal/keyring reads them from pull secrets.
//   - certificate has the serving certificate, and publishes its CA. With SelfManaged it makes both.
//   - installation checks an installation, updates the CRDs and, before an uninstallation,
//     releases rollouts and removes pins.
package controllers
