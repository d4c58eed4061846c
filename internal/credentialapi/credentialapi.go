// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package credentialapi is what the controller's credential endpoint and the node agent
// that asks it have to agree on. docs/credentials.md describes the protocol.
package credentialapi

import (
	"fmt"
	"io"
	"log/slog"
)

const (
	// Path is where the endpoint listens for POST requests.
	Path = "/v1/credentials"

	// Audience is what an agent's token must have been issued for. So the endpoint accepts no
	// token that a Pod gets for the API server, and the API server accepts none of these.
	Audience = "sluice.dev/credentials"

	// MaxRequestBytes bounds the body of a request: an image name and its JSON.
	MaxRequestBytes = 4 << 10

	// MaxResponseBytes bounds the body of a response. A Secret has at most 1 MiB, and the
	// response a small part of that.
	MaxResponseBytes = 1 << 20
)

// Request asks for the credentials of one image.
type Request struct {
	// Image is the name of the image in the NodeImageSet of the node that asks.
	Image string `json:"image"`
}

// Response has the credentials to try, in this order, until the registry accepts one. If it has
// none, the image is pulled without credentials.
type Response struct {
	Credentials []Credential `json:"credentials"`
}

// Reason is one word for why credentials were denied.
type Reason string

const (
	// ReasonBadRequest (400, 413): the request is malformed or too large. Asking again does not help.
	ReasonBadRequest Reason = "BadRequest"
	// ReasonUnauthorized (401): the token is not a valid one of an agent, issued
	// for Audience and bound to a node.
	ReasonUnauthorized Reason = "Unauthorized"
	// ReasonNotNeeded (403): the node is to pull the image from the mirror, without credentials.
	ReasonNotNeeded Reason = "NotNeeded"
	// ReasonNotWanted (404): the node's NodeImageSet does not name the image.
	ReasonNotWanted Reason = "NotWanted"
	// ReasonTooManyRequests (429): ask again later.
	ReasonTooManyRequests Reason = "TooManyRequests"
	// ReasonUnavailable (503): the API server did not answer. Ask again later.
	ReasonUnavailable Reason = "Unavailable"
)

// Error is the body of every answer but 200. It contains no credentials.
type Error struct {
	Reason  Reason `json:"reason"`
	Message string `json:"message"`
}

// Credential is one way to log in to a registry: either a username with a password, or an identity
// token. Logs and errors never show its content; only JSON, the wire format, has it.
type Credential struct {
	Username string `json:"username,omitempty"`
	Password string `json:"password,omitempty"`
	// IdentityToken is an OAuth2 refresh token, as `docker login` stores it.
	IdentityToken string `json:"identityToken,omitempty"`
}

// redacted stands where a credential would.
const redacted = "[credential]"

// Format keeps the content out of whatever is made with package fmt.
func (Credential) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redacted) }

// LogValue keeps the content out of structured logs, as slog.LogValuer.
func (Credential) LogValue() slog.Value { return slog.StringValue(redacted) }
