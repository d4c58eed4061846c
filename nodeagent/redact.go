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

// bearer is a token in a header: the registry gave it, to containerd, for the credentials.
var bearer = regexp.MustCompile(`(Bearer )[\w.~+/-]{20,}=*`)

// Redact takes the secrets of the credentials out of an error's text, however they
// were sent: containerd adds to its errors what the registry says, and registries may
// repeat what they were shown. User names stay. What the error wraps stays, too, so
// its text is not to be asked for there.
func Redact(err error, credentials []Credential) error {
	if err == nil || len(credentials) == 0 {
		return err
	}
	var secrets []string
	for _, c := range credentials {
		secrets = append(secrets, encodings(c.Username, c.Password)...)
		secrets = append(secrets, encodings("", c.IdentityToken)...)
	}
	// The longest goes first: one may be the beginning of another.
	slices.SortFunc(secrets, func(x, y string) int { return cmp.Compare(len(y), len(x)) })
	var replacements []string
	for _, secret := range secrets {
		replacements = append(replacements, secret, redacted)
	}
	text := strings.NewReplacer(replacements...).Replace(err.Error())
	return &redactedError{text: bearer.ReplaceAllString(text, "${1}"+redacted), err: err}
}

// encodings are the forms in which a secret travels: by itself, in a form's body or a
// query, and in base64, where padding may follow, with and without the user name.
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
