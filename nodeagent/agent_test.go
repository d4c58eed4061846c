// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/test/images"
)

func TestPullsAreBoundedAndNoImageIsQueuedTwice(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		a.runtime.PerBlob = 5 * time.Second
		var entries []v1alpha1.NodeImage
		for i := range 5 {
			tag := fmt.Sprintf("v%d", i)
			entries = append(entries, peerOf(tag, a.push(tag, a.runtime.Mirror)))
		}
		a.apply(entries...)
		a.apply(entries...)
		a.advance(3 * time.Minute)
		if n := a.runtime.MostPulling(); n != 2 {
			t.Errorf("%d pulls at a time, want 2", n)
		}
		if n := len(a.runtime.Pulls()); n != 5 {
			t.Errorf("%d pulls, want 5", n)
		}
		if c := a.ready(); c.Status != metav1.ConditionTrue || c.Message != "5 of 5 images are present" {
			t.Errorf("condition %+v", c)
		}
	})
}

func TestAChangedDigestStopsTheRunningPull(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		a.runtime.PerBlob = time.Minute - time.Second
		a.apply(peerOf("v1", a.push("old", a.runtime.Mirror)))
		a.advance(moment)
		a.runtime.PerBlob = 0
		d := a.push("new", a.runtime.Mirror)
		a.apply(peerOf("v1", d))
		a.advance(moment)
		s := a.status(name("v1"))
		if s.State != v1alpha1.ImagePresent || s.Digest != d.String() || s.Attempts != 1 {
			t.Errorf("status %+v, want %s", s, d)
		}
	})
}

func TestAChangedPolicyStopsTheRunningPull(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		d := a.push("v1", a.runtime.Upstream) // not on the mirror
		a.apply(peerOf("v1", d))
		a.advance(moment)
		entry := seedOf("v1", "")
		entry.Digest = d.String()
		a.apply(entry)
		a.advance(moment)
		if s := a.status(name("v1")); s.State != v1alpha1.ImagePresent || s.Source != v1alpha1.SourceUpstream {
			t.Errorf("status %+v", s)
		}
	})
}

func TestTransientErrorsAreTriedAgainUpToTheLimitAndThenOnceAMinute(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		d := a.push("v1", a.runtime.Upstream)
		a.runtime.Upstream.SetDown(true)
		a.apply(seedOf("v1", "m1"))
		a.advance(8 * time.Second) // at most 1, 2 and 4 s between the tries
		a.state(name("v1"), v1alpha1.ImageFailed, v1alpha1.ReasonRegistryUnavailable)
		if s := a.status(name("v1")); s.Attempts != 4 {
			t.Errorf("%d attempts, want the first and three more", s.Attempts)
		}
		if c := a.ready(); c.Reason != v1alpha1.ReasonImagesFailed {
			t.Errorf("condition %+v", c)
		}
		writes := len(a.written.all())
		a.advance(10 * time.Minute)
		if n := len(a.runtime.Pulls()); n < 14 || n > 30 {
			t.Errorf("%d pulls, want about one a minute", n)
		}
		tries := len(a.runtime.Pulls()) - 4
		if n := len(a.written.all()) - writes; n != tries && n != tries-1 { // the last may not be written yet
			t.Errorf("%d writes of %d further tries, want one of each", n, tries)
		}
		a.runtime.Upstream.SetDown(false)
		a.advance(time.Minute + time.Second)
		a.state(name("v1"), v1alpha1.ImagePresent, "")
		if s := a.status(name("v1")); s.Digest != d.String() || s.Message != "" {
			t.Errorf("status %+v", s)
		}
	})
}

// unavailableCredentials fails as if the controller did not answer.
type unavailableCredentials struct{}

func (unavailableCredentials) For(context.Context, string) ([]nodeagent.Credential, error) {
	return nil, nodeagent.ErrCredentialsUnavailable
}

func TestOnlyPullsThatNeedCredentialsWaitForTheController(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		a.push("v1", a.runtime.Upstream)
		a.push("v2", a.runtime.Upstream)
		a.stop()
		a.credentials = unavailableCredentials{}
		a.start()
		private := seedOf("v2", "m1")
		private.ImagePullSecrets = []v1alpha1.PullSecretSource{{Namespace: "team", Name: "key"}}
		a.apply(seedOf("v1", "m1"), private)
		a.advance(moment)
		a.state(name("v1"), v1alpha1.ImagePresent, "")
		a.state(name("v2"), v1alpha1.ImagePending, v1alpha1.ReasonCredentialsUnavailable)
	})
}

func TestAPullGoesOnWithoutTheCredentialsOfAServiceAccount(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		a.push("v1", a.runtime.Upstream)
		a.stop()
		a.credentials = unavailableCredentials{}
		a.start()
		public := seedOf("v1", "m1")
		public.ImagePullSecrets = []v1alpha1.PullSecretSource{{Kind: v1alpha1.PullSecretSourceServiceAccount, Namespace: "team", Name: "default"}}
		a.apply(public)
		a.advance(moment)
		a.state(name("v1"), v1alpha1.ImagePresent, "")
	})
}

func TestAPrivateImageWaitsForTheCredentialsOfAServiceAccount(t *testing.T) {
	for _, refusal := range []error{nodeagent.ErrUnauthorized, nodeagent.ErrImageNotFound} {
		withAgent(t, func(a *agentTest) {
			a.stop()
			a.credentials = unavailableCredentials{}
			a.runtime.Fail = func(nodeagent.PullRequest) error { return refusal }
			a.start()
			private := seedOf("v1", "m1")
			private.ImagePullSecrets = []v1alpha1.PullSecretSource{{Kind: v1alpha1.PullSecretSourceServiceAccount, Namespace: "team", Name: "default"}}
			a.apply(private)
			a.advance(moment)
			a.state(name("v1"), v1alpha1.ImagePending, v1alpha1.ReasonCredentialsUnavailable)
		})
	}
}

func TestALocalEntryIsWhatTheNodeHas(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		first := a.push("v1", a.runtime.Mirror)
		local := v1alpha1.NodeImage{Name: name("v1"), RegistryPolicy: v1alpha1.RegistryPolicyLocal}
		a.apply(local)
		a.advance(blink)
		a.state(name("v1"), v1alpha1.ImageFailed, v1alpha1.ReasonImageNotOnNode)

		// It is imported.
		a.runtime.Import(name("v1"), first)
		a.advance(blink)
		a.state(name("v1"), v1alpha1.ImagePresent, "")
		if s := a.status(name("v1")); s.Digest != first.String() || s.Source != v1alpha1.SourceLocal {
			t.Errorf("status %+v", s)
		}

		// Another one is imported under the name. What the first was is of no interest then.
		second := a.push("v2", a.runtime.Mirror)
		a.runtime.Import(name("v1"), second)
		a.advance(moment)
		a.state(name("v1"), v1alpha1.ImagePresent, "")
		if s := a.status(name("v1")); s.Digest != second.String() {
			t.Errorf("status %+v, want %s", s, second)
		}

		// It is deleted, and the first one is imported again.
		a.runtime.Delete(name("v1"))
		a.advance(time.Minute)
		a.state(name("v1"), v1alpha1.ImageFailed, v1alpha1.ReasonImageNotOnNode)
		a.runtime.Import(name("v1"), first)
		before := len(a.runtime.Pulls())
		a.advance(moment)
		a.state(name("v1"), v1alpha1.ImagePresent, "")

		// The agent is away while the name moves. What it has said before is not what it looks for.
		a.stop()
		a.runtime.Import(name("v1"), second)
		a.start()
		a.apply(local)
		a.advance(time.Minute)
		a.state(name("v1"), v1alpha1.ImagePresent, "")
		if s := a.status(name("v1")); s.Digest != second.String() {
			t.Errorf("status %+v, want %s", s, second)
		}
		if n := len(a.runtime.Pulls()) - before; n > 4 {
			t.Errorf("it looked %d times", n)
		}

		// The nodes have agreed: the digest is in the spec, and stays what the name means.
		local.RegistryPolicy, local.Digest = v1alpha1.RegistryPolicyMirror, second.String()
		a.apply(local)
		a.advance(moment)
		a.state(name("v1"), v1alpha1.ImagePresent, "")
	})
}

// fixedCredentials returns one credential.
type fixedCredentials nodeagent.Credential

func (c fixedCredentials) For(context.Context, string) ([]nodeagent.Credential, error) {
	return []nodeagent.Credential{nodeagent.Credential(c)}, nil
}

func TestARegistryThatRepeatsTheCredentialsIsNotQuoted(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		a.stop()
		a.credentials = fixedCredentials{Username: "robot", Password: "hunter2"}
		a.runtime.Fail = func(req nodeagent.PullRequest) error {
			return fmt.Errorf("%w: denied: no access for %s", nodeagent.ErrUnauthorized, req.Credentials[0].Password)
		}
		a.start()
		private := seedOf("v1", "m1")
		private.ImagePullSecrets = []v1alpha1.PullSecretSource{{Namespace: "team", Name: "key"}}
		a.apply(private)
		a.advance(moment)
		a.state(name("v1"), v1alpha1.ImageFailed, v1alpha1.ReasonImagePullUnauthorized)
		if s := a.status(name("v1")); s.Message != "unauthorized: denied: no access for [credential]" {
			t.Errorf("message %q", s.Message)
		}
	})
}

// failingNodeCredentials returns what it has, and says that one source failed.
type failingNodeCredentials []nodeagent.Credential

func (c failingNodeCredentials) For(context.Context, string) ([]nodeagent.Credential, error) {
	return c, errors.New(`credential provider "cloud": exit status 1`)
}

func TestASeedHasTheNodesCredentialsBehindThePullSecrets(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		a.push("v1", a.runtime.Upstream)
		a.push("v2", a.runtime.Upstream)
		d := a.push("v3", a.runtime.Mirror)
		a.stop()
		a.credentials = fixedCredentials{Username: "secret", Password: "p"}
		a.ofNode = fixedCredentials{Username: "node", Password: "p"}
		got := map[string][]string{}
		var mu sync.Mutex
		a.runtime.Fail = func(req nodeagent.PullRequest) error {
			mu.Lock()
			defer mu.Unlock()
			got[req.Ref.Tag()] = []string{}
			for _, c := range req.Credentials {
				got[req.Ref.Tag()] = append(got[req.Ref.Tag()], c.Username)
			}
			return nil
		}
		a.start()
		private := seedOf("v1", "m1")
		private.ImagePullSecrets = []v1alpha1.PullSecretSource{{Namespace: "team", Name: "key"}}
		peer := peerOf("v3", d)
		peer.ImagePullSecrets = private.ImagePullSecrets
		a.apply(private, seedOf("v2", "m1"), peer)
		a.advance(moment)
		want := map[string][]string{"v1": {"secret", "node"}, "v2": {"node"}, "v3": {}}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("pulls with %v, want %v", got, want)
		}
	})
}

func TestTheNodesCredentialsServeWhileThoseOfAServiceAccountAreUnknown(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		a.push("v1", a.runtime.Upstream)
		a.stop()
		a.credentials = unavailableCredentials{}
		a.ofNode = fixedCredentials{Username: "node", Password: "p"}
		a.runtime.Fail = func(req nodeagent.PullRequest) error {
			if len(req.Credentials) != 1 || req.Credentials[0].Username != "node" {
				return nodeagent.ErrUnauthorized
			}
			return nil
		}
		a.start()
		private := seedOf("v1", "m1")
		private.ImagePullSecrets = []v1alpha1.PullSecretSource{{Kind: v1alpha1.PullSecretSourceServiceAccount, Namespace: "team", Name: "default"}}
		a.apply(private)
		a.advance(moment)
		a.state(name("v1"), v1alpha1.ImagePresent, "")
	})
}

func TestNodeCredentialsThatFailAreOnlyToldOfWhenTheRegistryRefuses(t *testing.T) {
	for _, tt := range []struct {
		reason                  string
		err                     error
		state                   v1alpha1.ImageState
		wantReason, wantMessage string
	}{
		{"a public image", nil, v1alpha1.ImagePresent, "", ""},
		{
			"a refusal", fmt.Errorf("%w: denied to p4ssw0rd", nodeagent.ErrUnauthorized), v1alpha1.ImageFailed, v1alpha1.ReasonImagePullUnauthorized,
			`credential provider "cloud": exit status 1; unauthorized: denied to [credential]`,
		},
		{
			"a registry that hides what is private", nodeagent.ErrImageNotFound, v1alpha1.ImageFailed, v1alpha1.ReasonImageNotFound,
			`credential provider "cloud": exit status 1; image not found`,
		},
		{
			"another failure", nodeagent.ErrRegistryUnavailable, v1alpha1.ImagePending, v1alpha1.ReasonRegistryUnavailable,
			"registry unavailable",
		},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			withAgent(t, func(a *agentTest) {
				a.push("v1", a.runtime.Upstream)
				a.stop()
				a.ofNode = failingNodeCredentials{{Username: "other", Password: "p4ssw0rd"}}
				a.runtime.Fail = func(req nodeagent.PullRequest) error {
					if len(req.Credentials) != 1 {
						t.Errorf("%d credentials, want those of the source that did not fail", len(req.Credentials))
					}
					return tt.err
				}
				a.start()
				a.apply(seedOf("v1", "m1"))
				a.advance(moment)
				a.state(name("v1"), tt.state, tt.wantReason)
				if s := a.status(name("v1")); s.Message != tt.wantMessage {
					t.Errorf("message %q, want %q", s.Message, tt.wantMessage)
				}
			})
		})
	}
}

func TestFinalErrorsWaitForTheEntryToChange(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		a.push("v1", a.runtime.Upstream)
		a.runtime.Upstream.Protect("team/app")
		a.apply(seedOf("v1", "m1"))
		a.advance(blink)
		a.state(name("v1"), v1alpha1.ImageFailed, v1alpha1.ReasonImagePullUnauthorized)
		a.advance(3 * verify)
		if n := len(a.runtime.Pulls()); n != 1 {
			t.Fatalf("%d pulls, want 1", n)
		}
		a.apply(seedOf("v1", "m1,m2"))
		a.advance(moment)
		if n := len(a.runtime.Pulls()); n != 2 {
			t.Errorf("%d pulls after the change, want 2", n)
		}
	})
}

func TestAPeerWithoutProgressReportsNotOnMirror(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		d := a.push("v1") // nowhere
		none := int32(0)
		entry := peerOf("v1", d)
		entry.ImageDownloadRetryLimit = &none
		a.apply(entry)
		a.advance(noProgress - time.Second)
		a.state(name("v1"), v1alpha1.ImagePulling, "")
		a.advance(moment)
		a.state(name("v1"), v1alpha1.ImageFailed, v1alpha1.ReasonNotOnMirror)
	})
}

func TestAPeerOfASlowSeedDoesNotFailAsLongAsSomethingComes(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		d := a.push("v1", a.runtime.Mirror)
		var serve []func()
		for _, layer := range images.Layers("v1", 3, images.KiB) {
			d, err := layer.Digest()
			if err != nil {
				t.Fatal(err)
			}
			serve = append(serve, a.runtime.Mirror.Withhold(digest.Digest(d.String())))
		}
		once := int32(1)
		entry := peerOf("v1", d)
		entry.ImageDownloadRetryLimit = &once
		a.apply(entry)
		for _, come := range serve {
			a.advance(noProgress + 40*time.Second)
			come()
		}
		a.advance(10 * time.Second)
		a.state(name("v1"), v1alpha1.ImagePresent, "")
		for _, write := range a.written.all() {
			if s := write.Images[0]; s.State == v1alpha1.ImageFailed {
				t.Fatalf("status %+v", s)
			}
		}
	})
}

func TestAPullWithoutProgressIsStopped(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		a.push("v1", a.runtime.Upstream)
		a.runtime.PerBlob = 2 * time.Minute
		none := int32(0)
		entry := seedOf("v1", "m1")
		entry.ImageDownloadRetryLimit = &none
		a.apply(entry)
		a.advance(noProgress + moment)
		a.state(name("v1"), v1alpha1.ImageFailed, v1alpha1.ReasonNoProgress)
	})
}

func TestASpecThatLeavesNothingToDoIsAcknowledgedWithTheNextReport(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		d := a.push("v1", a.runtime.Upstream, a.runtime.Mirror)
		other := a.push("v2", a.runtime.Mirror)
		a.apply(seedOf("v1", "m1"))
		a.advance(10 * time.Second)
		a.state(name("v1"), v1alpha1.ImagePresent, "")
		writes := len(a.written.all())

		present := peerOf("v1", d) // demoted after its pull as a seed
		present.Request = "m1"
		a.apply(present)
		a.advance(2 * time.Second)
		if n := len(a.written.all()) - writes; n != 0 {
			t.Errorf("%d writes at once, of a change that the controller does not wait for", n)
		}
		a.apply(present, peerOf("v2", other))
		a.advance(10 * time.Second)
		if n := len(a.written.all()) - writes; n != 1 {
			t.Errorf("%d writes, want one of the pull", n)
		}
		a.apply(seedOf("v1", "m1"), peerOf("v2", other))
		a.advance(10 * time.Second)
		if last := a.lastWritten(); last.ObservedGeneration != a.set.Generation {
			t.Errorf("generation %d was not taken up: %d", a.set.Generation, last.ObservedGeneration)
		}
	})
}

func TestAnImageThatDoesNotFitFailsUntilAnotherIsDeleted(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		full := true
		a.runtime.Fail = func(nodeagent.PullRequest) error {
			if full {
				return nodeagent.ErrInsufficientDisk
			}
			return nil
		}
		a.apply(peerOf("v1", a.push("v1", a.runtime.Mirror)))
		a.advance(blink)
		a.state(name("v1"), v1alpha1.ImageFailed, v1alpha1.ReasonInsufficientDisk)
		full = false
		a.runtime.Delete("docker.io/library/other:latest")
		a.advance(blink)
		a.state(name("v1"), v1alpha1.ImagePresent, "")
	})
}

func TestAnImageThatDoesNotFitBesideAnotherPullIsTriedWhenThatEnds(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		const perBlob, blobs = 40 * time.Second, 5
		a.runtime.PerBlob = perBlob
		a.runtime.Fail = func(req nodeagent.PullRequest) error {
			if _, there := a.runtime.Record(name("v1")); !there && req.Ref.String() != name("v1") {
				return nodeagent.ErrInsufficientDisk
			}
			return nil
		}
		a.apply(peerOf("v1", a.push("v1", a.runtime.Mirror)), peerOf("v2", a.push("v2", a.runtime.Mirror)), peerOf("v3", a.push("v3", a.runtime.Mirror)))
		a.advance(blobs*perBlob - time.Millisecond)
		a.state(name("v2"), v1alpha1.ImageFailed, v1alpha1.ReasonInsufficientDisk)
		before := len(a.runtime.Pulls())
		if before > 30 { // about nine tries of each
			t.Errorf("%d pulls: an image that does not fit makes no space for the other", before)
		}
		a.advance(2 * time.Millisecond)
		if n := len(a.runtime.Pulls()) - before; n != 2 {
			t.Errorf("%d pulls began when there was space, want both", n)
		}
		a.advance(blobs*perBlob + moment)
		a.state(name("v2"), v1alpha1.ImagePresent, "")
		a.state(name("v3"), v1alpha1.ImagePresent, "")
	})
}

func TestAPeerWithoutADigestWaits(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		a.apply(peerOf("v1", ""))
		a.advance(moment)
		a.state(name("v1"), v1alpha1.ImagePending, "")
		if n := len(a.runtime.Pulls()); n != 0 {
			t.Errorf("%d pulls", n)
		}
	})
}

func TestANameThatDoesNotParseFails(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		a.apply(v1alpha1.NodeImage{Name: "registry.test/UPPER", RegistryPolicy: v1alpha1.RegistryPolicyDefault})
		a.advance(moment)
		a.state("registry.test/UPPER", v1alpha1.ImageFailed, v1alpha1.ReasonPullFailed)
	})
}
