// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package install_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/sluice-dev/sluice/test/install"
)

// right is what an account may do: one verb on one resource.
type right struct {
	account, verb, group, resource string
	// namespace is that of the Role; empty for every namespace, and for what is in none.
	namespace string
	// name is the only object's; empty for every object.
	name string
}

func (r right) String() string {
	text := r.account + ": " + r.verb + " " + r.resource
	if r.group != "" {
		text += "." + r.group
	}
	if r.name != "" {
		text += "/" + r.name
	}
	if r.namespace != "" {
		text += " in " + r.namespace
	}
	return text
}

// grantedRights are those of all accounts of the installed chart, those of its hooks included, which
// live only as long as their Jobs.
func grantedRights(ctx context.Context) []right {
	GinkgoHelper()
	var manifests strings.Builder
	for _, what := range []string{"manifest", "hooks"} {
		text, err := site.Helm(ctx, "get", what, install.Release, "--namespace", install.Namespace)
		Expect(err).NotTo(HaveOccurred())
		manifests.WriteString("---\n" + text)
	}
	all, err := rightsIn(manifests.String())
	Expect(err).NotTo(HaveOccurred())
	return all
}

// rightsIn are the rights that the bindings among the manifests give to service accounts.
func rightsIn(manifests string) (all []right, err error) {
	roles, bindings := map[string][]rbacv1.PolicyRule{}, []binding{}
	for document := range strings.SplitSeq(manifests, "\n---") {
		var object struct {
			metav1.TypeMeta
			metav1.ObjectMeta `json:"metadata"`
			Rules             []rbacv1.PolicyRule
			RoleRef           rbacv1.RoleRef
			Subjects          []rbacv1.Subject
		}
		if err := yaml.Unmarshal([]byte(strings.TrimPrefix(document, "---")), &object); err != nil {
			return nil, err
		}
		switch object.Kind {
		case "ClusterRole", "Role":
			roles[object.Kind+" "+object.Name] = object.Rules
		case "ClusterRoleBinding", "RoleBinding":
			for _, subject := range object.Subjects {
				bindings = append(bindings, binding{subject.Name, object.Namespace, object.RoleRef.Kind + " " + object.RoleRef.Name})
			}
		}
	}
	for _, b := range bindings {
		rules, ok := roles[b.role]
		if !ok {
			return nil, fmt.Errorf("%s has a %s that is not among the manifests", b.account, b.role)
		}
		for _, rule := range rules {
			all = append(all, b.rights(rule)...)
		}
	}
	return all, nil
}

// binding gives an account a role, in one namespace or in all.
type binding struct{ account, namespace, role string }

func (b binding) rights(rule rbacv1.PolicyRule) (all []right) {
	names := rule.ResourceNames
	if len(names) == 0 {
		names = []string{""}
	}
	for _, group := range rule.APIGroups {
		for _, resource := range rule.Resources {
			for _, verb := range rule.Verbs {
				for _, name := range names {
					all = append(all, right{b.account, verb, group, resource, b.namespace, name})
				}
			}
		}
	}
	return all
}

// request is one request of a program of Sluice's.
type request struct {
	right
	denied bool
}

// requestsSince reads from the audit log what the programs of Sluice asked the API server for.
func requestsSince(begin time.Time) []request {
	GinkgoHelper()
	text, err := os.ReadFile(site.Cluster.AuditLog())
	Expect(err).NotTo(HaveOccurred())
	all := requestsIn(text, begin)
	Expect(all).NotTo(BeEmpty())
	return all
}

// requestsIn leaves out what a spec asked for with the token of one of the programs.
func requestsIn(log []byte, begin time.Time) (all []request) {
	for line := range bytes.Lines(log) {
		var event struct {
			Verb, UserAgent string
			User            struct{ Username string }
			// ObjectRef is absent for what is no resource.
			ObjectRef                *struct{ APIGroup, Resource, Subresource, Namespace, Name string }
			Annotations              map[string]string
			RequestReceivedTimestamp time.Time
		}
		// The last line may not be written to its end.
		if json.Unmarshal(line, &event) != nil || event.ObjectRef == nil || event.RequestReceivedTimestamp.Before(begin) {
			continue
		}
		account, ours := strings.CutPrefix(event.User.Username, "system:serviceaccount:"+install.Namespace+":")
		if !ours || !strings.HasPrefix(event.UserAgent, "sluice-") {
			continue
		}
		resource := event.ObjectRef.Resource
		if event.ObjectRef.Subresource != "" {
			resource += "/" + event.ObjectRef.Subresource
		}
		all = append(all, request{
			right: right{account, event.Verb, event.ObjectRef.APIGroup, resource, event.ObjectRef.Namespace, event.ObjectRef.Name},
			// Admission denies with the same status, and that is no lack of a right.
			denied: event.Annotations["authorization.k8s.io/decision"] == "forbid",
		})
	}
	return all
}

// deniedSince are the rights that programs of Sluice asked for and had not.
func deniedSince(begin time.Time) (all []string) {
	GinkgoHelper()
	for _, r := range requestsSince(begin) {
		if r.denied {
			all = append(all, r.String())
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// needlessRights returns the rights that no request made use of, and those that are wider than all
// requests that did.
func needlessRights(granted []right, requests []request) (needless []string) {
	for _, right := range granted {
		uses := right.uses(requests)
		switch {
		case len(uses) == 0:
			needless = append(needless, right.String()+": not used")
		case right.namespace == "" && allAre(uses, func(use request) bool { return use.namespace == install.Namespace }):
			needless = append(needless, right.String()+": used in the namespace of Sluice alone, and granted in all")
		case right.name == "" && right.mayNameOne() && allAre(uses, func(use request) bool { return use.name == uses[0].name && strings.HasPrefix(use.name, "sluice") }):
			needless = append(needless, right.String()+": used for "+uses[0].name+" alone, and granted for all")
		}
	}
	return needless
}

// mayNameOne reports whether RBAC can tell the objects apart by name.
func (r right) mayNameOne() bool {
	return slices.Contains([]string{"get", "update", "patch", "delete"}, r.verb)
}

// uses are the requests that a right allowed.
func (r right) uses(requests []request) (uses []request) {
	for _, asked := range requests {
		verb := asked.verb
		if r.verb == "list" && verb == "watch" {
			// An informer lists where an API server cannot stream what there is as the
			// first events of a watch; this one can.
			verb = "list"
		}
		if !asked.denied && asked.account == r.account && verb == r.verb && asked.group == r.group && asked.resource == r.resource &&
			(r.namespace == "" || asked.namespace == r.namespace) && (r.name == "" || asked.name == r.name) {
			uses = append(uses, asked)
		}
	}
	return uses
}

func allAre(requests []request, is func(request) bool) bool {
	return !slices.ContainsFunc(requests, func(r request) bool { return !is(r) })
}
