// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package credentials is the HTTPS endpoint from which node agents get the registry credentials
// for the images that they pull. With it, agents need no right to read Secrets. A request passes
//
//	throttle ─▶ token ─▶ NodeImageSet of the token's node ─▶ ImagePrefetches ─▶ Secrets
//	  429        401            404, 403                       (left out)          503
//
// Each step reads what the API server has now. Nothing is cached, so that a rotated Secret, a
// revoked token or a withdrawn image counts from the next request on. docs/credentials.md
// describes the protocol and what it protects.
package credentials
