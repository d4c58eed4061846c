// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/excerpt"
)

// Severity says what follows from a Finding.
type Severity string

const (
	// SeverityOK: nothing is wrong.
	SeverityOK Severity = "ok"
	// SeverityWarning: images come, but worse than they could.
	SeverityWarning Severity = "warning"
	// SeverityError: images do not come.
	SeverityError Severity = "error"
)

// Finding is what a look at one thing on the node has found. Make it with NewFinding.
type Finding struct {
	Severity Severity
	// Subject is the thing, such as "snapshotter" or "mirror http://10.0.0.1:30020".
	Subject string
	// Message says how it is or, except with SeverityOK, what is wrong and what to do. Then it does not
	// change while what is wrong stays the same.
	Message string
}

// NewFinding makes a Finding whose message is one line without the secrets of URLs.
func NewFinding(severity Severity, subject, format string, args ...any) Finding {
	return Finding{Severity: severity, Subject: oneLine(subject), Message: oneLine(fmt.Sprintf(format, args...))}
}

// onFound takes up what is wrong on the node.
func (a *Agent) onFound(findings []Finding) {
	if len(findings) > 0 {
		a.Log.Info("Found problems on the node", "problems", listFindings(findings))
	}
	a.findings, a.examined = findings, true
	a.reporter.writeWithin(time.Now(), transientDelay)
}

// degradedCondition lists what is wrong on the node.
func degradedCondition(findings []Finding) metav1.Condition {
	if len(findings) == 0 {
		return metav1.Condition{
			Type: v1alpha1.ConditionDegraded, Status: metav1.ConditionFalse,
			Reason: v1alpha1.ReasonAsExpected, Message: "nothing wrong was found on the node",
		}
	}
	return metav1.Condition{
		Type: v1alpha1.ConditionDegraded, Status: metav1.ConditionTrue,
		Reason: v1alpha1.ReasonProblemsFound, Message: listFindings(findings),
	}
}

// maxList is how many bytes a list of findings may have before the rest of them is only counted.
const maxList = 2 * maxMessage

func listFindings(findings []Finding) (list string) {
	for i, f := range findings {
		if i > 0 {
			list += "; "
		}
		text := f.Subject + ": " + f.Message
		if i > 0 && len(list)+len(text) > maxList {
			return list + fmt.Sprintf("%d more: sluice-agent --check prints them", len(findings)-i)
		}
		list += excerpt.Of(text, maxMessage)
	}
	return list
}
