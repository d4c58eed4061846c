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

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/nodeagent"
)

// Where the credentials of an entry come from.
var (
	ofSecret         = []v1alpha1.PullSecretSource{{Namespace: "team", Name: "key"}}
	ofServiceAccount = []v1alpha1.PullSecretSource{{Kind: v1alpha1.PullSecretSourceServiceAccount, Namespace: "team", Name: "default"}}
)

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
		private.ImagePullSecrets = ofSecret
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
		public.ImagePullSecrets = ofServiceAccount
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
			private.ImagePullSecrets = ofServiceAccount
			a.apply(private)
			a.advance(moment)
			a.state(name("v1"), v1alpha1.ImagePending, v1alpha1.ReasonCredentialsUnavailable)
		})
	}
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
		private.ImagePullSecrets = ofSecret
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
		private.ImagePullSecrets = ofSecret
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
		private.ImagePullSecrets = ofServiceAccount
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
