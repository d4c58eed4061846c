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
		{"the registry does not know the image", ErrImageNotFound, failure{reason: v1alpha1.ReasonImageNotFound}},
		{"the registry refuses the credentials", fmt.Errorf("pull: %w", ErrUnauthorized), failure{reason: v1alpha1.ReasonImagePullUnauthorized}},
		{"the image is for other platforms", ErrPlatformNotProvided, failure{reason: v1alpha1.ReasonPlatformNotProvided}},
		{"the registry is away", ErrRegistryUnavailable, failure{reason: v1alpha1.ReasonRegistryUnavailable}},
		{"nothing arrives", ErrNoProgress, failure{reason: v1alpha1.ReasonNoProgress}},
		{"the mirror does not have it yet", ErrNotOnMirror, failure{reason: v1alpha1.ReasonNotOnMirror}},
		{"a pull without progress that waits for the mirror", fmt.Errorf("%w: %w", ErrNoProgress, ErrNotOnMirror), failure{reason: v1alpha1.ReasonNotOnMirror}},
		{"the disk is full", ErrInsufficientDisk, failure{reason: v1alpha1.ReasonInsufficientDisk}},
		{"a restart of containerd does not count as a try", fmt.Errorf("%w: %w", ErrRuntimeUnavailable, ErrImageNotFound),
			failure{reason: v1alpha1.ReasonRuntimeUnavailable, uncounted: true}},
		{"the controller is away", ErrCredentialsUnavailable, failure{reason: v1alpha1.ReasonCredentialsUnavailable}},
		{"the controller has seen another spec", ErrCredentialsDenied, failure{reason: v1alpha1.ReasonCredentialsUnavailable}},
		{"any other error", errors.New("surprise"), failure{reason: v1alpha1.ReasonPullFailed}},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			if got := classify(tt.err); got != tt.want {
				t.Errorf("classify(%v) = %+v, want %+v", tt.err, got, tt.want)
			}
		})
	}
}

func TestStatusMessage(t *testing.T) {
	for _, tt := range []struct {
		reason, in, want string
	}{
		{"the query of a URL may have a signature", "GET https://s3.test/blob?X-Amz-Signature=abc&x=1: 403", "GET https://s3.test/blob 403"},
		{"a quoted URL", `Get "http://r.test/token?scope=a": refused`, `Get "http://r.test/token": refused`},
		{"the user information of a URL may have a password", "GET http://robot:hunter2@r.test/v2/: 401", "GET http://r.test/v2/: 401"},
		{"an @ before a digest is kept", "pull r.test/app@sha256:00: gone", "pull r.test/app@sha256:00: gone"},
		{"a status is one line", "a\nb", "a; b"},
		{"the API server takes UTF-8 only", "a\xffb", "ab"},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			if got := statusMessage(errors.New(tt.in)); got != tt.want {
				t.Errorf("statusMessage(%q) = %q, want %q", tt.in, got, tt.want)
			}
		})
	}
	long := statusMessage(errors.New(strings.Repeat("ä", 2000)))
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
	req := PullRequest{Credentials: []Credential{secret}}
	raw, err := json.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	for _, shown := range []string{
		fmt.Sprint(secret), fmt.Sprintf("%+v", &secret), fmt.Sprintf("%#v", secret), fmt.Sprintf("%x", secret),
		fmt.Sprintf("%+v", req), fmt.Sprintf("%#v", req), string(raw),
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
		{"a registry quotes what it received", "denied: robot:" + password + " may not", "denied: robot:[credential] may not"},
		{"all credentials", token + ", " + password, "[credential], [credential]"},
		{"with the user name in base64", "Basic cm9ib3Q6YzBycmVjdCBoMHJzZX4/Pg==", "Basic [credential]=="},
		{"the password alone in base64", "YzBycmVjdCBoMHJzZX4/Pg==", "[credential]=="},
		{"in the alphabet of URLs", "cm9ib3Q6YzBycmVjdCBoMHJzZX4_Pg, YzBycmVjdCBoMHJzZX4_Pg", "[credential], [credential]"},
		{"a token goes without a user name", "Basic OnIzZnJlc2g=", "Basic [credential]="},
		{"in a form", "password=c0rrect+h0rse~%3F%3E&x=1", "password=[credential]&x=1"},
		{"a token that the registry gave is known to containerd alone", "Bearer eyJhbGciOi.eyJzdWIiOi-.c2ln_Zg==: expired", "Bearer [credential]: expired"},
		{"a challenge is no token", `Bearer realm="https://r.test/token",service="r.test"`, `Bearer realm="https://r.test/token",service="r.test"`},
		{"an empty secret matches nothing", "not found", "not found"},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			err := Redact(fmt.Errorf("%w: %s", ErrUnauthorized, tt.in), credentials)
			if want := "unauthorized: " + tt.want; err.Error() != want {
				t.Errorf("error %q, want %q", err, want)
			}
			if !errors.Is(err, ErrUnauthorized) {
				t.Error("it no longer wraps ErrUnauthorized")
			}
		})
	}
	if err := Redact(nil, credentials); err != nil {
		t.Errorf("no error became %v", err)
	}
}

func TestOfSecretsThatBeginAlikeTheLongestIsReplaced(t *testing.T) {
	err := Redact(errors.New("hunter2000"), []Credential{{Password: "hunter2"}, {Password: "hunter2000"}})
	if err.Error() != redacted {
		t.Errorf("%q shows the end of the longer one", err)
	}
}
