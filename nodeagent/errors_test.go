// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func TestClassify(t *testing.T) {
	for _, tt := range []struct {
		reason string
		err    error
		want   failure
	}{
		{"an unknown image is not worth another try", ErrImageNotFound, failure{reason: v1alpha1.ReasonImageNotFound}},
		{"a refusal neither", fmt.Errorf("pull: %w", ErrUnauthorized), failure{reason: v1alpha1.ReasonImagePullUnauthorized}},
		{"nor another platform's image", ErrPlatformNotProvided, failure{reason: v1alpha1.ReasonPlatformNotProvided}},
		{"a registry comes back", ErrRegistryUnavailable, failure{reason: v1alpha1.ReasonRegistryUnavailable}},
		{"silence ends", ErrNoProgress, failure{reason: v1alpha1.ReasonNoProgress}},
		{"a mirror gets it later", ErrNotOnMirror, failure{reason: v1alpha1.ReasonNotOnMirror}},
		{"waiting for the mirror in vain is the mirror's", fmt.Errorf("%w: %w", ErrNoProgress, ErrNotOnMirror), failure{reason: v1alpha1.ReasonNotOnMirror}},
		{"disks get room", ErrInsufficientDisk, failure{reason: v1alpha1.ReasonInsufficientDisk}},
		{"containerd's restart says nothing of the image", fmt.Errorf("%w: %w", ErrRuntimeUnavailable, ErrImageNotFound),
			failure{reason: v1alpha1.ReasonRuntimeUnavailable, uncounted: true}},
		{"the controller comes back", ErrCredentialsUnavailable, failure{reason: v1alpha1.ReasonCredentialsUnavailable}},
		{"and learns of the spec it wrote", ErrCredentialsDenied, failure{reason: v1alpha1.ReasonCredentialsUnavailable}},
		{"anything else may pass", errors.New("surprise"), failure{reason: v1alpha1.ReasonPullFailed}},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			if got := classify(tt.err); got != tt.want {
				t.Errorf("classify(%v) = %+v, want %+v", tt.err, got, tt.want)
			}
		})
	}
}

func TestMessage(t *testing.T) {
	for _, tt := range []struct {
		reason, in, want string
	}{
		{"signatures of storage URLs are secrets", "GET https://s3.test/blob?X-Amz-Signature=abc&x=1: 403", "GET https://s3.test/blob 403"},
		{"quoted URLs too", `Get "http://r.test/token?scope=a": refused`, `Get "http://r.test/token": refused`},
		{"so is what stands before an @", "GET http://robot:hunter2@r.test/v2/: 401", "GET http://r.test/v2/: 401"},
		{"a digest is none", "pull r.test/app@sha256:00: gone", "pull r.test/app@sha256:00: gone"},
		{"a status is one line", "a\nb", "a; b"},
		{"the API server takes UTF-8 only", "a\xffb", "ab"},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			if got := message(errors.New(tt.in)); got != tt.want {
				t.Errorf("message(%q) = %q, want %q", tt.in, got, tt.want)
			}
		})
	}
	long := message(errors.New(strings.Repeat("ä", 2000)))
	if len(long) > maxMessage || !utf8.ValidString(long) || !strings.HasSuffix(long, "…") {
		t.Errorf("a long message has %d bytes and ends in %q", len(long), long[len(long)-6:])
	}
}

func TestBackoffDoublesUpToAMinuteWithJitter(t *testing.T) {
	for failures, most := range map[int]time.Duration{
		1: time.Second, 2: 2 * time.Second, 4: 8 * time.Second, 7: time.Minute, 1000: time.Minute,
	} {
		for range 100 {
			if got := backoff(failures); got > most || got < most/2 {
				t.Fatalf("backoff(%d) = %v, want %v to %v", failures, got, most/2, most)
			}
		}
	}
	seen := map[time.Duration]bool{}
	for range 10 {
		seen[backoff(7)] = true
	}
	if len(seen) == 1 {
		t.Error("there is no jitter")
	}
}

func TestACredentialShowsItselfNowhere(t *testing.T) {
	secret := Credential{Username: "robot", Password: "hunter2", IdentityToken: "refresh"}
	request := PullRequest{Credentials: []Credential{secret}}
	raw, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	for _, shown := range []string{
		fmt.Sprint(secret), fmt.Sprintf("%+v", &secret), fmt.Sprintf("%#v", secret), fmt.Sprintf("%x", secret),
		fmt.Sprintf("%+v", request), fmt.Sprintf("%#v", request), string(raw),
	} {
		for _, word := range []string{"robot", "hunter2", "refresh", "68756e74657232"} {
			if strings.Contains(shown, word) {
				t.Errorf("%q shows %q", shown, word)
			}
		}
	}
}

func TestRedact(t *testing.T) {
	const password, token = "c0rrect h0rse~?>", "r3fresh"
	credentials := []Credential{{Username: "robot", Password: password}, {IdentityToken: token}, {}}
	for _, tt := range []struct {
		reason, in, want string
	}{
		{"registries repeat what they were sent", "denied: robot:" + password + " may not", "denied: robot:[credential] may not"},
		{"each of them", token + ", " + password, "[credential], [credential]"},
		{"as it is in a header", "Basic cm9ib3Q6YzBycmVjdCBoMHJzZX4/Pg==", "Basic [credential]=="},
		{"by itself", "YzBycmVjdCBoMHJzZX4/Pg==", "[credential]=="},
		{"in the alphabet of URLs", "cm9ib3Q6YzBycmVjdCBoMHJzZX4_Pg, YzBycmVjdCBoMHJzZX4_Pg", "[credential], [credential]"},
		{"a token goes without a user name", "Basic OnIzZnJlc2g=", "Basic [credential]="},
		{"in a form", "password=c0rrect+h0rse~%3F%3E&x=1", "password=[credential]&x=1"},
		{"a token that the registry gave is known to containerd alone", "Bearer eyJhbGciOi.eyJzdWIiOi-.c2ln_Zg==: expired", "Bearer [credential]: expired"},
		{"a challenge is none", `Bearer realm="https://r.test/token",service="r.test"`, `Bearer realm="https://r.test/token",service="r.test"`},
		{"an empty one is nowhere", "not found", "not found"},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			err := Redact(fmt.Errorf("%w: %s", ErrUnauthorized, tt.in), credentials)
			if want := "unauthorized: " + tt.want; err.Error() != want {
				t.Errorf("error %q, want %q", err, want)
			}
			if !errors.Is(err, ErrUnauthorized) {
				t.Error("it is of another kind than before")
			}
		})
	}
	if err := Redact(nil, credentials); err != nil {
		t.Errorf("no error became %v", err)
	}
}

func TestOfSecretsThatContainEachOtherTheLongestGoes(t *testing.T) {
	err := Redact(errors.New("hunter2000"), []Credential{{Password: "hunter2"}, {Password: "hunter2000"}})
	if err.Error() != redacted {
		t.Errorf("%q shows the end of the longer one", err)
	}
}
