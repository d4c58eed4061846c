// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"fmt"
	"io"
)

// Credentials gives the credentials that this node may use for an image now. It
// is asked before each pull, so that a rotated Secret is seen.
type Credentials interface {
	// For returns the credentials in the order to try them, or none. Its errors wrap
	// ErrCredentialsUnavailable or ErrCredentialsRefused.
	For(ctx context.Context, image string) ([]Credential, error)
}

// Credential is one way to log in to a registry. It shows itself neither in logs nor in
// errors nor in JSON.
type Credential struct {
	// Username and Password are for basic authentication.
	Username, Password string
	// IdentityToken is used in place of them where it is set.
	IdentityToken string
}

const redacted = "[credential]"

// Format keeps the content out of whatever is made with package fmt.
func (Credential) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redacted) }

// MarshalLog keeps the content out of structured logs, as logr.Marshaler.
func (Credential) MarshalLog() any { return redacted }

// MarshalText keeps the content out of JSON.
func (Credential) MarshalText() ([]byte, error) { return []byte(redacted), nil }
