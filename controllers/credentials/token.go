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

// nodeNameKey is the claim of a token that names the node of the Pod for which it was issued. The
// API server sets it (k8s.io/apiserver/pkg/authentication/serviceaccount).
const nodeNameKey = "authentication.kubernetes.io/node-name"

// tokenReviewer has the API server review the tokens of agents.
type tokenReviewer struct {
	writer   client.Writer
	audience string
	username string
}

// nodeOf returns the node of the agent whose token it is. A denial says in the log which
// condition the token fails, and does not say so to the caller.
func (t tokenReviewer) nodeOf(ctx context.Context, token string) (string, error) {
	denied := deny(http.StatusUnauthorized, credentialapi.ReasonUnauthorized,
		"the token is not a valid one of a Sluice agent, issued for this endpoint and bound to a node")
	if token == "" {
		return "", denied.withDetail("the request has no bearer token")
	}
	review := &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{t.audience}},
	}
	if err := t.writer.Create(ctx, review); err != nil {
		return "", fmt.Errorf("review token: %s", redact(token, err.Error()))
	}
	status := review.Status
	if !status.Authenticated {
		return "", denied.withDetail("the token is not valid: " + redact(token, status.Error))
	}
	// An authenticator that does not know audiences leaves them out of its answer.
	if !slices.Contains(status.Audiences, t.audience) {
		return "", denied.withDetail("the token is not for the audience " + t.audience)
	}
	if status.User.Username != t.username {
		return "", denied.withDetail("the token belongs to " + status.User.Username)
	}
	nodes := status.User.Extra[nodeNameKey]
	if len(nodes) != 1 || nodes[0] == "" {
		return "", denied.withDetail("the token is not bound to a node")
	}
	return nodes[0], nil
}

// redact takes the token out of a text, in case an error of the API server quotes it.
func redact(token, text string) string { return strings.ReplaceAll(text, token, "[token]") }
