// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	controllerconfig "sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/nodeagent/credentialprovider"
	"github.com/sluice-dev/sluice/nodeagent/credentials"
	"github.com/sluice-dev/sluice/test/runtimetest"
)

// parseFlags parses a command line, which may be wrong in one way. Then nothing comes of it.
func parseFlags(t *testing.T, line, wantErr string) Options {
	t.Helper()
	options, err := parse(append(strings.Fields(line), "--node-name=node-a"))
	switch {
	case wantErr == "" && err != nil:
		t.Fatal(err)
	case wantErr != "" && (err == nil || err.Error() != wantErr):
		t.Errorf("err = %v, want %s", err, wantErr)
	}
	if wantErr != "" {
		return Options{}
	}
	return options
}

func TestCredentialFlags(t *testing.T) {
	for _, tt := range []struct {
		reason, line string
		want         credentials.Options
		wantErr      string
	}{
		{"every pull is anonymous by default", "", credentials.Options{}, ""},
		{
			"an endpoint", "--credentials-url=https://sluice:9444 --credentials-token-file=/token --credentials-ca-configmap=sluice-system/ca",
			credentials.Options{URL: "https://sluice:9444", TokenFile: "/token", CAConfigMap: "sluice-system/ca"}, "",
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
			if options := parseFlags(t, tt.line, tt.wantErr); options.Credentials != tt.want {
				t.Errorf("got %+v, want %+v", options.Credentials, tt.want)
			}
		})
	}
}

func TestCredentialProviderFlags(t *testing.T) {
	for _, tt := range []struct {
		reason, line string
		want         credentialprovider.Options
		wantErr      string
	}{
		{"no plugin runs by default", "", credentialprovider.Options{}, ""},
		{
			"the kubelet's flags", "--image-credential-provider-config=/etc/providers.yaml --image-credential-provider-bin-dir=/opt/bin",
			credentialprovider.Options{Config: "/etc/providers.yaml", BinDir: "/opt/bin"}, "",
		},
		{
			"one alone", "--image-credential-provider-config=/etc/providers.yaml", credentialprovider.Options{},
			"--image-credential-provider-config and --image-credential-provider-bin-dir must be set both, or neither",
		},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			if options := parseFlags(t, tt.line, tt.wantErr); options.CredentialProvider != tt.want {
				t.Errorf("got %+v, want %+v", options.CredentialProvider, tt.want)
			}
		})
	}
}

func TestTheAgentRunsCredentialProvidersOnlyIfToldTo(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(dir, "providers.yaml")
	for path, text := range map[string]string{
		filepath.Join(dir, "cloud"): "#!/bin/sh\necho '" + `{"kind": "CredentialProviderResponse", "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
			"cacheKeyType": "Image", "auth": {"registry.example.com": {"username": "node", "password": "p"}}}` + "'\n",
		config: "kind: CredentialProviderConfig\napiVersion: kubelet.config.k8s.io/v1\nproviders: [{name: cloud, " +
			"apiVersion: credentialprovider.kubelet.k8s.io/v1, matchImages: [registry.example.com], defaultCacheDuration: 0s}]\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if agent := newAgent(t, Options{}); agent.NodeCredentials != nil {
		t.Errorf("it has %v", agent.NodeCredentials)
	}
	agent := newAgent(t, Options{CredentialProvider: credentialprovider.Options{Config: config, BinDir: dir}})
	found, err := agent.NodeCredentials.For(t.Context(), "registry.example.com/app")
	if err != nil || len(found) != 1 || found[0].Username != "node" {
		t.Errorf("%d credentials, err %v", len(found), err)
	}
}

// newAgent is the agent that main makes of the options. Its manager does not run.
func newAgent(t *testing.T, options Options) *nodeagent.Agent {
	t.Helper()
	global := metrics.Registry
	metrics.Registry = prometheus.NewRegistry()
	defer func() { metrics.Registry = global }()
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	mgr, err := ctrl.NewManager(&rest.Config{}, ctrl.Options{
		Scheme:         scheme,
		MapperProvider: func(*rest.Config, *http.Client) (meta.RESTMapper, error) { return meta.NewDefaultRESTMapper(nil), nil },
		Metrics:        metricsserver.Options{BindAddress: "0"},
		Controller:     controllerconfig.Controller{SkipNameValidation: ptr.To(true)},
	})
	if err != nil {
		t.Fatal(err)
	}
	agent, err := addAgent(mgr, runtimetest.NewFake(), options)
	if err != nil {
		t.Fatal(err)
	}
	return agent
}
