// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package credentialapi

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sluice-dev/sluice/internal/logging"
)

func TestACredentialShowsItselfNowhere(t *testing.T) {
	secret := Credential{Username: "robot", Password: "hunter2", IdentityToken: "refresh-me"}
	response := Response{Credentials: []Credential{secret}}
	var logged bytes.Buffer
	log := logging.Options{Format: logging.FormatJSON}.Logger(&logged)
	log.Info("Got a credential", "credential", secret, "pointer", &secret)
	log.Error(errors.New("refused"), "Got credentials", "text", fmt.Sprint(response))

	for what, shown := range map[string]string{
		"%v":          fmt.Sprintf("%v", secret),
		"%+v":         fmt.Sprintf("%+v", secret),
		"%#v":         fmt.Sprintf("%#v", secret),
		"%s":          fmt.Sprintf("%s", secret),
		"%q":          fmt.Sprintf("%q", secret),
		"%x":          fmt.Sprintf("%x", secret),
		"a pointer":   fmt.Sprintf("%+v", &secret),
		"a response":  fmt.Sprintf("%+v", response),
		"an error":    fmt.Errorf("log in with %v: refused", secret).Error(),
		"the log":     logged.String(),
		"a nested %v": fmt.Sprintf("%v", map[string][]Credential{"ghcr.io": {secret}}),
	} {
		for _, word := range []string{secret.Username, secret.Password, secret.IdentityToken, fmt.Sprintf("%x", secret.Password)} {
			if strings.Contains(shown, word) {
				t.Errorf("%s shows %q: %s", what, word, shown)
			}
		}
	}
}
