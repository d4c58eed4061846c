// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package certificate provides the serving certificate of the controller, and tells those who are to
// trust it. The certificate is in a Secret, with the CA: cert-manager issues it, or the controller
// makes and renews both itself (SelfManaged). Each replica reads the Secret through the API, and keeps
// the key in memory. No volume has it, so no kubelet may read it.
//
//	cert-manager, or Keeper (SelfManaged)
//	       │ issues, renews
//	       ▼        tls.key, tls.crt                     after settle
//	    Secret ───────────────────────▶ Keeper ─────────────────────────▶ webhooks, endpoint
//	                                      │ ca.crt, for a while with the CA before it
//	                                      ├──▶ ConfigMap, which the agents read for each request
//	                                      └──▶ caBundle of the webhook configurations (SelfManaged)
//
// A CA may be replaced by one with another key. Whoever reads the ConfigMap trusts the old one and the
// new one from before the first replica serves with the new one until after the last has:
//
//	told ──settle──▶ serves with the new CA ──forgetAfter──▶ the old one is not trusted any more
//
// The package needs no right to list or watch: it reads at fixed intervals.
package certificate
