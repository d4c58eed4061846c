// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent_test

import (
	"testing"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

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

func TestWhatANodeHasIsSaidAlsoWhileItsSlotsAreTaken(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		a.runtime.PerBlob = 10 * time.Minute
		busy := []v1alpha1.NodeImage{peerOf("v1", a.push("v1", a.runtime.Mirror)), peerOf("v2", a.push("v2", a.runtime.Mirror))}
		third := peerOf("v3", a.push("v3", a.runtime.Mirror))
		a.apply(busy...)
		a.advance(moment)
		a.apply(append(busy, third)...)
		a.advance(moment)
		a.state(name("v3"), v1alpha1.ImagePending, "")

		a.runtime.Import(name("v4"), a.push("v4", a.runtime.Mirror))
		a.apply(append(busy, third, v1alpha1.NodeImage{Name: name("v4"), RegistryPolicy: v1alpha1.RegistryPolicyLocal})...)
		a.advance(moment)
		a.state(name("v4"), v1alpha1.ImagePresent, "")
		a.state(name("v3"), v1alpha1.ImagePending, "") // and nobody has got a slot by that
		if got := a.status(name("v3")).Attempts; got != 0 {
			t.Errorf("its try number %d runs", got)
		}
	})
}
