// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// Credentials returns the credentials that this node may use for an image. The agent calls it
// before each pull, so that a rotated Secret takes effect.
type Credentials interface {
	// For returns the credentials in the order to try them, or none. Its errors wrap
	// ErrCredentialsUnavailable or ErrCredentialsDenied.
	For(ctx context.Context, image string) ([]Credential, error)
}

// NodeCredentials returns the credentials that the node itself has for an image, whoever wants it.
type NodeCredentials interface {
	// For returns the credentials in the order to try them, or none. Its error names the sources that
	// failed; the credentials of the others come with it.
	For(ctx context.Context, image string) ([]Credential, error)
}

// addNodeCredentials adds the node's credentials to a pull from the registry. Like the kubelet it has
// those of the pull secrets tried before. The error does not prevent the pull, since the image may be
// public.
func (a *Agent) addNodeCredentials(ctx context.Context, image string, pull *PullRequest) error {
	if a.NodeCredentials == nil || pull.Policy != v1alpha1.RegistryPolicyDefault {
		return nil
	}
	found, err := a.NodeCredentials.For(ctx, image)
	pull.Credentials = append(pull.Credentials, found...)
	return err
}

// refused reports whether a registry wants other credentials. Some registries say "not found" to the
// unauthorized.
func refused(err error) bool {
	return errors.Is(err, ErrUnauthorized) || errors.Is(err, ErrImageNotFound)
}

// explainRefusal adds to a registry's refusal which of the node's credentials failed. Only the text of
// that goes in, so that the refusal means what it meant.
func explainRefusal(err, failed error) error {
	if failed == nil || !refused(err) {
		return err
	}
	return fmt.Errorf("%s; %w", failed.Error(), err)
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
