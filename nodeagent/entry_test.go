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
		{"another digest", func(s *v1alpha1.NodeImage) { s.Digest = "sha256:2" }, ""},
		{"another policy", func(s *v1alpha1.NodeImage) { s.RegistryPolicy = v1alpha1.RegistryPolicyDefault }, ""},
		{"other secrets are the same work", func(s *v1alpha1.NodeImage) {
			s.ImagePullSecrets = []v1alpha1.NamespacedSecretReference{{Namespace: "a", Name: "b"}}
		}, v1alpha1.ReasonNotOnMirror},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			e := &entry{spec: mirror, ref: ref}
			e.fail(ErrNotOnMirror, time.Now())
			spec := mirror
			tt.change(&spec)
			e.update(spec)
			if got := e.currentStatus(); got.Reason != tt.want || (got.Message == "") != (tt.want == "") {
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
	type spec = v1alpha1.NodeImage
	for _, tt := range []struct {
		reason  string
		spec    spec
		answer  answer
		want    digest.Digest
		resolve bool
	}{
		{"a seed without a digest asks", spec{RegistryPolicy: seed, Request: "a"}, answer{}, "", true},
		{"also when nobody gave a mark", spec{RegistryPolicy: seed}, answer{}, "", true},
		{"a peer never asks", spec{RegistryPolicy: peer, Request: "a"}, answer{}, "", false},
		{"a peer holds what it is told", spec{RegistryPolicy: peer, Digest: one.String()}, answer{}, one, false},
		{"a second seed too", spec{RegistryPolicy: seed, Digest: one.String()}, answer{}, one, false},
		{"the answer is what is wanted", spec{RegistryPolicy: seed, Request: "a"}, answer{one, "a", ""}, one, false},
		{"and stays so when the spec repeats it", spec{RegistryPolicy: seed, Request: "a", Digest: one.String()}, answer{one, "a", ""}, one, false},
		{"a new mark asks again", spec{RegistryPolicy: seed, Request: "a,b", Digest: one.String()}, answer{one, "a", ""}, one, true},
		{"an answer that differs from the spec's digest is newer", spec{RegistryPolicy: seed, Request: "a,b", Digest: one.String()}, answer{two, "a,b", one}, two, false},
		{"until the spec names another", spec{RegistryPolicy: seed, Request: "a,b", Digest: three.String()}, answer{two, "a,b", one}, three, false},
		{"fewer marks ask nothing", spec{RegistryPolicy: seed, Request: "b"}, answer{one, "a,b", ""}, one, false},
		{"a seed that becomes a peer keeps its answer", spec{RegistryPolicy: peer, Request: "a"}, answer{one, "a", ""}, one, false},
		{"without a request an answer holds as long as the digest is open", spec{RegistryPolicy: seed}, answer{one, "", ""}, one, false},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			ref, err := imageref.Parse("registry.test/app:v1")
			if err != nil {
				t.Fatal(err)
			}
			e := &entry{spec: tt.spec, ref: ref, answer: tt.answer}
			if want, resolve := e.wanted(); want != tt.want || resolve != tt.resolve {
				t.Errorf("wanted() = %q, %v, want %q, %v", want, resolve, tt.want, tt.resolve)
			}
		})
	}
	t.Run("what it was told before is no answer where it keeps another digest", func(t *testing.T) {
		ref, err := imageref.Parse("registry.test/app:v1")
		if err != nil {
			t.Fatal(err)
		}
		e := &entry{spec: spec{RegistryPolicy: seed, Request: "a,b", Digest: one.String()}, ref: ref, answer: answer{two, "a", one}}
		if got := e.currentStatus(); got.Digest != one.String() || got.Request != "" {
			t.Errorf("it reports %s as the answer to %q", got.Digest, got.Request)
		}
	})
	t.Run("a digest in the name is its own answer", func(t *testing.T) {
		d := digest.FromString("content")
		ref, err := imageref.Parse("registry.test/app@" + d.String())
		if err != nil {
			t.Fatal(err)
		}
		e := &entry{spec: spec{RegistryPolicy: seed, Request: "a"}, ref: ref}
		if want, resolve := e.wanted(); want != d || resolve {
			t.Errorf("wanted() = %q, %v", want, resolve)
		}
		if got := e.currentStatus().Request; got != "a" {
			t.Errorf("request %q is not answered", got)
		}
	})
}
