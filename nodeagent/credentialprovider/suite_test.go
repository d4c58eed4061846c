// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package credentialprovider

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"go.uber.org/goleak"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeletconfig "k8s.io/kubelet/config/v1"
	"sigs.k8s.io/yaml"

	"github.com/sluice-dev/sluice/nodeagent"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var _ nodeagent.NodeCredentials = Providers{}

const (
	image = "registry.example.com/team/app:v1"
	v1    = "credentialprovider.kubelet.k8s.io/v1"
)

// node is a node with plugins, each of them testdata/plugin.sh.
type node struct {
	*testing.T
	options Options
	runs    string // the file that the plugins write a line to, each time that they run
}

func newNode(t *testing.T) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{T: t, options: Options{Config: filepath.Join(dir, "config.yaml"), BinDir: filepath.Join(dir, "bin")}, runs: filepath.Join(dir, "runs")}
	if err := os.Mkdir(n.options.BinDir, 0o700); err != nil {
		t.Fatal(err)
	}
	return n
}

// provider is an item of the configuration whose plugin does what the arguments say.
func (n *node) provider(name string, args ...string) kubeletconfig.CredentialProvider {
	return kubeletconfig.CredentialProvider{
		Name: name, APIVersion: v1, MatchImages: []string{"registry.example.com"}, DefaultCacheDuration: &metav1.Duration{},
		Args: args, Env: []kubeletconfig.ExecEnvVar{{Name: "RUNS", Value: n.runs}},
	}
}

// answering is a provider that gives an answer.
func (n *node) answering(name, answer string) kubeletconfig.CredentialProvider {
	return with(n.provider(name, "answer"), "ANSWER", answer)
}

func with(provider kubeletconfig.CredentialProvider, name, value string) kubeletconfig.CredentialProvider {
	provider.Env = append(provider.Env, kubeletconfig.ExecEnvVar{Name: name, Value: value})
	return provider
}

// install installs the plugins, and the configuration of them.
func (n *node) install(providers ...kubeletconfig.CredentialProvider) {
	n.Helper()
	script, err := filepath.Abs("testdata/plugin.sh")
	if err != nil {
		n.Fatal(err)
	}
	for _, provider := range providers {
		if err := os.Symlink(script, filepath.Join(n.options.BinDir, provider.Name)); err != nil {
			n.Fatal(err)
		}
	}
	text, err := yaml.Marshal(kubeletconfig.CredentialProviderConfig{
		TypeMeta: metav1.TypeMeta{APIVersion: "kubelet.config.k8s.io/v1", Kind: "CredentialProviderConfig"}, Providers: providers,
	})
	if err != nil {
		n.Fatal(err)
	}
	write(n.T, n.options.Config, string(text))
}

// start installs the providers, and reads the configuration as the agent does when it starts.
func (n *node) start(providers ...kubeletconfig.CredentialProvider) Providers {
	n.Helper()
	n.install(providers...)
	started, err := New(n.options, logr.Discard())
	if err != nil {
		n.Fatal(err)
	}
	return started
}

// ran are the lines that the plugins have written, each in one run.
func (n *node) ran() []string {
	n.Helper()
	text, err := os.ReadFile(n.runs)
	if err != nil && !os.IsNotExist(err) {
		n.Fatal(err)
	}
	return slices.Collect(strings.Lines(string(text)))
}

// users are the users that are tried for an image, in their order.
func (n *node) users(providers Providers, image string) []string {
	n.Helper()
	found, err := providers.For(n.Context(), image)
	if err != nil {
		n.Fatal(err)
	}
	var users []string
	for _, credential := range found {
		if credential.Password != "hunter2" {
			n.Errorf("%s has another password", credential.Username)
		}
		users = append(users, credential.Username)
	}
	return users
}

// response is an answer with one credential for each location, by user.
func response(keyType string, cacheDuration time.Duration, userAt ...string) string {
	var auth []string
	for _, pair := range userAt {
		user, location, _ := strings.Cut(pair, "@")
		auth = append(auth, fmt.Sprintf("%q: {%q: %q, %q: %q}", location, "username", user, "password", "hunter2"))
	}
	return fmt.Sprintf(`{"kind": "CredentialProviderResponse", "apiVersion": %q, "cacheKeyType": %q, "cacheDuration": %q, "auth": {%s}}`,
		v1, keyType, cacheDuration, strings.Join(auth, ", "))
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
