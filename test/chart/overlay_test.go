// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package chart_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// otherNamespace is that of the overlay in docs/install.md.
const otherNamespace = "images"

// overlay is what kustomize makes of a folder of the repository by the overlay in docs/install.md.
func overlay(t *testing.T, folder string) manifest {
	t.Helper()
	guide, err := os.ReadFile("../../docs/install.md")
	if err != nil {
		t.Fatal(err)
	}
	example := regexp.MustCompile("(?s)```yaml\n([^`]*kind: Kustomization.*?)```").FindSubmatch(guide)
	if example == nil {
		t.Fatal("docs/install.md has no overlay")
	}
	dir := t.TempDir()
	absolute, err := filepath.Abs("../../" + folder)
	if err != nil {
		t.Fatal(err)
	}
	relative, err := filepath.Rel(dir, absolute)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(example[1]), "[config]", "["+relative+"]", 1)
	if folder == "config/uninstall" {
		text, _, _ = strings.Cut(text, "replacements:") // which name what is not there
	}
	write(t, dir, "kustomization.yaml", text)
	return kustomize(t, dir)
}

func TestOverlayNamesNothingInTheOldNamespace(t *testing.T) {
	for _, folder := range []string{"config", "config/uninstall"} {
		objects := overlay(t, folder)
		if !slices.ContainsFunc(objects, func(o *unstructured.Unstructured) bool { return o.GetNamespace() == otherNamespace }) {
			t.Errorf("nothing of %s is in %s", folder, otherNamespace)
		}
		for _, object := range objects {
			text, err := object.MarshalJSON()
			if err != nil {
				t.Fatal(err)
			}
			if at := strings.Index(string(text), namespace); at >= 0 {
				t.Errorf("%s %s still names %s: …%s…", object.GetKind(), object.GetName(), namespace, text[max(0, at-60):min(len(text), at+60)])
			}
		}
	}
}

// The API server knows the accounts of the controller and of the agents in whatever namespace they are.
func TestAccountsAreKnownInAnotherNamespace(t *testing.T) {
	config, admin, _ := apiServer(t, filepath.Join(chartDir, "crds"))
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, object := range overlay(t, "config") {
		switch object.GetKind() {
		case "Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding":
			must(admin.Create(ctx, object))
		}
	}
	scheme := runtime.NewScheme()
	must(clientgoscheme.AddToScheme(scheme))
	must(v1alpha1.AddToScheme(scheme))
	as := func(user string, groups ...string) client.Client {
		t.Helper()
		config := impersonate(config, user)
		config.Impersonate.Groups = groups
		c, err := client.New(config, client.Options{Scheme: scheme})
		must(err)
		return c
	}
	typed := as("administrator", "system:masters")
	set := func(node string) *v1alpha1.NodeImageSet {
		return &v1alpha1.NodeImageSet{ObjectMeta: metav1.ObjectMeta{Name: node}, Spec: v1alpha1.NodeImageSetSpec{NodeName: node}}
	}
	wait(t, "the policy of the spec is not in force", func() bool {
		return apierrors.IsForbidden(typed.Create(ctx, set("probe"), client.DryRunAll))
	})
	for _, node := range []string{"node-a", "node-b"} {
		must(typed.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}))
		must(as("system:serviceaccount:"+otherNamespace+":sluice-controller").Create(ctx, set(node)))
	}
	// Anybody may call an account of theirs as they like; they cannot give it the rights.
	for _, user := range []string{"system:serviceaccount:tenant:sluice-controller", "system:serviceaccount:" + namespace + ":sluice-controller"} {
		if err := as(user).Create(ctx, set("node-c")); !apierrors.IsForbidden(err) {
			t.Errorf("%s may say what a node is to have: %v", user, err)
		}
	}

	agent := agentOn(t, config, typed, scheme, otherNamespace, "node-a")
	status := client.RawPatch("application/merge-patch+json", []byte(`{"status":{"observedGeneration":1}}`))
	policyIsInForce(t, agent, set("node-b"), status)
	must(agent.Status().Patch(ctx, set("node-a"), status))
}
