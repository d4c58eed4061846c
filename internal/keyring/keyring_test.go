// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package keyring

import (
	"encoding/base64"
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

// What the kubelet's keyring does in these cases was read from its tests and its code
// (k8s.io/kubernetes/pkg/credentialprovider, 1.36). The IPv6 address without a port is ours.
func TestAnEntryCoversWhatItCoversForTheKubelet(t *testing.T) {
	for _, tt := range []struct {
		reason, entry, domain, repository string
		want                              bool
	}{
		{"a host is its repositories", "ghcr.io", "ghcr.io", "org/app", true},
		{"a scheme says nothing", "https://ghcr.io", "ghcr.io", "org/app", true},
		{"nor does one without TLS", "http://ghcr.io", "ghcr.io", "org/app", true},
		{"another host is another host", "ghcr.io", "quay.io", "ghcr.io/app", false},
		{"a host is no suffix", "ghcr.io", "my.ghcr.io", "app", false},
		{"a host is no prefix", "ghcr.io", "ghcr.io.evil.com", "app", false},
		{"a dot is a dot", "ghcr.io", "ghcrxio", "app", false},
		{"a slash at the end says nothing", "ghcr.io/", "ghcr.io", "org/app", true},
		{"the API's first version is the host", "https://quay.io/v1/", "quay.io", "foo/bar", true},
		{"and so is the second", "quay.io/v2/", "quay.io", "foo", true},
		{"a path may follow the version", "quay.io/v2/org", "quay.io", "org/app", true},
		{"and is then asked for", "quay.io/v2/org", "quay.io", "other/app", false},
		{"a version without its slash is a path", "quay.io/v1", "quay.io", "foo", false},

		{"a path is itself", "bar.example.com/pong", "bar.example.com", "pong", true},
		{"and what lies under it", "bar.example.com/pong", "bar.example.com", "pong/pang", true},
		{"and what begins with it", "bar.example.com/pong", "bar.example.com", "pongz", true},
		{"another path is not", "bar.example.com/pong", "bar.example.com", "ping", false},
		{"nor is what lies over it", "bar.example.com/pong/pang", "bar.example.com", "pong", false},
		{"nor the same path elsewhere", "bar.example.com/pong", "example.com", "pong", false},
		{"a star in a path is no wildcard", "bar.example.com/*", "bar.example.com", "pong", false},
		{"a colon in a path is no port", "https://*.docker.io/path:1111", "prefix.docker.io", "path:1111/foo", true},
		{"and has to be there", "https://prefix.*.io/path:1111", "prefix.docker.io", "path/subpath:1111/foo", false},

		{"the same port", "registry:5000", "registry:5000", "app", true},
		{"another port", "registry:5000", "registry:5001", "app", false},
		{"a port missing in the entry", "registry.example.com", "registry.example.com:5000", "app", false},
		{"a port missing in the image", "registry.example.com:443", "registry.example.com", "app", false},
		{"a port and a path", "prefix.docker.io:1111/foo", "prefix.docker.io:1111", "foo/bar", true},

		{"a star for the first label", "*.kubernetes.io", "prefix.kubernetes.io", "app", true},
		{"for one between", "prefix.*.io", "prefix.kubernetes.io", "app", true},
		{"for the last", "prefix.kubernetes.*", "prefix.kubernetes.io", "app", true},
		{"for a part of a label", "*-good.kubernetes.io", "prefix-good.kubernetes.io", "app", true},
		{"for nothing", "*kubernetes.io", "kubernetes.io", "app", true},
		{"with a scheme", "https://*.docker.io", "prefix.docker.io", "foo/bar", true},
		{"with a version", "https://*.docker.io/v2/", "prefix.docker.io", "foo/bar", true},
		{"with a path", "*.kubernetes.io/blah", "prefix.kubernetes.io", "blah", true},
		{"with a path under it", "https://prefix.*.io/path", "prefix.docker.io", "path/subpath/foo", true},
		{"with a port", "*.docker.io:8888", "prefix.docker.io:8888", "path/foo", true},
		{"with a port and a path", "*.kubernetes.io:1111/blah", "prefix.kubernetes.io:1111", "blah", true},
		{"with another port", "*.kubernetes.io:1234/blah", "prefix.kubernetes.io:1111", "blah", false},
		{"with the port missing", "prefix.*.io/foo", "prefix.kubernetes.io:1111", "foo/bar", false},
		{"several", "*.*.*.kubernetes.io", "a.b.c.kubernetes.io", "app", true},
		{"a star is not no label", "*.kubernetes.io", "kubernetes.io", "app", false},
		{"nor two labels", "*.kubernetes.io", "a.b.kubernetes.io", "app", false},
		{"each star is a label", "*.*.kubernetes.io", "prefix.kubernetes.io", "app", false},
		{"a star does not reach over a dot", "*kubernetes.io", "a.kubernetes.io", "app", false},
		{"the rest has to fit", "k*.io", "quay.io", "app", false},
		{"to the end", "https://prefix.docker.c*", "prefix.docker.io", "app", false},
		{"from the beginning", "suffix.*.io", "prefix.docker.io", "app", false},
		{"in another domain", "https://*.docker.com", "prefix.docker.io", "app", false},

		{"an IPv6 address", "[::1]:5000", "[::1]:5000", "app", true},
		{"without a port", "[fd00::1]", "[fd00::1]", "app", true},
		{"what a user and password stand before", "https://me:secret@ghcr.io", "ghcr.io", "app", true},
	} {
		t.Run(tt.reason+"/"+tt.entry, func(t *testing.T) {
			l, ok := parseLocation(tt.entry)
			if !ok {
				t.Fatalf("%q is not taken for a location", tt.entry)
			}
			if got := l.covers(tt.domain, tt.repository); got != tt.want {
				t.Errorf("%q covers %s/%s: %t, want %t", tt.entry, tt.domain, tt.repository, got, tt.want)
			}
		})
	}
}

func TestAMatchImageCoversWhatItCoversForTheKubelet(t *testing.T) {
	for _, tt := range []struct {
		reason, pattern, image string
		want                   bool
	}{
		{"a host is its repositories", "ghcr.io", "ghcr.io/org/app", true},
		{"a star is a label", "*.dkr.ecr.*.amazonaws.com", "1234.dkr.ecr.eu-west-1.amazonaws.com/app", true},
		{"a port and a path", "registry.io:8080/path", "registry.io:8080/path/app", true},
		{"a slash at the end says nothing", "ghcr.io/", "ghcr.io/org/app", true},
		{"a scheme is not taken off", "https://ghcr.io", "ghcr.io/org/app", false},
		{"an API version is a path", "quay.io/v2/org", "quay.io/org/app", false},
		{"like any other", "quay.io/v2/org", "quay.io/v2/org/app", true},
		{"Docker Hub has one name", "index.docker.io", "nginx", false},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			l, err := ParseMatchImage(tt.pattern)
			if err != nil {
				t.Fatal(err)
			}
			if got := l.Covers(parse(t, tt.image)); got != tt.want {
				t.Errorf("%q covers %s: %t, want %t", tt.pattern, tt.image, got, tt.want)
			}
		})
	}
	if l, err := ParseMatchImage("a b"); err == nil {
		t.Errorf("%q is taken for %q", "a b", l.key())
	}
}

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

func TestAnEntryIsReadAsDockerWritesIt(t *testing.T) {
	password := credentialapi.Credential{Username: "foo", Password: "bar"}
	for _, tt := range []struct {
		reason, entry string
		want          credentialapi.Credential
	}{
		{"username and password", `{"username": "foo", "password": "bar", "email": "foo@example.com"}`, password},
		{"auth", `{"auth": "Zm9vOmJhcg==", "email": "foo@example.com"}`, password},
		{"auth without padding", `{"auth": "Zm9vOmJhcg"}`, password},
		{"auth over several lines", `{"auth": "Zm9vOm\nJhcg==\n"}`, password},
		{"auth goes before username and password", `{"username": "ping", "password": "pong", "auth": "Zm9vOmJhcg=="}`, password},
		{
			"a colon in the password",
			`{"auth": "` + base64.StdEncoding.EncodeToString([]byte("foo:a:b")) + `"}`,
			credentialapi.Credential{Username: "foo", Password: "a:b"},
		},
		{"a username alone", `{"auth": "` + base64.StdEncoding.EncodeToString([]byte("token:")) + `"}`, credentialapi.Credential{Username: "token"}},
		{"an identity token", `{"identitytoken": "refresh"}`, credentialapi.Credential{IdentityToken: "refresh"}},
		{
			"an identity token beside the empty user of Azure",
			`{"auth": "` + base64.StdEncoding.EncodeToString([]byte("00000000-0000-0000-0000-000000000000:")) + `", "identitytoken": "refresh"}`,
			credentialapi.Credential{IdentityToken: "refresh"},
		},
		{"fields that are not ours may be anything", `{"auth": "Zm9vOmJhcg==", "email": false}`, password},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			for _, secret := range []corev1.Secret{
				pullSecret(corev1.SecretTypeDockerConfigJson, corev1.DockerConfigJsonKey, `{"auths": {"ghcr.io": `+tt.entry+`}}`),
				pullSecret(corev1.SecretTypeDockercfg, corev1.DockerConfigKey, `{"ghcr.io": `+tt.entry+`}`),
			} {
				keyring, problems := FromSecrets([]corev1.Secret{secret})
				if len(problems) > 0 {
					t.Fatalf("problems: %v", problems)
				}
				got := keyring.Lookup(parse(t, "ghcr.io/org/app"))
				if !slices.Equal(got, []credentialapi.Credential{tt.want}) {
					t.Errorf("the credential of a %s differs: %d found", secret.Type, len(got))
				}
			}
		})
	}
}

func TestWhatIsMalformedIsReportedAndSpoilsNothing(t *testing.T) {
	const good = `"good.example.com": {"username": "good", "password": "p"}`
	const config, old = corev1.SecretTypeDockerConfigJson, corev1.SecretTypeDockercfg
	const inConfig, inOld = "Secret shop/pull, key .dockerconfigjson", "Secret shop/pull, key .dockercfg"
	besideGood := func(entry string) corev1.Secret {
		return pullSecret(config, corev1.DockerConfigJsonKey, `{"auths": {`+entry+`, `+good+`}}`)
	}
	for _, tt := range []struct {
		reason string
		bad    corev1.Secret
		want   string
	}{
		{"auth that is not base64", besideGood(`"ghcr.io": {"auth": "hunter2!"}`), inConfig + ", entry ghcr.io: " + noAuth},
		{"auth without a colon", besideGood(`"ghcr.io": {"auth": "aHVudGVyMg=="}`), inConfig + ", entry ghcr.io: " + noAuth},
		{"auth with a space behind it", besideGood(`"ghcr.io": {"auth": "Zm9vOmJhcg== "}`), inConfig + ", entry ghcr.io: " + noAuth},
		{"auth without a user", besideGood(`"ghcr.io": {"auth": "Omh1bnRlcjI="}`), inConfig + ", entry ghcr.io: " + noAuth},
		{
			reason: "an entry of the old form",
			bad:    pullSecret(old, corev1.DockerConfigKey, `{"ghcr.io:443": {"auth": "hunter2!"}, `+good+`}`),
			want:   inOld + ", entry ghcr.io:443: " + noAuth,
		},
		{"an entry that is a string", besideGood(`"*.ghcr.io/org": "hunter2"`), inConfig + ", entry *.ghcr.io: " + noObject},
		{"a number for a password", besideGood(`"ghcr.io": {"username": "hunter2", "password": 2}`), inConfig + ", entry ghcr.io: " + noObject},
		{
			reason: "a credential store",
			bad:    pullSecret(config, corev1.DockerConfigJsonKey, `{"auths": {"https://index.docker.io/v1/": {}, `+good+`}, "credsStore": "desktop"}`),
			want:   inConfig + ", entry index.docker.io: " + noCredential,
		},
		{"a password without a user", besideGood(`"ghcr.io": {"password": "hunter2"}`), inConfig + ", entry ghcr.io: " + noCredential},
		{"a registry token", besideGood(`"ghcr.io": {"registrytoken": "hunter2"}`), inConfig + ", entry ghcr.io: " + registryToken},
		{"a name that does not parse", besideGood(`"hun ter2": {"auth": "Zm9vOmJhcg=="}`), inConfig + ", entry 1" + notShown + ": " + noRegistry},
		{"an empty name", besideGood(`"": {"auth": "Zm9vOmJhcg=="}`), inConfig + ", entry 1" + notShown + ": " + noRegistry},
		{"a bracket in a name", besideGood(`"gc[r.io": {"auth": "Zm9vOmJhcg=="}`), inConfig + ", entry 1" + notShown + ": " + noRegistry},
		{"the password where the registry belongs", besideGood(`"hunter2": {"auth": "ghcr.io"}`), inConfig + ", entry 1" + notShown + ": " + noAuth},
		{"user and password where the registry belongs", besideGood(`"foo:12345": {"auth": "ghcr.io"}`), inConfig + ", entry 1" + notShown + ": " + noAuth},
		{
			reason: "a token where the registry belongs",
			bad:    besideGood(`"eyJhbGci.eyJzdWIi.hunter2": {"auth": "ghcr.io"}`),
			want:   inConfig + ", entry 1" + notShown + ": " + noAuth,
		},
		{
			reason: "a host without a dot, the second",
			bad:    pullSecret(config, corev1.DockerConfigJsonKey, `{"auths": {`+good+`, "a-registry:5000": {"auth": "pants"}}}`),
			want:   inConfig + ", entry 2" + notShown + ": " + noAuth,
		},
		{
			reason: "and in the old form",
			bad:    pullSecret(old, corev1.DockerConfigKey, `{`+good+`, "a-registry:5000": {}}`),
			want:   inOld + ", entry 2" + notShown + ": " + noCredential,
		},
		{"user and password before the registry", besideGood(`"https://foo:hunter2@ghcr.io": {"auth": "pants"}`), inConfig + ", entry ghcr.io: " + noAuth},

		{"no JSON", pullSecret(config, corev1.DockerConfigJsonKey, `hunter2`), inConfig + ": " + noJSON},
		{"JSON cut off", pullSecret(old, corev1.DockerConfigKey, `{"ghcr.io": {"password": "hunter2"`), inOld + ": " + noJSON},
		{
			reason: "the old form under the new type",
			bad:    pullSecret(config, corev1.DockerConfigJsonKey, `{"ghcr.io": {"auth": "Zm9vOmJhcg=="}}`),
			want:   inConfig + ": " + noEntries,
		},
		{"no entries at all", pullSecret(config, corev1.DockerConfigJsonKey, `{"auths": null}`), inConfig + ": " + noEntries},
		{"the other type's key", pullSecret(old, corev1.DockerConfigJsonKey, `{"auths": {"ghcr.io": {"auth": "Zm9vOmJhcg=="}}}`), inOld + ": " + noData},
		{"an empty key", pullSecret(config, corev1.DockerConfigJsonKey, ``), inConfig + ": " + noData},
		{
			reason: "another type",
			bad:    pullSecret(corev1.SecretTypeOpaque, corev1.DockerConfigJsonKey, `{"auths": {"ghcr.io": {"auth": "Zm9vOmJhcg=="}}}`),
			want:   "Secret shop/pull: " + wrongType,
		},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			keyring, problems := FromSecrets(append([]corev1.Secret{tt.bad}, secrets(`{"auths": {`+good+`}}`)...))
			if len(problems) != 1 || problems[0].String() != tt.want {
				t.Errorf("problems = %q, want %q", problems, tt.want)
			}
			for _, p := range problems {
				for _, word := range []string{"hunter2", "aHVudGVyMg", "Zm9vOmJhcg", "12345"} {
					if shown := fmt.Sprintf("%#v %v", p, p); strings.Contains(shown, word) {
						t.Errorf("the problem shows %q: %s", word, shown)
					}
				}
			}
			if got := keyring.Lookup(parse(t, "good.example.com/app")); len(got) != 1 || got[0].Username != "good" {
				t.Errorf("the good entry is lost: %d credentials", len(got))
			}
			if alone, _ := FromSecrets([]corev1.Secret{tt.bad}); strings.Contains(fmt.Sprintf("%s", tt.bad.Data), good) {
				if got := alone.Lookup(parse(t, "good.example.com/app")); len(got) != 1 {
					t.Errorf("the good entry beside it is lost: %d credentials", len(got))
				}
			}
			if got := keyring.Lookup(parse(t, "ghcr.io/org/app")); len(got) != 0 {
				t.Errorf("the bad entry gives %d credentials", len(got))
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
