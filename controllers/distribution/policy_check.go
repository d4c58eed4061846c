// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/policy"
)

// policyCheck evaluates policies for the ImagePrefetches of one pass. The webhook did so before each
// was stored, but policies, the labels of namespaces and the default change.
type policyCheck struct {
	fallback policy.Default
	policies []v1alpha1.PrefetchPolicy
	// version changes whenever a policy does.
	version string
	// namespaces are nil if everything is allowed.
	namespaces map[string]*corev1.Namespace
	memo       *policyMemo
}

// policyMemo keeps each verdict until something changes that it depends on, because every pass needs
// those of all ImagePrefetches.
type policyMemo map[types.UID]verdict

type verdict struct {
	generation                 int64
	namespaceVersion, policies string
	denial                     *blocker
}

// readPolicies reads the policies and namespaces from the cache.
func (r *Reconciler) readPolicies(ctx context.Context) (policyCheck, error) {
	check := policyCheck{fallback: r.DefaultPolicy, memo: &r.verdicts}
	var policies v1alpha1.PrefetchPolicyList
	if err := r.Client.List(ctx, &policies, client.UnsafeDisableDeepCopy); err != nil {
		return check, fmt.Errorf("list PrefetchPolicies from the cache: %w", err)
	}
	check.policies = policies.Items
	if len(check.policies) == 0 && check.fallback == policy.DefaultAllow {
		return check, nil
	}
	var namespaces corev1.NamespaceList
	if err := r.Client.List(ctx, &namespaces, client.UnsafeDisableDeepCopy); err != nil {
		return check, fmt.Errorf("list Namespaces from the cache: %w", err)
	}
	check.namespaces = make(map[string]*corev1.Namespace, len(namespaces.Items))
	for i := range namespaces.Items {
		check.namespaces[namespaces.Items[i].Name] = &namespaces.Items[i]
	}
	versions := make([]string, len(check.policies))
	for i := range check.policies {
		versions[i] = string(check.policies[i].UID) + "@" + check.policies[i].ResourceVersion
	}
	slices.Sort(versions)
	check.version = strings.Join(versions, " ")
	return check, nil
}

// canJudge reports whether the check has all that it needs for a prefetch. The cache may show a
// prefetch before its namespace, whose event then starts another pass.
func (c policyCheck) canJudge(object *v1alpha1.ImagePrefetch) bool {
	return c.namespaces == nil || c.namespaces[object.Namespace] != nil
}

// denial returns why policies deny a prefetch; nil if they do not.
func (c policyCheck) denial(object *v1alpha1.ImagePrefetch) *blocker {
	if c.namespaces == nil {
		return nil
	}
	namespace := c.namespaces[object.Namespace]
	next := verdict{generation: object.Generation, namespaceVersion: namespace.ResourceVersion, policies: c.version}
	if last, ok := (*c.memo)[object.UID]; ok {
		next.denial = last.denial
		if next == last {
			return last.denial
		}
		next.denial = nil
	}
	violations := policy.Evaluate(policy.Namespace{Name: namespace.Name, Labels: namespace.Labels}, &object.Spec, c.policies, c.fallback)
	if len(violations) > 0 {
		next.denial = &blocker{reason: v1alpha1.ReasonPolicyDenied, message: violations.ToAggregate().Error()}
	}
	if *c.memo == nil {
		*c.memo = policyMemo{}
	}
	(*c.memo)[object.UID] = next
	return next.denial
}

// keep drops all ImagePrefetches that are not alive.
func (m policyMemo) keep(alive map[types.UID]bool) {
	maps.DeleteFunc(m, func(uid types.UID, _ verdict) bool { return !alive[uid] })
}
