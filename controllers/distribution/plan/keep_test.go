// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"testing"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func TestAnEntryTakesTheAnswerToItsOwnQuestionAlone(t *testing.T) {
	for _, tt := range []struct {
		reason, answered, want string
	}{
		{"the agent tells of an earlier question", "1", ""},
		{"the agent has the answer", "2", "sha256:new"},
	} {
		p := &placement{Entry: Entry{
			Wanted: &v1alpha1.NodeImage{Name: "reg/a:v1", Request: "2", RegistryPolicy: v1alpha1.RegistryPolicyDefault},
			Status: &v1alpha1.NodeImageStatus{Name: "reg/a:v1", Request: tt.answered, Digest: "sha256:new", State: v1alpha1.ImagePulling},
		}}
		if got := p.refreshedEntry().Digest; got != tt.want {
			t.Errorf("%s: the entry's digest is %q, want %q", tt.reason, got, tt.want)
		}
	}
}
