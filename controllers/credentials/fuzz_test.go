// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package credentials

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"

	"github.com/sluice-dev/sluice/internal/credentialapi"
)

// FuzzRequest sends anything to the endpoint. Only the token of an agent that asks for the image of
// its node gets the credentials, every answer is one that an agent can read, and no token and no
// password is in a log or in a denial.
func FuzzRequest(f *testing.F) {
	const image = "ghcr.io/shop/app:v1"
	for _, body := range []string{
		`{"image": "` + image + `"}`, `{"image": "ghcr.io/shop/app"}`, `{"image": "GHCR.io/x"}`, `{"image": 3}`, `{}`, `[]`, `null`, ``, `{"image": "`, "\xff",
		`{"image": "` + strings.Repeat("a", credentialapi.MaxRequestBytes) + `"}`, `{"image": "` + image + `"} {"image": "x"}`, `{"IMAGE": "` + image + `"}`,
		`{"image": "` + image + `@sha256:` + strings.Repeat("0", 64) + `"}`,
	} {
		f.Add(http.MethodPost, credentialapi.Path, "Bearer "+someToken, body)
	}
	for _, authorization := range []string{"", "Bearer", "bearer  " + someToken, "Basic cm9ib3Q6cDRzc3cwcmQ=", "Bearer token-of-somebody-else", "Bearer \x00"} {
		f.Add(http.MethodPost, credentialapi.Path, authorization, `{"image": "`+image+`"}`)
	}
	f.Add(http.MethodGet, credentialapi.Path+"/../x", "Bearer "+someToken, "")

	var logged bytes.Buffer
	made := newHandler(f, &logged, func(review *authenticationv1.TokenReview) error {
		if review.Spec.Token == someToken {
			review.Status = good
		} else {
			review.Status = authenticationv1.TokenReviewStatus{Error: "cannot parse " + review.Spec.Token}
		}
		return nil
	}, nil)
	f.Fuzz(func(t *testing.T, method, path, authorization, body string) {
		request := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
		request.Method, request.URL.Path = method, path
		request.Header.Set("Authorization", authorization)
		logged.Reset()
		made.handler.throttle = newThrottle()
		response := httptest.NewRecorder()
		made.handler.ServeHTTP(response, request)

		answer, token := response.Body.String(), bearer(request)
		switch response.Code {
		case http.StatusOK:
			var asked credentialapi.Request
			var found credentialapi.Response
			if err := json.NewDecoder(strings.NewReader(body)).Decode(&asked); err != nil || asked.Image != image || token != someToken || method != http.MethodPost {
				t.Errorf("%s %q with the token %q and the body %q got %s", method, path, token, body, answer)
			}
			if err := json.Unmarshal([]byte(answer), &found); err != nil || len(answer) > credentialapi.MaxResponseBytes {
				t.Errorf("an agent cannot read %q: %v", answer, err)
			}
			answer = ""
		case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusRequestEntityTooLarge:
			var denial credentialapi.Error
			ours := path == credentialapi.Path && method == http.MethodPost
			if err := json.Unmarshal([]byte(answer), &denial); ours && (err != nil || denial.Reason == "" || denial.Message == "") {
				t.Errorf("an agent cannot read %q: %v", answer, err)
			}
		case http.StatusMethodNotAllowed, http.StatusMovedPermanently, http.StatusTemporaryRedirect: // not ours
		default:
			t.Errorf("status %d for %s %q: %s", response.Code, method, path, answer)
		}
		secrets := []string{"p4ssw0rd", "cm9ib3Q6cDRzc3cwcmQ="}
		if len(token) > 8 { // a shorter one may stand there by chance
			secrets = append(secrets, token)
		}
		for _, text := range []string{answer, logged.String()} {
			if at := slices.IndexFunc(secrets, func(secret string) bool { return strings.Contains(text, secret) && !strings.Contains(path, secret) }); at >= 0 {
				t.Errorf("%q is shown: %s", secrets[at], text)
			}
		}
	})
}
