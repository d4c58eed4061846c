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

func TestAnotherPullBeginsWithoutTheOldReason(t *testing.T) {
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
		{"other secrets are for the same pull", func(s *v1alpha1.NodeImage) {
			s.ImagePullSecrets = []v1alpha1.PullSecretSource{{Namespace: "a", Name: "b"}}
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
		{"a seed without a digest resolves the tag", spec{RegistryPolicy: seed, Request: "a"}, answer{}, "", true},
		{"a seed without a digest and without a request ID resolves too", spec{RegistryPolicy: seed}, answer{}, "", true},
		{"a peer never resolves the tag", spec{RegistryPolicy: peer, Request: "a"}, answer{}, "", false},
		{"a peer wants the spec's digest", spec{RegistryPolicy: peer, Digest: one.String()}, answer{}, one, false},
		{"a second seed wants the spec's digest", spec{RegistryPolicy: seed, Digest: one.String()}, answer{}, one, false},
		{"an answered seed wants the answer", spec{RegistryPolicy: seed, Request: "a"}, answer{one, "a", ""}, one, false},
		{"it still does when the spec has the same digest", spec{RegistryPolicy: seed, Request: "a", Digest: one.String()}, answer{one, "a", ""}, one, false},
		{"a new request ID makes it resolve again", spec{RegistryPolicy: seed, Request: "a,b", Digest: one.String()}, answer{one, "a", ""}, one, true},
		{
			reason: "an answer that differs from the spec's digest is newer",
			spec:   spec{RegistryPolicy: seed, Request: "a,b", Digest: one.String()}, answer: answer{two, "a,b", one}, want: two,
		},
		{"until the spec has another digest", spec{RegistryPolicy: seed, Request: "a,b", Digest: three.String()}, answer{two, "a,b", one}, three, false},
		{"fewer request IDs need no new answer", spec{RegistryPolicy: seed, Request: "b"}, answer{one, "a,b", ""}, one, false},
		{"a seed that becomes a peer keeps its answer", spec{RegistryPolicy: peer, Request: "a"}, answer{one, "a", ""}, one, false},
		{"without a request ID the answer is valid as long as the spec has no digest", spec{RegistryPolicy: seed}, answer{one, "", ""}, one, false},
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
	t.Run("an old answer is not reported while another digest is kept", func(t *testing.T) {
		ref, err := imageref.Parse("registry.test/app:v1")
		if err != nil {
			t.Fatal(err)
		}
		e := &entry{spec: spec{RegistryPolicy: seed, Request: "a,b", Digest: one.String()}, ref: ref, answer: answer{two, "a", one}}
		if got := e.currentStatus(); got.Digest != one.String() || got.Request != "" {
			t.Errorf("it reports %s as the answer to request %q", got.Digest, got.Request)
		}
	})
	t.Run("a digest in the name answers every request ID", func(t *testing.T) {
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

func TestState(t *testing.T) {
	for _, tt := range []struct {
		present, failed, running bool
		want                     v1alpha1.ImageState
	}{
		{present: true, failed: false, running: false, want: v1alpha1.ImagePresent},
		{present: true, failed: true, running: true, want: v1alpha1.ImagePresent},
		{present: false, failed: true, running: false, want: v1alpha1.ImageFailed},
		{present: false, failed: true, running: true, want: v1alpha1.ImageFailed},
		{present: false, failed: false, running: false, want: v1alpha1.ImagePending},
		{present: false, failed: false, running: true, want: v1alpha1.ImagePulling},
	} {
		e := &entry{present: tt.present, failed: tt.failed}
		if tt.running {
			e.attempt = &attempt{}
		}
		if got := e.state(); got != tt.want {
			t.Errorf("state of %+v is %s", tt, got)
		}
	}
}
