// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"fmt"
	"io"
)

// Credentials returns the credentials that this node may use for an image. The agent calls it
// before each pull, so that a rotated Secret takes effect.
type Credentials interface {
	// For returns the credentials in the order to try them, or none. Its errors wrap
	// ErrCredentialsUnavailable or ErrCredentialsDenied.
	For(ctx context.Context, image string) ([]Credential, error)
}

// Credential is one way to log in to a registry. Logs, errors and JSON never show its content.
type Credential struct {
	// Username and Password are for basic authentication.
	Username, Password string
	// IdentityToken, if set, is used in place of Username and Password.
	IdentityToken string
}

const redacted = "[credential]"

// Format keeps the content out of text that package fmt makes.
func (Credential) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redacted) }

// MarshalLog keeps the content out of structured logs. It implements logr.Marshaler.
func (Credential) MarshalLog() any { return redacted }

// MarshalText keeps the content out of JSON.
func (Credential) MarshalText() ([]byte, error) { return []byte(redacted), nil }
