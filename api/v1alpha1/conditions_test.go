// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import "testing"

func TestReasonsOfImages(t *testing.T) {
	for _, tt := range []struct {
		reason                 string
		refusal, mirrorFailure bool
	}{
		{reason: ReasonImageNotFound, refusal: true},
		{reason: ReasonImagePullUnauthorized, refusal: true},
		{reason: ReasonPlatformNotProvided, refusal: true},
		{reason: ReasonNotOnMirror, mirrorFailure: true},
		{reason: ReasonNoProgress, mirrorFailure: true},
		{reason: ReasonRegistryUnavailable, mirrorFailure: true},
		{reason: ReasonCredentialsUnavailable},
		{reason: ReasonRuntimeUnavailable},
		{reason: ReasonUnsupportedRuntime},
		{reason: ReasonInsufficientDisk},
		{reason: ReasonTooManyImages},
		{reason: ReasonPullFailed},
		{reason: ReasonAgentNotRunning},
		{reason: ""},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			if got := IsRefusal(tt.reason); got != tt.refusal {
				t.Errorf("IsRefusal = %v, want %v", got, tt.refusal)
			}
			if got := IsMirrorFailure(tt.reason); got != tt.mirrorFailure {
				t.Errorf("IsMirrorFailure = %v, want %v", got, tt.mirrorFailure)
			}
		})
	}
}
