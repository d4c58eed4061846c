// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package certificate provides the serving certificate of the controller in clusters without
// cert-manager. It makes a CA and a certificate and keeps both in a Secret. Each replica writes the
// certificate to the folder that its servers read, and the CA into the webhook configurations.
// Agents take the CA from the Secret.
//
//	          make, renew                    files, read again as they change
//	Keeper ◀──────────────▶ Secret ─────▶ Keeper ─────────▶ webhooks, endpoint
//	   │                      │ ca.crt
//	   ▼ caBundle             ▼
//	webhook configurations   agents
//
// The package needs no right to list or watch: it reads at fixed intervals.
package certificate
