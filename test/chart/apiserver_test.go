// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package chart_test

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/nodeagent"
)

// everything are values that render every template.
const everything = `
policies:
  team-a:
    namespaceSelector: {matchLabels: {team: a}}
    allowedRepositories: [ghcr.io/org/**]
networkPolicy: {enabled: true}
metrics: {dashboard: {enabled: true}}
image: {pullSecrets: [{name: registry}]}
agent:
  credentialProvider: {config: /etc/providers.d, binDir: /opt/providers, files: [/etc/kubernetes/azure.json]}
`

// The API server takes every object as it is, without a field that it does not know.
// Those of the Prometheus operator are not its own, and are left out.
func TestAPIServerTakesTheChart(t *testing.T) {
	certManager := filepath.Join(module(t, certManagerDir, "github.com/cert-manager/cert-manager"), "deploy", "crds")
	_, c, _ := apiServer(t, filepath.Join(chartDir, "crds"), certManager)
	strict := client.WithFieldValidation(c, metav1.FieldValidationStrict)
	if err := c.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}); err != nil {
		t.Fatal(err)
	}
	for _, values := range append(slices.Collect(maps.Values(distributions(t))),
		"",
		everything,
		"certificate: {source: SelfManaged}",
		"{agent: {hostNetwork: true, seLinuxOptions: {type: spc_t}}, certificate: {issuerRef: {name: ours}}}",
	) {
		for _, object := range render(t, values) {
			if err := strict.Create(t.Context(), object, client.DryRunAll); err != nil {
				t.Errorf("%s %s with %q: %v", object.GetKind(), object.GetName(), values, err)
			}
		}
	}
}

// What an agent may do is decided by the API server, for a token that names the node:
// by RBAC and by the ValidatingAdmissionPolicy, as the chart brings them.
func TestAgentMayAnswerForItsNodeOnly(t *testing.T) {
	config, admin, _ := apiServer(t, filepath.Join(chartDir, "crds"))
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(admin.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}))
	for _, object := range render(t, "") {
		switch object.GetKind() {
		case "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding":
			must(admin.Create(ctx, object))
		}
	}
	scheme := runtime.NewScheme()
	must(clientgoscheme.AddToScheme(scheme))
	must(v1alpha1.AddToScheme(scheme))
	typed, err := client.New(config, client.Options{Scheme: scheme})
	must(err)
	// Only the controller decides what nodes are to have, whatever rights others have.
	controller, err := client.New(impersonate(config, "system:serviceaccount:"+namespace+":sluice-controller"), client.Options{Scheme: scheme})
	must(err)
	must(typed.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "registry"}}))
	for _, name := range []string{"node-a", "node-b"} {
		must(typed.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}))
		must(controller.Create(ctx, &v1alpha1.NodeImageSet{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.NodeImageSetSpec{NodeName: name}}))
	}
	agent := agentOn(t, config, typed, scheme, namespace, "node-a")
	own := &v1alpha1.NodeImageSet{ObjectMeta: metav1.ObjectMeta{Name: "node-a"}}
	others := &v1alpha1.NodeImageSet{ObjectMeta: metav1.ObjectMeta{Name: "node-b"}}
	status := client.RawPatch("application/merge-patch+json", []byte(`{"status":{"observedGeneration":1}}`))
	spec := client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"imageSet":[{"name":"docker.io/library/a:b"}]}}`))
	policyIsInForce(t, agent, others, status)

	var sets v1alpha1.NodeImageSetList
	must(agent.List(ctx, &sets, client.MatchingFields{"metadata.name": own.Name}))
	if len(sets.Items) != 1 {
		t.Errorf("the agent sees %d NodeImageSets of its own", len(sets.Items))
	}
	must(agent.Status().Patch(ctx, own, status))
	for _, name := range []string{"sluice-controller-ca", "other"} {
		must(typed.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Data: map[string]string{"ca.crt": name}}))
	}
	ca, err := nodeagent.CAReader(agent, client.ObjectKey{Namespace: namespace, Name: "sluice-controller-ca"})(ctx)
	if err != nil || string(ca) != "sluice-controller-ca" {
		t.Errorf("the agent reads %q as the CA, %v", ca, err)
	}

	for what, try := range map[string]func() error{
		"answer for another node":         func() error { return agent.Status().Patch(ctx, others, status) },
		"change what its node is to have": func() error { return agent.Patch(ctx, own.DeepCopy(), spec) },
		"change what another node has":    func() error { return agent.Patch(ctx, others.DeepCopy(), spec) },
		"delete its NodeImageSet":         func() error { return agent.Delete(ctx, own.DeepCopy()) },
		"make a NodeImageSet":             func() error { return agent.Create(ctx, others.DeepCopy()) },
		"read a Secret": func() error {
			return agent.Get(ctx, client.ObjectKey{Namespace: namespace, Name: "registry"}, &corev1.Secret{})
		},
		"read another ConfigMap": func() error {
			return agent.Get(ctx, client.ObjectKey{Namespace: namespace, Name: "other"}, &corev1.ConfigMap{})
		},
		"list Secrets":          func() error { return agent.List(ctx, &corev1.SecretList{}) },
		"list Pods":             func() error { return agent.List(ctx, &corev1.PodList{}) },
		"read its Node":         func() error { return agent.Get(ctx, client.ObjectKey{Name: "node-a"}, &corev1.Node{}) },
		"read ImagePrefetches":  func() error { return agent.List(ctx, &v1alpha1.ImagePrefetchList{}) },
		"read PrefetchPolicies": func() error { return agent.List(ctx, &v1alpha1.PrefetchPolicyList{}) },
		"issue itself a token for a node": func() error {
			account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "sluice-agent"}}
			return agent.SubResource("token").Create(ctx, account, &authenticationv1.TokenRequest{})
		},
	} {
		if err := try(); !apierrors.IsForbidden(err) {
			t.Errorf("the agent may %s: %v", what, err)
		}
	}

	// A token that names no node is worth nothing, even if somebody makes one.
	nobody := agentOn(t, config, typed, scheme, namespace, "")
	if err := nobody.Status().Patch(ctx, own, status); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "(none)") {
		t.Errorf("a token without a node may answer for one: %v", err)
	}
}

func impersonate(config *rest.Config, user string) *rest.Config {
	config = rest.CopyConfig(config)
	config.Impersonate.UserName = user
	return config
}

// agentOn is a client with a token of the agent's account in the namespace, bound to the node.
func agentOn(t *testing.T, config *rest.Config, admin client.Client, scheme *runtime.Scheme, namespace, node string) client.Client {
	t.Helper()
	request := &authenticationv1.TokenRequest{}
	if node != "" {
		var object corev1.Node
		if err := admin.Get(t.Context(), client.ObjectKey{Name: node}, &object); err != nil {
			t.Fatal(err)
		}
		request.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Node", Name: node, UID: object.UID}
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "sluice-agent"}}
	if err := admin.SubResource("token").Create(t.Context(), account, request); err != nil {
		t.Fatal(err)
	}
	anonymous := rest.AnonymousClientConfig(config)
	anonymous.BearerToken = request.Status.Token
	c, err := client.New(anonymous, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// policyIsInForce waits until the API server has taken up the policy, which it does a
// moment after it is written.
func policyIsInForce(t *testing.T, agent client.Client, others *v1alpha1.NodeImageSet, status client.Patch) {
	t.Helper()
	wait(t, "the policy is not in force", func() bool {
		return apierrors.IsForbidden(agent.Status().Patch(t.Context(), others.DeepCopy(), status))
	})
}
