// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"github.com/sluice-dev/sluice/nodeagent/credentials"
)

func TestCredentialFlags(t *testing.T) {
	for _, tt := range []struct {
		reason, line string
		want         credentials.Options
		wantErr      string
	}{
		{"every pull is anonymous by default", "", credentials.Options{}, ""},
		{
			"an endpoint", "--credentials-url=https://sluice:9444 --credentials-token-file=/token --credentials-ca-file=/ca.crt",
			credentials.Options{URL: "https://sluice:9444", TokenFile: "/token", CAFile: "/ca.crt"}, "",
		},
		{
			"no token for an endpoint in the clear", "--credentials-url=http://sluice:9444 --credentials-token-file=/token",
			credentials.Options{}, "--credentials-url must be https://HOST or https://HOST:PORT",
		},
		{
			"no endpoint without a token", "--credentials-url=https://sluice:9444",
			credentials.Options{}, "--credentials-token-file must be set: the endpoint answers nobody without a token",
		},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			options, err := parse(append(strings.Fields(tt.line), "--node-name=node-a"))
			if tt.wantErr != "" {
				if err == nil || err.Error() != tt.wantErr {
					t.Errorf("err = %v, want %s", err, tt.wantErr)
				}
				return
			}
			if err != nil || options.Credentials != tt.want {
				t.Errorf("got %+v, err %v; want %+v", options.Credentials, err, tt.want)
			}
		})
	}
}
