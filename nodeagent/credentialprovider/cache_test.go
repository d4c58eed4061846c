// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package credentialprovider

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestAnAnswerIsKeptForWhatItSaysAndAsLong(t *testing.T) {
	const first, sameRepository, sameRegistry, elsewhere = "registry.example.com/a:v1", "registry.example.com/a:v2", "registry.example.com/b", "quay.io/a"
	for _, tt := range []struct {
		reason, keyType   string
		later             time.Duration
		image             string
		wantAskedOnceMore bool
	}{
		{"a repository has its own, whatever the tag", "Image", 0, sameRepository, false},
		{"another repository has none", "Image", 0, sameRegistry, true},
		{"a registry has its own", "Registry", 0, sameRegistry, false},
		{"another registry has none", "Registry", 0, elsewhere, true},
		{"all that match have one", "Global", 0, elsewhere, false},
		{"to the last moment", "Image", time.Hour, first, false},
		{"and no longer", "Image", time.Hour + time.Nanosecond, first, true},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNode(t)
				provider := n.answering("cloud", response(tt.keyType, time.Hour, "robot@registry.example.com", "robot@quay.io"))
				provider.MatchImages = append(provider.MatchImages, "quay.io")
				providers := n.start(provider)
				n.users(providers, first)
				time.Sleep(tt.later) //nolint:forbidigo // of the synctest bubble's clock
				if users := n.users(providers, tt.image); len(users) != 1 {
					t.Errorf("users %q", users)
				}
				if asked := len(n.ran()) == 2; asked != tt.wantAskedOnceMore {
					t.Errorf("the plugin ran %d times", len(n.ran()))
				}
			})
		})
	}
}

func TestTheConfigurationSaysHowLongIfTheAnswerDoesNot(t *testing.T) {
	for _, tt := range []struct {
		reason, duration string
		byDefault, later time.Duration
		wantRuns         int
	}{
		{"the default is over", "null", time.Minute, 2 * time.Minute, 2},
		{"the default is not over", "null", time.Hour, 2 * time.Minute, 1},
		{"no default", "null", 0, 0, 2},
		{"the answer has precedence", `"1m"`, time.Hour, 2 * time.Minute, 2},
		{"it may forbid it", `"0s"`, time.Hour, 0, 2},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNode(t)
				answer := response("Image", 0, "robot@registry.example.com")
				provider := n.answering("cloud", strings.Replace(answer, `"cacheDuration": "0s"`, `"cacheDuration": `+tt.duration, 1))
				provider.DefaultCacheDuration = &metav1.Duration{Duration: tt.byDefault}
				providers := n.start(provider)
				n.users(providers, image)
				time.Sleep(tt.later) //nolint:forbidigo // of the synctest bubble's clock
				n.users(providers, image)
				if got := len(n.ran()); got != tt.wantRuns {
					t.Errorf("the plugin ran %d times, want %d", got, tt.wantRuns)
				}
			})
		})
	}
}

func TestAFailureIsNotKept(t *testing.T) {
	n := newNode(t)
	provider := n.provider("cloud", "fail")
	provider.DefaultCacheDuration = &metav1.Duration{Duration: time.Hour}
	providers := n.start(provider)
	for range 2 {
		if _, err := providers.For(t.Context(), image); err == nil {
			t.Error("it does not fail")
		}
	}
	if got := len(n.ran()); got != 2 {
		t.Errorf("the plugin ran %d times, want twice", got)
	}
}

func TestWhatHasExpiredIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		providers := n.start(n.answering("cloud", response("Image", time.Minute, "robot@registry.example.com")))
		n.users(providers, "registry.example.com/a")
		time.Sleep(time.Hour) //nolint:forbidigo // of the synctest bubble's clock
		n.users(providers, "registry.example.com/b")
		if got := len(providers[0].cache.answers); got != 1 {
			t.Errorf("%d answers in memory, want the last", got)
		}
	})
}
