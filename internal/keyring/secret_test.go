// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package keyring

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-dev/sluice/internal/credentialapi"
)

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
