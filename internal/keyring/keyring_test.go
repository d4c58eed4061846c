// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package keyring

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/internal/credentialapi"
	"github.com/sluice-dev/sluice/internal/imageref"
)

func TestAnswersOfProvidersAreTriedInTheKubeletsOrder(t *testing.T) {
	user := func(name string) credentialapi.Credential {
		return credentialapi.Credential{Username: name, Password: "p"}
	}
	for _, tt := range []struct {
		reason  string
		answers []map[string]credentialapi.Credential
		image   string
		want    []string
	}{
		{"no answer", nil, "ghcr.io/org/app", nil},
		{
			"the more specific entry first, whoever has it",
			[]map[string]credentialapi.Credential{{"*.example.com": user("any"), "eu.example.com": user("eu")}, {"eu.example.com/org": user("path")}},
			"eu.example.com/org/app", []string{"path", "eu", "any"},
		},
		{
			"for the same location in the order of the providers",
			[]map[string]credentialapi.Credential{{"https://ghcr.io/v2/": user("z")}, {"ghcr.io": user("a")}},
			"ghcr.io/org/app", []string{"z", "a"},
		},
		{
			"for the same location in one answer by name",
			[]map[string]credentialapi.Credential{{"https://ghcr.io": user("b"), "ghcr.io": user("a")}},
			"ghcr.io/org/app", []string{"a", "b"},
		},
		{
			"none for another image, of a malformed name, or without a user",
			[]map[string]credentialapi.Credential{{"quay.io": user("other"), "hun ter2": user("malformed"), "ghcr.io/org": {Password: "p"}}},
			"ghcr.io/org/app", nil,
		},
		{"Docker Hub's old name", []map[string]credentialapi.Credential{{"index.docker.io": user("hub")}}, "nginx", []string{"hub"}},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			var got []string
			for _, c := range FromAnswers(tt.answers).Lookup(parse(t, tt.image)) {
				got = append(got, c.Username)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("Lookup(%q) tries %q, want %q", tt.image, got, tt.want)
			}
		})
	}
}

func TestLookupTriesInTheKubeletsOrder(t *testing.T) {
	hub := `{"auths": {"https://index.docker.io/v1/": {"username": "hub", "password": "p"}}}`
	for _, tt := range []struct {
		reason  string
		secrets []corev1.Secret
		image   string
		want    []string // usernames
	}{
		{"no secret", nil, "ghcr.io/org/app", nil},
		{"no entry for the host", secrets(`{"auths": {"quay.io": {"username": "q", "password": "p"}}}`), "ghcr.io/org/app", nil},
		{
			"the longest path first, then the host",
			secrets(`{"auths": {"bar.example.com": {"username": "ada", "password": "p"}, "bar.example.com/pong": {"username": "grace", "password": "p"}}}`),
			"bar.example.com/pong/pang", []string{"grace", "ada"},
		},
		{
			"a longer path that does not fit is left out",
			secrets(`{"auths": {"bar.example.com": {"username": "ada", "password": "p"}, "bar.example.com/pong": {"username": "grace", "password": "p"}}}`),
			"bar.example.com/ping", []string{"ada"},
		},
		{
			"a host before the wildcard that covers it",
			secrets(`{"auths": {"*.example.com": {"username": "any", "password": "p"}, "eu.example.com": {"username": "eu", "password": "p"}}}`),
			"eu.example.com/app", []string{"eu", "any"},
		},
		{
			"the more specific entry first, even of a later secret",
			secrets(`{"auths": {"ghcr.io": {"username": "first", "password": "p"}}}`, `{"auths": {"ghcr.io/org": {"username": "second", "password": "p"}}}`),
			"ghcr.io/org/app", []string{"second", "first"},
		},
		{
			"for the same location in the order of the secrets",
			secrets(`{"auths": {"ghcr.io": {"username": "z", "password": "p"}}}`, `{"auths": {"https://ghcr.io/v2/": {"username": "a", "password": "p"}}}`),
			"ghcr.io/org/app", []string{"z", "a"},
		},
		{
			"for the same location in one secret by name",
			secrets(`{"auths": {"https://ghcr.io": {"username": "b", "password": "p"}, "ghcr.io": {"username": "a", "password": "p"}}}`),
			"ghcr.io/org/app", []string{"a", "b"},
		},
		{
			"the same credential once",
			secrets(`{"auths": {"ghcr.io": {"username": "a", "password": "p"}}}`, `{"auths": {"ghcr.io": {"auth": "YTpw"}}}`),
			"ghcr.io/org/app", []string{"a"},
		},

		{"Docker Hub's old name, library image", secrets(hub), "jenkins", []string{"hub"}},
		{"Docker Hub's old name, unqualified", secrets(hub), "google/docker-registry", []string{"hub"}},
		{"Docker Hub's old name, qualified", secrets(hub), "docker.io/google/docker-registry", []string{"hub"}},
		{"Docker Hub's old name on both sides", secrets(hub), "index.docker.io/google/docker-registry", []string{"hub"}},
		{
			reason:  "Docker Hub's old name without a scheme",
			secrets: secrets(`{"auths": {"index.docker.io/v1/": {"username": "hub", "password": "p"}}}`),
			image:   "nginx",
			want:    []string{"hub"},
		},
		{"Docker Hub's credentials are for no other host", secrets(hub), "world.mesos.org/foo/bar", nil},
		{"nor for one that ends like it", secrets(hub), "myhostdocker.io/foo/bar", nil},
		{"nor for a host without a dot", secrets(hub), "localhost/foo/bar", nil},
		{"nor for a host with a port", secrets(hub), "registry:5000/foo/bar", nil},
		{
			"docker.io itself goes before the old name, and alone",
			secrets(hub, `{"auths": {"docker.io": {"username": "new", "password": "p"}}}`),
			"nginx", []string{"new"},
		},
		{"a path on Docker Hub", secrets(`{"auths": {"docker.io/library": {"username": "lib", "password": "p"}}}`), "nginx", []string{"lib"}},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			keyring, problems := FromSecrets(tt.secrets)
			if len(problems) > 0 {
				t.Fatalf("problems: %v", problems)
			}
			var got []string
			for _, c := range keyring.Lookup(parse(t, tt.image)) {
				got = append(got, c.Username)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("Lookup(%q) tries %q, want %q", tt.image, got, tt.want)
			}
		})
	}
}

// FuzzLookup looks for a panic, for credentials that are given for another host than
// their entry names, and for a problem that shows a credential.
func FuzzLookup(f *testing.F) {
	for _, name := range []string{
		"ghcr.io", "https://index.docker.io/v1/", "*.example.com:5000/org", "gc[qr].io", "[::1]:5000", "http://u:p@h.io/v2/x",
		"", "/", "//", "https://", "a b", "%41.io", "ghcr.io%2f", "ghcr.io\\@evil.com", "ghcr.io?x", "ghcr.io#x", "*", "*.*", "[", "\x00",
	} {
		for _, image := range []string{"nginx", "ghcr.io/org/app:v1", "eu.example.com:5000/org/app", "[::1]:5000/app"} {
			f.Add(name, `{"auth": "Zm9vOmJhcg=="}`, image)
		}
	}
	f.Add("ghcr.io", `{"identitytoken": "marker-of-the-secret"}`, "ghcr.io/a")
	f.Add("marker-of-the-secret", `{"auth": "marker-of-the-secret"}`, "ghcr.io/a")
	f.Fuzz(func(t *testing.T, name, body, image string) {
		ref, err := imageref.Parse(image)
		if err != nil {
			return
		}
		quoted, _ := json.Marshal(name)
		keyring, problems := FromSecrets(append(
			secrets(fmt.Sprintf(`{"auths": {%s: %s}}`, quoted, body)),
			pullSecret(corev1.SecretTypeDockercfg, corev1.DockerConfigKey, body),
			pullSecret(corev1.SecretTypeDockercfg, corev1.DockerConfigKey, fmt.Sprintf(`{%s: %s}`, quoted, body)),
		))
		for _, p := range problems {
			if strings.Contains(fmt.Sprintf("%#v %v", p, p), "marker-of-the-secret") {
				t.Errorf("a problem shows the secret: %#v", p)
			}
		}
		for _, c := range keyring.credentials {
			if (c.credential.Username == "") == (c.credential.IdentityToken == "") {
				t.Errorf("entry %q has not exactly one of username and identity token", name)
			}
		}
		only, _ := FromSecrets(secrets(fmt.Sprintf(`{"auths": {%s: {"auth": "Zm9vOmJhcg=="}}}`, quoted)))
		if found := only.Lookup(ref); len(found) > 0 && !names(name, ref.Domain()) {
			t.Errorf("entry %q gives credentials for %q", name, ref.Domain())
		}
	})
}

// names is a second opinion, made without package url, on whether an entry's name
// means a host.
func names(entry, domain string) bool {
	entry = strings.TrimPrefix(strings.TrimPrefix(entry, "https://"), "http://")
	if end := strings.IndexAny(entry, "/?#"); end >= 0 {
		entry = entry[:end]
	}
	entry = entry[strings.LastIndex(entry, "@")+1:]
	if entry == domain || entry == "index.docker.io" && domain == "docker.io" {
		return true
	}
	matched, err := path.Match(entry, domain)
	return err == nil && matched && strings.Count(entry, ".") == strings.Count(domain, ".") && strings.Count(entry, ":") == strings.Count(domain, ":")
}

func pullSecret(kind corev1.SecretType, key, content string) corev1.Secret {
	return corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "pull"},
		Type:       kind,
		Data:       map[string][]byte{key: []byte(content)},
	}
}

// secrets are pull secrets of the usual type.
func secrets(contents ...string) []corev1.Secret {
	var made []corev1.Secret
	for _, content := range contents {
		made = append(made, pullSecret(corev1.SecretTypeDockerConfigJson, corev1.DockerConfigJsonKey, content))
	}
	return made
}

func parse(t *testing.T, image string) imageref.Reference {
	t.Helper()
	ref, err := imageref.Parse(image)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}
