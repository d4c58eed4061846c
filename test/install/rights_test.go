// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package install_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"os"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/test/install"
)

// right is one verb on one resource.
type right struct{ verb, group, resource string }

// unused are the rights that a service account of Sluice's has and never made use
// of, by the API server's audit log.
func unused(ctx context.Context, account string) (surplus []right) {
	GinkgoHelper()
	used := rightsUsed("system:serviceaccount:" + install.Namespace + ":" + account)
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
	return surplus
}

func rightsGranted(ctx context.Context, name string) (all []right) {
	GinkgoHelper()
	var cluster rbacv1.ClusterRole
	Expect(i.Client.Get(ctx, client.ObjectKey{Name: name}, &cluster)).To(Succeed())
	rules := cluster.Rules
	var role rbacv1.Role
	if err := i.Client.Get(ctx, client.ObjectKey{Namespace: install.Namespace, Name: name}, &role); client.IgnoreNotFound(err) != nil {
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

func rightsUsed(user string) map[right]bool {
	GinkgoHelper()
	text, err := os.ReadFile(i.Cluster.AuditLog())
	Expect(err).NotTo(HaveOccurred())
	used := map[right]bool{}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		var event struct {
			Verb string
			User struct{ Username string }
			// ObjectRef is absent for what is no resource.
			ObjectRef      *struct{ APIGroup, Resource, Subresource string }
			ResponseStatus struct{ Code int }
		}
		// The last line may not be written to its end.
		if json.Unmarshal(lines.Bytes(), &event) != nil || event.ObjectRef == nil || event.User.Username != user {
			continue
		}
		resource := event.ObjectRef.Resource
		if event.ObjectRef.Subresource != "" {
			resource += "/" + event.ObjectRef.Subresource
		}
		used[right{event.Verb, event.ObjectRef.APIGroup, resource}] = true
	}
	return used
}
