// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package install_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"os"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/test/install"
)

// right is one verb on one resource.
type right struct{ verb, group, resource string }

// compareRights returns which rights a service account of Sluice has and never made
// use of, and which it made use of and has not.
func compareRights(ctx context.Context, account string) (surplus []right, denied map[right]bool) {
	GinkgoHelper()
	used, denied := rightsUsed("system:serviceaccount:" + install.Namespace + ":" + account)
	for _, granted := range rightsGranted(ctx, account) {
		asked := granted
		if asked.verb == "list" {
			// An informer lists where an API server cannot stream what there is as the
			// first events of a watch; this one can.
			asked.verb = "watch"
		}
		if !used[granted] && !used[asked] {
			surplus = append(surplus, granted)
		}
	}
	return surplus, denied
}

func rightsGranted(ctx context.Context, name string) (all []right) {
	GinkgoHelper()
	var cluster rbacv1.ClusterRole
	Expect(site.Client.Get(ctx, client.ObjectKey{Name: name}, &cluster)).To(Succeed())
	rules := cluster.Rules
	var role rbacv1.Role
	if err := site.Client.Get(ctx, client.ObjectKey{Namespace: install.Namespace, Name: name}, &role); client.IgnoreNotFound(err) != nil {
		Expect(err).NotTo(HaveOccurred())
	}
	for _, rule := range append(rules, role.Rules...) {
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				for _, verb := range rule.Verbs {
					all = append(all, right{verb, group, resource})
				}
			}
		}
	}
	Expect(all).NotTo(BeEmpty())
	return all
}

// rightsUsed are what a user asked the API server for, by its audit log, and of that
// what was denied.
func rightsUsed(user string) (used, denied map[right]bool) {
	GinkgoHelper()
	text, err := os.ReadFile(site.Cluster.AuditLog())
	Expect(err).NotTo(HaveOccurred())
	used, denied = map[right]bool{}, map[right]bool{}
	for line := range bytes.Lines(text) {
		var event struct {
			Verb string
			User struct{ Username string }
			// ObjectRef is absent for what is no resource.
			ObjectRef      *struct{ APIGroup, Resource, Subresource string }
			ResponseStatus struct{ Code int }
		}
		// The last line may not be written to its end.
		if json.Unmarshal(line, &event) != nil || event.ObjectRef == nil || event.User.Username != user {
			continue
		}
		resource := event.ObjectRef.Resource
		if event.ObjectRef.Subresource != "" {
			resource += "/" + event.ObjectRef.Subresource
		}
		asked := right{event.Verb, event.ObjectRef.APIGroup, resource}
		used[asked] = true
		if event.ResponseStatus.Code == http.StatusForbidden {
			denied[asked] = true
		}
	}
	return used, denied
}
