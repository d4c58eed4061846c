// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"github.com/sluice-dev/sluice/controllers/credentials"
)

func TestCredentialFlags(t *testing.T) {
	for _, tt := range []struct {
		reason, line string
		want         credentials.Options
		wantErr      string
	}{
		{
			"no endpoint unless it is asked for", "",
			credentials.Options{Audience: "sluice.dev/credentials", AgentServiceAccount: "sluice-system/sluice-agent"}, "",
		},
		{
			reason: "an endpoint for another account",
			line:   "--credentials-bind-address=:9444 --certificate-secret=sluice-system/tls --agent-service-account=other/agent --credentials-audience=mine",
			want:   credentials.Options{BindAddress: ":9444", Audience: "mine", AgentServiceAccount: "other/agent"},
		},
		{
			"it does not serve in the clear", "--credentials-bind-address=:9444",
			credentials.Options{}, "--credentials-bind-address needs --certificate-secret: credentials are served over HTTPS only",
		},
		{
			"nor every account", "--credentials-bind-address=:9444 --certificate-secret=sluice-system/tls --agent-service-account=agent",
			credentials.Options{}, `--agent-service-account must be NAMESPACE/NAME, not "agent"`,
		},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			options, err := parse(strings.Fields(tt.line))
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
