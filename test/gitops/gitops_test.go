// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package gitops asks the libraries of GitOps tools what they make of a held
// Deployment. testdata has what the API server shows; test/gate keeps it true. The
// answers are a table in docs/gate.md.
package gitops

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/argoproj/argo-cd/gitops-engine/pkg/diff"
	"github.com/argoproj/argo-cd/gitops-engine/pkg/health"
	"helm.sh/helm/v3/pkg/kube"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/resource"
	"k8s.io/client-go/kubernetes/fake"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
	"sigs.k8s.io/yaml"
)

func TestWhatGitOpsToolsSay(t *testing.T) {
	for _, tt := range []struct {
		shown string
		// argo is Argo CD's health, kstatus that of Flux and of Helm 4, and helm whether
		// Helm 3 goes on waiting with --wait.
		argo    health.HealthStatusCode
		kstatus status.Status
		helm    bool
	}{
		{"running", health.HealthStatusHealthy, status.CurrentStatus, true},
		{"held-at-creation", health.HealthStatusSuspended, status.InProgressStatus, true},
		{"held", health.HealthStatusSuspended, status.InProgressStatus, true},
		{"released", health.HealthStatusProgressing, status.InProgressStatus, false},
	} {
		t.Run(tt.shown, func(t *testing.T) {
			object, deployment := read(t, tt.shown)
			argo, err := health.GetResourceHealth(object, nil)
			if err != nil {
				t.Fatal(err)
			}
			if argo.Status != tt.argo {
				t.Errorf("Argo CD says %s (%s), want %s", argo.Status, argo.Message, tt.argo)
			}
			flux, err := status.Compute(object)
			if err != nil {
				t.Fatal(err)
			}
			if flux.Status != tt.kstatus {
				t.Errorf("kstatus says %s (%s), want %s", flux.Status, flux.Message, tt.kstatus)
			}
			// As Helm's own client has it made.
			checker := kube.NewReadyChecker(fake.NewClientset(deployment, replicaSet(deployment)), t.Logf, kube.PausedAsReady(true))
			helm, err := checker.IsReady(t.Context(), &resource.Info{Namespace: deployment.Namespace, Name: deployment.Name, Object: deployment})
			if err != nil {
				t.Fatal(err)
			}
			if helm != tt.helm {
				t.Errorf("Helm 3 says ready: %t, want %t", helm, tt.helm)
			}
		})
	}
}

// TestArgoCDComparesOnlyWhatTheManifestSays: Argo CD calls an application OutOfSync,
// and with selfHeal applies it again and again, where its manifest differs from what
// is stored.
func TestArgoCDComparesOnlyWhatTheManifestSays(t *testing.T) {
	for _, tt := range []struct {
		manifest  string
		edit      func(spec map[string]any)
		outOfSync bool
	}{
		{"says nothing of paused", func(map[string]any) {}, false},
		{"says paused: false", func(spec map[string]any) { spec["paused"] = false }, true},
	} {
		live, _ := read(t, "held")
		manifest := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "apps/v1", "kind": "Deployment",
			"metadata": map[string]any{"namespace": "team", "name": "app", "annotations": map[string]any{"sluice.dev/prefetch": "app"}},
			"spec": map[string]any{
				"selector": map[string]any{"matchLabels": map[string]any{"app": "app"}},
				"template": map[string]any{
					"metadata": map[string]any{"labels": map[string]any{"app": "app"}},
					"spec":     map[string]any{"containers": []any{map[string]any{"name": "main", "image": "registry.example.com/org/app:b"}}},
				},
			},
		}}
		tt.edit(manifest.Object["spec"].(map[string]any))
		applied, err := manifest.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		annotations := live.GetAnnotations()
		annotations[corev1.LastAppliedConfigAnnotation] = string(applied)
		live.SetAnnotations(annotations)
		result, err := diff.Diff(manifest, live)
		if err != nil {
			t.Fatal(err)
		}
		if result.Modified != tt.outOfSync {
			t.Errorf("a manifest that %s: out of sync %t, want %t\n%s\n%s", tt.manifest, result.Modified, tt.outOfSync, result.NormalizedLive, result.PredictedLive)
		}
	}
}

func read(t *testing.T, name string) (*unstructured.Unstructured, *appsv1.Deployment) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("testdata", name+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if content, err = yaml.YAMLToJSON(content); err != nil {
		t.Fatal(err)
	}
	object := &unstructured.Unstructured{}
	if err := object.UnmarshalJSON(content); err != nil {
		t.Fatal(err)
	}
	deployment := &appsv1.Deployment{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, deployment); err != nil {
		t.Fatal(err)
	}
	deployment.UID = "uid"
	return object, deployment
}

// replicaSet is the current one, as the Deployment's status has it.
func replicaSet(d *appsv1.Deployment) *appsv1.ReplicaSet {
	yes := true
	return &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: d.Namespace, Name: d.Name + "-1", Labels: d.Spec.Template.Labels,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "Deployment", Name: d.Name, UID: d.UID, Controller: &yes}}},
		Spec:   appsv1.ReplicaSetSpec{Selector: d.Spec.Selector, Template: d.Spec.Template},
		Status: appsv1.ReplicaSetStatus{ReadyReplicas: d.Status.UpdatedReplicas - d.Status.UnavailableReplicas},
	}
}
