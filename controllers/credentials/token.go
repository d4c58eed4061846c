// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package credentials

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/internal/credentialapi"
)

// nodeNameKey is the claim that says on which node the Pod runs that a token was
// issued for. The API server sets it (k8s.io/apiserver/pkg/authentication/serviceaccount).
const nodeNameKey = "authentication.kubernetes.io/node-name"

// tokenReviewer finds out whose a token is.
type tokenReviewer struct {
	writer   client.Writer
	audience string
	username string
}

// nodeOf returns the node of the agent that the token belongs to. A refusal does not
// tell the caller which of the conditions the token fails, but the log does.
func (t tokenReviewer) nodeOf(ctx context.Context, token string) (string, error) {
	no := deny(http.StatusUnauthorized, credentialapi.ReasonUnauthorized,
		"the token is not a valid one of a Sluice agent, issued for this endpoint and bound to a node")
	if token == "" {
		return "", no.withDetail("the request has no bearer token")
	}
	review := &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{t.audience}},
	}
	if err := t.writer.Create(ctx, review); err != nil {
		return "", fmt.Errorf("review token: %s", redact(token, err.Error()))
	}
	status := review.Status
	if !status.Authenticated {
		return "", no.withDetail("the token is not valid: " + redact(token, status.Error))
	}
	// An authenticator that knows nothing of audiences leaves them out of its answer.
	if !slices.Contains(status.Audiences, t.audience) {
		return "", no.withDetail("the token is not for the audience " + t.audience)
	}
	if status.User.Username != t.username {
		return "", no.withDetail("the token belongs to " + status.User.Username)
	}
	nodes := status.User.Extra[nodeNameKey]
	if len(nodes) != 1 || nodes[0] == "" {
		return "", no.withDetail("the token is not bound to a node")
	}
	return nodes[0], nil
}

// redact guards against an error of the API server that quotes the token.
func redact(token, text string) string { return strings.ReplaceAll(text, token, "[token]") }
