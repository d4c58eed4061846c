// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package credentials

import (
	"strings"
	"testing"
)

func TestOptionsSayWhatIsMissing(t *testing.T) {
	good := Options{BindAddress: ":9444", Audience: "sluice.dev/credentials", AgentServiceAccount: "sluice-system/sluice-agent"}
	for _, tt := range []struct {
		reason string
		change func(*Options)
		want   string // in the error; empty for none
	}{
		{"as it should be", func(*Options) {}, ""},
		{"no endpoint needs nothing", func(o *Options) { *o = Options{} }, ""},
		{"an address without a port", func(o *Options) { o.BindAddress = "localhost" }, "--credentials-bind-address"},
		{"no audience", func(o *Options) { o.Audience = "" }, "sluice.dev/credentials"},
		{"no service account", func(o *Options) { o.AgentServiceAccount = "" }, "NAMESPACE/NAME"},
		{"a service account without its namespace", func(o *Options) { o.AgentServiceAccount = "sluice-agent" }, "NAMESPACE/NAME"},
		{"a name that would be another's in the API server's form", func(o *Options) { o.AgentServiceAccount = "sluice/a:b" }, "NAMESPACE/NAME"},
		{"the API server's own form", func(o *Options) { o.AgentServiceAccount = "system:serviceaccount:a:b" }, "NAMESPACE/NAME"},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			o := good
			tt.change(&o)
			err := o.Validate()
			if tt.want == "" && err != nil {
				t.Errorf("rejected: %v", err)
			}
			if tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("err = %v, want one that says %q", err, tt.want)
			}
		})
	}
	if got, want := good.agentUsername(), "system:serviceaccount:sluice-system:sluice-agent"; got != want {
		t.Errorf("the agents are known as %q, want %q", got, want)
	}
}
