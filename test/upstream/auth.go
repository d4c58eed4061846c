// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/sluice-dev/sluice/test/distribution"
)

// Scheme is how a client shows who it is.
type Scheme string

const (
	// Basic asks for name and password with every request.
	Basic Scheme = "Basic"
	// Bearer sends the client to the token endpoint first, as Docker Hub does.
	Bearer Scheme = "Bearer"
)

// Auth says who may read.
type Auth struct {
	// Scheme is Basic if empty.
	Scheme Scheme
	// Users are passwords by name.
	Users map[string]string
	// IdentityToken is accepted by the token endpoint in place of a user, as
	// the "identitytoken" of a docker config is meant.
	IdentityToken string
	// Anonymous gives a token to everybody, as Docker Hub does for what is public.
	Anonymous bool
	// OverLimit are users who have fetched too much: they get status 429.
	OverLimit map[string]bool
}

func (a *Auth) accepts(user, password string) bool {
	want, known := a.Users[user]
	return known && want == password
}

const (
	tokenPath      = "/token"
	basicChallenge = `Basic realm="upstream"`
)

type protection struct {
	rules  map[string]*Auth // by repository; "" for those without a rule of their own
	tokens map[string]grant
}

// grant is what a token opens, and for whom.
type grant struct {
	user         string
	account      string // NAME:PASSWORD or an identity token
	repositories map[string]bool
}

// Protect makes one repository, or all those without a rule of their own if
// the name is "", ask for credentials. nil opens it to everybody. Tokens given
// out before are no longer valid, as after a password was changed.
func (s *Server) Protect(repository string, auth *Auth) {
	s.update(func() {
		s.protection.rules[repository] = auth
		clear(s.protection.tokens)
	})
}

// rule is called with the lock held; nil means open.
func (p *protection) rule(repository string) *Auth {
	if auth, own := p.rules[repository]; own {
		return auth
	}
	return p.rules[""]
}

// authorize returns status 200 if the request may read the repository, and otherwise the
// status to answer with, and the challenge.
func (s *Server) authorize(r *http.Request, repository string) (status int, challenge string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	auth := s.protection.rule(repository)
	if auth == nil {
		return http.StatusOK, ""
	}
	admit := func(user string) (int, string) {
		if auth.OverLimit[user] {
			return http.StatusTooManyRequests, ""
		}
		return http.StatusOK, ""
	}
	if cmp.Or(auth.Scheme, Basic) == Basic {
		if user, password, given := r.BasicAuth(); given && auth.accepts(user, password) {
			return admit(user)
		}
		return http.StatusUnauthorized, basicChallenge
	}
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if g := s.protection.tokens[token]; g.repositories[repository] {
		return admit(g.user)
	}
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	challenge = fmt.Sprintf(`Bearer realm="%s://%s%s",service="upstream"`, scheme, r.Host, tokenPath)
	if repository != "" {
		challenge += fmt.Sprintf(`,scope="repository:%s:pull"`, repository)
	}
	return http.StatusUnauthorized, challenge
}

// shown is the identity that a request shows, in clear and as it was sent; empty if
// nothing. It is called with the lock held.
func (p *protection) shown(r *http.Request) string {
	header := r.Header.Get("Authorization")
	if user, password, given := r.BasicAuth(); given {
		return user + ":" + password + ", " + header
	}
	token, _ := strings.CutPrefix(header, "Bearer ")
	if granted, known := p.tokens[token]; known {
		return granted.account + ", " + header
	}
	return header
}

// token gives out tokens, in both forms that clients use: GET with Basic
// credentials, and the POST of OAuth 2. Without credentials there is a token
// that opens nothing, as on Docker Hub.
func (s *Server) token(out *response, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		distribution.WriteError(out, r, http.StatusBadRequest, err.Error())
		return
	}
	user, password, given := r.BasicAuth()
	refresh := ""
	if r.Method == http.MethodPost {
		user, password, refresh = r.Form.Get("username"), r.Form.Get("password"), r.Form.Get("refresh_token")
		given = true
	}
	opened, account := map[string]bool{}, user+":"+password
	if refresh != "" {
		account = refresh
	}
	s.mu.Lock()
	for _, scope := range strings.Fields(strings.Join(r.Form["scope"], " ")) {
		repository, ok := strings.CutPrefix(scope, "repository:")
		if i := strings.LastIndexByte(repository, ':'); ok && i >= 0 {
			repository = repository[:i]
		}
		auth := s.protection.rule(repository)
		byToken := auth != nil && refresh != "" && refresh == auth.IdentityToken
		if auth == nil || auth.Anonymous || byToken || given && auth.accepts(user, password) {
			opened[repository] = true
		}
	}
	value := rand.Text()
	s.protection.tokens[value] = grant{user: user, account: account, repositories: opened}
	s.mu.Unlock()
	if given && len(opened) == 0 {
		distribution.WriteError(out, r, http.StatusUnauthorized, "incorrect username or password")
		return
	}
	out.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(out).Encode(map[string]any{"token": value, "access_token": value, "expires_in": 300})
}
