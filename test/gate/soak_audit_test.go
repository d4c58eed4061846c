// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/internal/hold"
)

// entry is what we read of a line of the audit log.
type entry struct {
	Stage, Verb string
	RequestURI  string
	User        struct{ Username string }
	// ImpersonatedUser is who the request was made as.
	ImpersonatedUser *struct{ Username string }
	ObjectRef        *struct{ Resource, Subresource, Namespace, Name string }
	ResponseStatus   struct{ Code int }
	RequestObject    json.RawMessage
	ResponseObject   json.RawMessage
	Annotations      map[string]string
	StageTimestamp   time.Time

	version int64
}

func (e *entry) user() string {
	if e.ImpersonatedUser != nil {
		return e.ImpersonatedUser.Username
	}
	return e.User.Username
}

func (e *entry) subject() subject { return subject{e.ObjectRef.Namespace, e.ObjectRef.Name} }

// isUnanswered reports whether a write of a Deployment may have been stored although no answer says
// so, because the client was killed meanwhile.
func (e *entry) isUnanswered() bool {
	if e.ObjectRef == nil || e.ObjectRef.Resource != "deployments" || !slices.Contains([]string{"create", "update", "patch"}, e.Verb) {
		return false
	}
	return e.Stage == "Panic" || e.Stage == "ResponseComplete" && (e.ResponseStatus.Code < 200 || e.ResponseStatus.Code >= 499)
}

// audited are the resources, with their subresources, whose writes the checks go by.
var audited = []string{
	"deployments/", "imageprefetches/", "imageprefetches/status", "nodes/", "nodes/status", "nodeimagesets/", "nodeimagesets/status",
}

// readAudit reads the successful writes of what is audited, in the order in which they were stored,
// and the writes of Deployments that ended without an answer.
func readAudit(file string) (entries, unanswered []*entry) {
	GinkgoHelper()
	log, err := os.Open(file)
	Expect(err).NotTo(HaveOccurred())
	defer func() { Expect(log.Close()).To(Succeed()) }()
	for lines := bufio.NewReader(log); ; {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			break
		}
		Expect(err).NotTo(HaveOccurred())
		e := &entry{}
		Expect(json.Unmarshal(line, e)).To(Succeed())
		if e.isUnanswered() {
			unanswered = append(unanswered, e)
			continue
		}
		if e.Stage != "ResponseComplete" || e.ResponseStatus.Code >= 300 || len(e.ResponseObject) == 0 || e.ObjectRef == nil {
			continue
		}
		if !slices.Contains(audited, e.ObjectRef.Resource+"/"+e.ObjectRef.Subresource) {
			continue
		}
		var object struct {
			Metadata struct{ Name, ResourceVersion string }
		}
		Expect(json.Unmarshal(e.ResponseObject, &object)).To(Succeed())
		if object.Metadata.ResourceVersion == "" { // a dry run, or the status of a deletion
			continue
		}
		e.ObjectRef.Name = object.Metadata.Name
		e.version, err = strconv.ParseInt(object.Metadata.ResourceVersion, 10, 64)
		Expect(err).NotTo(HaveOccurred())
		entries = append(entries, e)
	}
	slices.SortStableFunc(entries, func(a, b *entry) int { return int(a.version - b.version) })
	return entries, unanswered
}

// saysPaused reports whether what was sent says paused: true.
func (e *entry) saysPaused() bool {
	GinkgoHelper()
	return len(e.RequestObject) > 0 && e.sent().Spec.Paused
}

func (e *entry) sent() *appsv1.Deployment {
	GinkgoHelper()
	var sent appsv1.Deployment
	Expect(json.Unmarshal(e.RequestObject, &sent)).To(Succeed())
	return &sent
}

// resumes reports whether what was sent takes the pause off. What webhooks did would tell as well,
// but for a patch that the API server tries again after a conflict: the log keeps what they did the
// first time.
func (e *entry) resumes(was *appsv1.Deployment) bool {
	GinkgoHelper()
	var sent struct {
		APIVersion string         `json:"apiVersion"`
		Spec       map[string]any `json:"spec"`
	}
	if json.Unmarshal(e.RequestObject, &sent) != nil {
		return false // a JSON patch, of the template and the annotations
	}
	paused, said := sent.Spec["paused"]
	switch {
	case said:
		return paused != true
	case e.Verb == "update":
		return true
	case sent.APIVersion == "":
		return false
	}
	// A server-side apply takes off what its manager alone has applied before, and leaves out now.
	request, err := url.Parse(e.RequestURI)
	Expect(err).NotTo(HaveOccurred())
	owned := false
	for _, managed := range was.ManagedFields {
		var fields struct {
			Spec map[string]any `json:"f:spec"`
		}
		Expect(json.Unmarshal(managed.FieldsV1.GetRawBytes(), &fields)).To(Succeed())
		if _, owns := fields.Spec["f:paused"]; !owns {
			continue
		}
		if managed.Manager != request.Query().Get("fieldManager") || managed.Operation != metav1.ManagedFieldsOperationApply {
			return false
		}
		owned = true
	}
	return owned
}

func TestWhatAWriteSaysOfAPause(t *testing.T) {
	RegisterTestingT(t)
	const apply = `{"apiVersion":"apps/v1","kind":"Deployment","spec":{"replicas":1}}`
	pausedBy := func(managers ...string) *appsv1.Deployment {
		d := &appsv1.Deployment{Spec: appsv1.DeploymentSpec{Paused: true}}
		for _, manager := range managers {
			name, operation, _ := strings.Cut(manager, " ")
			d.ManagedFields = append(d.ManagedFields, metav1.ManagedFieldsEntry{
				Manager: name, Operation: metav1.ManagedFieldsOperationType(operation),
				FieldsV1: metav1.NewFieldsV1(`{"f:spec":{"f:paused":{}}}`),
			})
		}
		return d
	}
	for _, tt := range []struct {
		reason, verb, sent string
		was                *appsv1.Deployment
		want               bool
	}{
		{"a patch that does not mention it", "patch", `{"spec":{"replicas":1}}`, pausedBy("owner Apply"), false},
		{"a patch that pauses", "patch", `{"spec":{"paused":true}}`, pausedBy(), false},
		{"a patch that resumes", "patch", `{"spec":{"paused":false}}`, pausedBy(), true},
		{"a patch that takes paused off", "patch", `{"spec":{"paused":null}}`, pausedBy(), true},
		{"a JSON patch, as an undo sends", "patch", `[{"op":"replace","path":"/spec/template","value":{}}]`, pausedBy(), false},
		{"a whole object that is paused", "update", `{"spec":{"paused":true}}`, pausedBy(), false},
		{"a whole object that is not", "update", `{"spec":{}}`, pausedBy(), true},
		{"an apply without the pause that the same manager applied", "patch", apply, pausedBy("owner Apply"), true},
		{"an apply without a pause that another applied", "patch", apply, pausedBy("another Apply"), false},
		{"an apply without a pause that another has as well", "patch", apply, pausedBy("owner Apply", "another Update"), false},
		{"an apply without a pause that the same manager did not apply", "patch", apply, pausedBy("owner Update"), false},
	} {
		e := entry{Verb: tt.verb, RequestObject: []byte(tt.sent), RequestURI: "/apis/apps/v1/namespaces/n/deployments/d?fieldManager=owner&force=true"}
		if got := e.resumes(tt.was); got != tt.want {
			t.Errorf("%s: resumes %t, want %t", tt.reason, got, tt.want)
		}
	}
}

// patchedPause is what webhooks did about spec.paused: add, remove, or nothing.
func (e *entry) patchedPause() string {
	GinkgoHelper()
	for key, value := range e.Annotations {
		if !strings.HasPrefix(key, "patch.webhook.admission.k8s.io/") {
			continue
		}
		var change struct{ Patch []hold.Operation }
		Expect(json.Unmarshal([]byte(value), &change)).To(Succeed())
		for _, operation := range change.Patch {
			if operation.Path == "/spec/paused" {
				return operation.Op
			}
		}
	}
	return ""
}
