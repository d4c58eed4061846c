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

	// Audience is what an agent's token must have been issued for. The token that
	// a Pod gets for the API server is therefore of no use here, nor this one there.
	Audience = "sluice.dev/credentials"

	// MaxRequestBytes bounds the body of a request: an image name and its JSON.
	MaxRequestBytes = 4 << 10

	// MaxResponseBytes bounds the body of a response. A Secret holds at most 1 MiB,
	// and what remains of it after the lookup is a small part.
	MaxResponseBytes = 1 << 20
)

// Request asks for the credentials of one image.
type Request struct {
	// Image is the name of the image in the NodeImageSet of the node that asks.
	Image string `json:"image"`
}

// Response are the credentials to try, in this order, until the registry accepts
// one. None means that the image is pulled without.
type Response struct {
	Credentials []Credential `json:"credentials"`
}

// Reason is one word for why a request was refused.
type Reason string

const (
	// ReasonBadRequest (400, 413): the request is not one. Asking again does not help.
	ReasonBadRequest Reason = "BadRequest"
	// ReasonUnauthorized (401): the token is not a valid one of an agent, issued
	// for Audience and bound to a node.
	ReasonUnauthorized Reason = "Unauthorized"
	// ReasonNotNeeded (403): the node shall pull the image from the mirror, without
	// credentials.
	ReasonNotNeeded Reason = "NotNeeded"
	// ReasonNotWanted (404): the node's NodeImageSet does not name the image.
	ReasonNotWanted Reason = "NotWanted"
	// ReasonTooManyRequests (429): ask again later.
	ReasonTooManyRequests Reason = "TooManyRequests"
	// ReasonUnavailable (503): the API server did not answer. Ask again later.
	ReasonUnavailable Reason = "Unavailable"
)

// Error is the body of every answer but 200. It holds no credentials.
type Error struct {
	Reason  Reason `json:"reason"`
	Message string `json:"message"`
}

// Credential is one way to log in to a registry: either a username with a password,
// or an identity token. It shows itself neither in logs nor in errors; only JSON, the
// wire format, holds what is in it.
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
