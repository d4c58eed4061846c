// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package credentialprovider

import (
	"slices"
	"strings"
	"testing"

	"github.com/go-logr/logr/funcr"
	kubeletconfig "k8s.io/kubelet/config/v1"
)

func TestAPluginIsRunAsTheKubeletRunsIt(t *testing.T) {
	t.Setenv("INHERITED", "from-the-agent")
	t.Setenv("OWN", "from-the-agent")
	for _, version := range pluginVersions {
		n := newNode(t)
		provider := n.provider("cloud", "answer", "second-argument")
		provider.APIVersion, provider.MatchImages = version, []string{"docker.io"}
		provider = with(provider, "ANSWER", strings.Replace(response("Image", 0, "robot@docker.io"), v1, version, 1))
		providers := n.start(with(provider, "OWN", "from-the-configuration"))

		if users := n.users(providers, "nginx:1.27"); !slices.Equal(users, []string{"robot"}) {
			t.Errorf("%s: users %q", version, users)
		}
		want := `second-argument from-the-agent from-the-configuration {"kind":"CredentialProviderRequest","apiVersion":"` + version + `","image":"docker.io/library/nginx"}` + "\n"
		if ran := n.ran(); !slices.Equal(ran, []string{want}) {
			t.Errorf("ran with %q, want %q", ran, want)
		}
	}
}

func TestOnlyTheProvidersOfAnImageAreAsked(t *testing.T) {
	for _, tt := range []struct {
		reason, matchImage, image string
		want                      bool
	}{
		{"a host", "registry.example.com", "registry.example.com/team/app", true},
		{"another host", "registry.example.com", "quay.io/team/app", false},
		{"a star for a label", "*.dkr.ecr.*.amazonaws.com", "1234.dkr.ecr.eu-west-1.amazonaws.com/app", true},
		{"and not for two", "*.azurecr.io", "a.b.azurecr.io/app", false},
		{"a port", "registry.example.com:5000/team", "registry.example.com:5000/team/app", true},
		{"another port", "registry.example.com:5000", "registry.example.com/team/app", false},
		{"a path", "registry.example.com/team", "registry.example.com/team/app", true},
		{"another path", "registry.example.com/team", "registry.example.com/other/app", false},
		{"what looks like a version of the API is a path", "registry.example.com/v2/team", "registry.example.com/team/app", false},
		{"a scheme is not taken off", "https://registry.example.com", "registry.example.com/team/app", false},
		{"Docker Hub by its name", "docker.io", "nginx", true},
		{"and not by its old one", "index.docker.io", "nginx", false},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			n := newNode(t)
			provider := n.answering("cloud", response("Image", 0, "robot@"+strings.Split(tt.image, "/")[0], "robot@docker.io"))
			provider.MatchImages = []string{"nowhere.example.com", tt.matchImage}
			n.users(n.start(provider), tt.image)
			if asked := len(n.ran()) == 1; asked != tt.want {
				t.Errorf("%s is asked about %s: %t", tt.matchImage, tt.image, asked)
			}
		})
	}
}

func TestTheCredentialsOfAllProvidersAreTriedInTheKubeletsOrder(t *testing.T) {
	n := newNode(t)
	providers := n.start(
		n.answering("first", response("Image", 0, "wildcard@*.example.com", "other@quay.io", "first@registry.example.com")),
		n.answering("second", response("Image", 0, "second@registry.example.com", "path@registry.example.com/team", "@registry.example.com/team/app")),
		n.answering("third", `{"kind": "CredentialProviderResponse", "apiVersion": "`+v1+`", "cacheKeyType": "Global", "auth": null}`),
	)
	if users, want := n.users(providers, image), []string{"path", "first", "second", "wildcard"}; !slices.Equal(users, want) {
		t.Errorf("users %q, want %q", users, want)
	}
}

func TestAProviderThatNeedsATokenIsLeftOut(t *testing.T) {
	n := newNode(t)
	left := n.answering("left", response("Image", 0, "left@registry.example.com"))
	left.TokenAttributes = &kubeletconfig.ServiceAccountTokenAttributes{ServiceAccountTokenAudience: "cloud"}
	n.install(left, n.answering("taken", response("Image", 0, "taken@registry.example.com")))
	var logged []string
	providers, err := New(n.options, funcr.New(func(_, args string) { logged = append(logged, args) }, funcr.Options{}))
	if err != nil {
		t.Fatal(err)
	}
	if len(logged) != 1 || !strings.Contains(logged[0], `"provider"="left"`) {
		t.Errorf("logged %q at the start", logged)
	}

	found, err := providers.For(t.Context(), image)
	if len(found) != 1 || found[0].Username != "taken" {
		t.Errorf("%d credentials, want those of the other provider", len(found))
	}
	want := `credential provider "left": left out, because it needs a token of the Pod's service account`
	if err == nil || err.Error() != want {
		t.Errorf("err = %v, want %s", err, want)
	}
	if found, err := providers.For(t.Context(), "quay.io/team/app"); len(found) > 0 || err != nil {
		t.Errorf("an image of neither provider: %d credentials, err %v", len(found), err)
	}
}
