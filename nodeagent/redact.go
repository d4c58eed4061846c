// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"cmp"
	"encoding/base64"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// bearer matches a token that the registry gave to containerd in exchange for the credentials.
var bearer = regexp.MustCompile(`(Bearer )[\w.~+/-]{20,}=*`)

// Redact removes the secrets of the credentials from an error's text, in each encoding in which
// they are sent: containerd's errors quote the registry, and a registry may quote what it received.
// User names stay. The wrapped errors stay as they are, so their own text must not be shown.
func Redact(err error, credentials []Credential) error {
	if err == nil || len(credentials) == 0 {
		return err
	}
	var secrets []string
	for _, c := range credentials {
		secrets = append(secrets, encodings(c.Username, c.Password)...)
		secrets = append(secrets, encodings("", c.IdentityToken)...)
	}
	// The longest is replaced first, because one secret may be the beginning of another.
	slices.SortFunc(secrets, func(x, y string) int { return cmp.Compare(len(y), len(x)) })
	var replacements []string
	for _, secret := range secrets {
		replacements = append(replacements, secret, redacted)
	}
	text := strings.NewReplacer(replacements...).Replace(err.Error())
	return &redactedError{text: bearer.ReplaceAllString(text, "${1}"+redacted), err: err}
}

// encodings are the forms in which a secret is sent: as it is, as in a form or a query, and in
// base64 with and without the user name before it. The base64 is without padding, so it also
// matches where padding follows.
func encodings(username, secret string) []string {
	if secret == "" {
		return nil
	}
	all := []string{secret, url.QueryEscape(secret)}
	for _, plain := range []string{secret, username + ":" + secret} {
		all = append(all, base64.RawStdEncoding.EncodeToString([]byte(plain)), base64.RawURLEncoding.EncodeToString([]byte(plain)))
	}
	return all
}

type redactedError struct {
	text string
	err  error
}

func (e *redactedError) Error() string { return e.text }
func (e *redactedError) Unwrap() error { return e.err }
