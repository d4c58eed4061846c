// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent_test

import (
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/nodeagent"
)

var (
	discards = nodeagent.NewFinding(nodeagent.SeverityWarning, "discard_unpacked_layers", "is true: set it to false")
	full     = nodeagent.NewFinding(nodeagent.SeverityError, "disk", "is full: free some")
)

// degraded is the condition Degraded that was written last.
func (a *agentTest) degraded() metav1.Condition {
	a.Helper()
	c := meta.FindStatusCondition(a.lastWritten().Conditions, v1alpha1.ConditionDegraded)
	if c == nil {
		a.Fatal("no condition Degraded")
	}
	return *c
}

func TestProblemsOnTheNodeAreReportedOnce(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		a.runtime.Find(discards)
		a.apply(peerOf("v1", a.push("v1", a.runtime.Mirror)))
		a.advance(moment)
		expect := func(what, message string) {
			t.Helper()
			c := a.degraded()
			wrong := message != ""
			if (c.Status == metav1.ConditionTrue) != wrong || wrong && c.Message != message || c.ObservedGeneration != a.set.Generation {
				t.Errorf("%s: condition %+v", what, c)
			}
			if want := map[bool]string{true: v1alpha1.ReasonProblemsFound, false: v1alpha1.ReasonAsExpected}[wrong]; c.Reason != want {
				t.Errorf("%s: reason %s, want %s", what, c.Reason, want)
			}
		}
		const one = "discard_unpacked_layers: is true: set it to false"
		expect("at start", one)
		if c := a.ready(); c.Status != metav1.ConditionTrue {
			t.Errorf("what delays nothing makes the node unready: %+v", c)
		}
		since, writes := a.degraded().LastTransitionTime, len(a.written.all())
		a.runtime.Find(discards)
		a.advance(time.Hour)
		if n := len(a.written.all()); n != writes {
			t.Errorf("%d writes of what is known", n-writes)
		}

		a.runtime.Find(discards, full)
		a.advance(moment)
		expect("one more", one+"; disk: is full: free some")
		if c := a.degraded(); c.LastTransitionTime != since {
			t.Error("the transition time moved with the message")
		}
		a.runtime.Find()
		a.advance(moment)
		expect("mended", "")
	})
}

// A new process does not say that all is well before it has looked.
func TestProblemsOnTheNodeOutliveTheProcess(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		a.runtime.Find(discards)
		a.apply(peerOf("v1", a.push("v1", a.runtime.Mirror)))
		a.advance(moment)
		a.set.Status = a.lastWritten()
		a.stop()
		a.runtime.Stop(nodeagent.ErrRuntimeUnavailable)
		a.start()
		a.agent.Apply(a.set.DeepCopy())
		a.advance(2 * time.Minute) // until the outage is reported
		if c := a.ready(); c.Reason != v1alpha1.ReasonRuntimeUnavailable {
			t.Errorf("condition %+v", c)
		}
		if c := a.degraded(); c.Status != metav1.ConditionTrue {
			t.Errorf("condition %+v", c)
		}
	})
}

func TestALongListOfProblemsIsCut(t *testing.T) {
	withAgent(t, func(a *agentTest) {
		var many []nodeagent.Finding
		for range 100 {
			many = append(many, nodeagent.NewFinding(nodeagent.SeverityWarning, "mirror", "%s", strings.Repeat("x", 192)))
		}
		a.runtime.Find(many...)
		a.apply()
		a.advance(5 * time.Second)
		message := a.degraded().Message
		if len(message) > 2200 || !strings.HasSuffix(message, "; 90 more: sluice-agent --check prints them") {
			t.Errorf("message of %d bytes: %s", len(message), message)
		}
	})
}

func TestAFindingIsOneLineWithoutSecrets(t *testing.T) {
	got := nodeagent.NewFinding(nodeagent.SeverityWarning, "mirror https://me:secret@cache.test", "%s", "first\nGet \"https://cache.test/v2/?token=secret\"")
	want := nodeagent.Finding{Severity: nodeagent.SeverityWarning, Subject: "mirror https://cache.test", Message: `first; Get "https://cache.test/v2/"`}
	if got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}
