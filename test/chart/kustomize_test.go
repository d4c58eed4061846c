// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package chart_test

import (
	"maps"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/test/cluster"
)

// `kubectl apply -k config` installs what Helm installs, and the CRDs and the namespace.
func TestKustomizeIsTheChart(t *testing.T) {
	want := plain(render(t, ""), func(hook string) bool { return hook == "" })
	for _, name := range []string{"imageprefetches", "nodeimagesets", "prefetchpolicies"} {
		maps.Copy(want, plain(readAll(t, "../../config/crd/sluice.dev_"+name+".yaml"), func(string) bool { return true }))
	}
	got := plain(kustomize(t, "../../config"), func(string) bool { return true })
	if labels, _ := got["Namespace/sluice-system"]["metadata"].(map[string]any)["labels"].(map[string]any); labels["pod-security.kubernetes.io/enforce"] != "privileged" {
		t.Error("the namespace would not admit the agents")
	}
	delete(got, "Namespace/sluice-system")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("config/ differs from the chart: run hack/chart-sync.sh\n%s", diff)
	}
}

func TestKustomizeUninstallIsTheHook(t *testing.T) {
	want := plain(render(t, ""), func(hook string) bool { return hook == "pre-delete" })
	got := plain(kustomize(t, "../../config/uninstall"), func(string) bool { return true })
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("config/uninstall differs from the chart's hook: run hack/chart-sync.sh\n%s", diff)
	}
	if len(want) == 0 {
		t.Error("there is no hook")
	}
}

func kustomize(t *testing.T, dir string, flags ...string) manifest {
	t.Helper()
	programs, err := cluster.Build(t.Context(), t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	dependOn(t, "../../config")
	var said strings.Builder
	command := exec.CommandContext(t.Context(), filepath.Join(programs.AssetsDir, "kubectl"), append([]string{"kustomize", dir}, flags...)...)
	command.Stderr = &said
	text, err := command.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, said.String())
	}
	return parseAll(t, strings.NewReader(string(text)))
}

// plain are the objects that are chosen by their hook, by kind and name, without what
// Helm alone knows.
func plain(all manifest, chosen func(hook string) bool) map[string]map[string]any {
	objects := map[string]map[string]any{}
	for _, object := range all {
		if !chosen(object.GetAnnotations()["helm.sh/hook"]) {
			continue
		}
		helms := func(key, value string) bool {
			return strings.HasPrefix(key, "helm.sh/") || key == "app.kubernetes.io/managed-by"
		}
		labels, annotations := object.GetLabels(), object.GetAnnotations()
		maps.DeleteFunc(labels, helms)
		maps.DeleteFunc(annotations, helms)
		object.SetLabels(labels)
		if len(annotations) == 0 {
			annotations = nil // absent, and not empty
		}
		object.SetAnnotations(annotations)
		objects[object.GetKind()+"/"+object.GetName()] = object.Object
	}
	return objects
}
