// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/imageref"
)

func TestNewWorkBeginsWithACleanRecord(t *testing.T) {
	ref, err := imageref.Parse("registry.test/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	mirror := v1alpha1.NodeImage{Name: "registry.test/app:v1", Digest: "sha256:1", RegistryPolicy: v1alpha1.RegistryPolicyMirror}
	for _, tt := range []struct {
		reason string
		change func(*v1alpha1.NodeImage)
		want   string
	}{
		{"another digest", func(e *v1alpha1.NodeImage) { e.Digest = "sha256:2" }, ""},
		{"another policy", func(e *v1alpha1.NodeImage) { e.RegistryPolicy = v1alpha1.RegistryPolicyDefault }, ""},
		{"other secrets are the same work", func(e *v1alpha1.NodeImage) {
			e.ImagePullSecrets = []v1alpha1.NamespacedSecretReference{{Namespace: "a", Name: "b"}}
		}, v1alpha1.ReasonNotOnMirror},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			i := &image{entry: mirror, ref: ref}
			i.fail(ErrNotOnMirror, time.Now())
			entry := mirror
			tt.change(&entry)
			i.set(entry)
			if got := i.report(); got.Reason != tt.want || (got.Message == "") != (tt.want == "") {
				t.Errorf("reason %q, message %q, want %q", got.Reason, got.Message, tt.want)
			}
		})
	}
}

func TestWanted(t *testing.T) {
	const (
		one, two, three = digest.Digest("sha256:1"), digest.Digest("sha256:2"), digest.Digest("sha256:3")
		seed, peer      = v1alpha1.RegistryPolicyDefault, v1alpha1.RegistryPolicyMirror
	)
	type entry = v1alpha1.NodeImage
	for _, tt := range []struct {
		reason string
		entry  entry
		answer answer
		want   digest.Digest
		ask    bool
	}{
		{"a seed without a digest asks", entry{RegistryPolicy: seed, Request: "a"}, answer{}, "", true},
		{"also when nobody gave a mark", entry{RegistryPolicy: seed}, answer{}, "", true},
		{"a peer never asks", entry{RegistryPolicy: peer, Request: "a"}, answer{}, "", false},
		{"a peer holds what it is told", entry{RegistryPolicy: peer, Digest: one.String()}, answer{}, one, false},
		{"a second seed too", entry{RegistryPolicy: seed, Digest: one.String()}, answer{}, one, false},
		{"the answer is what is wanted", entry{RegistryPolicy: seed, Request: "a"}, answer{one, "a", ""}, one, false},
		{"and stays so when the spec repeats it", entry{RegistryPolicy: seed, Request: "a", Digest: one.String()}, answer{one, "a", ""}, one, false},
		{"a new mark asks again", entry{RegistryPolicy: seed, Request: "a,b", Digest: one.String()}, answer{one, "a", ""}, one, true},
		{"an answer that differs from the spec's digest is newer", entry{RegistryPolicy: seed, Request: "a,b", Digest: one.String()}, answer{two, "a,b", one}, two, false},
		{"until the spec names another", entry{RegistryPolicy: seed, Request: "a,b", Digest: three.String()}, answer{two, "a,b", one}, three, false},
		{"fewer marks ask nothing", entry{RegistryPolicy: seed, Request: "b"}, answer{one, "a,b", ""}, one, false},
		{"a seed that becomes a peer keeps its answer", entry{RegistryPolicy: peer, Request: "a"}, answer{one, "a", ""}, one, false},
		{"without a request an answer holds as long as the digest is open", entry{RegistryPolicy: seed}, answer{one, "", ""}, one, false},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			ref, err := imageref.Parse("registry.test/app:v1")
			if err != nil {
				t.Fatal(err)
			}
			i := &image{entry: tt.entry, ref: ref, answer: tt.answer}
			if want, ask := i.wanted(); want != tt.want || ask != tt.ask {
				t.Errorf("wanted() = %q, %v, want %q, %v", want, ask, tt.want, tt.ask)
			}
		})
	}
	t.Run("what it was told before is no answer where it keeps another digest", func(t *testing.T) {
		ref, err := imageref.Parse("registry.test/app:v1")
		if err != nil {
			t.Fatal(err)
		}
		i := &image{entry: entry{RegistryPolicy: seed, Request: "a,b", Digest: one.String()}, ref: ref, answer: answer{two, "a", one}}
		if got := i.report(); got.Digest != one.String() || got.Request != "" {
			t.Errorf("it reports %s as the answer to %q", got.Digest, got.Request)
		}
	})
	t.Run("a digest in the name is its own answer", func(t *testing.T) {
		d := digest.FromString("content")
		ref, err := imageref.Parse("registry.test/app@" + d.String())
		if err != nil {
			t.Fatal(err)
		}
		i := &image{entry: entry{RegistryPolicy: seed, Request: "a"}, ref: ref}
		if want, ask := i.wanted(); want != d || ask {
			t.Errorf("wanted() = %q, %v", want, ask)
		}
		if got := i.report().Request; got != "a" {
			t.Errorf("request %q is not answered", got)
		}
	})
}
