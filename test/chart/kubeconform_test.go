// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package chart_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// Every rendered object conforms to the schema of its kind: Kubernetes' own, as its
// module has it, cert-manager's and ours. There are none of the Prometheus operator's.
func TestKubeconform(t *testing.T) {
	dir := t.TempDir()
	writeKubernetesSchemas(t, dir)
	certManager := filepath.Join(module(t, certManagerDir, "github.com/cert-manager/cert-manager"), "deploy", "crds")
	for _, crds := range []string{filepath.Join(chartDir, "crds"), certManager} {
		writeCRDSchemas(t, dir, crds)
	}
	for _, values := range append(slices.Collect(maps.Values(distributions(t))), "", everything, "certificate: {source: SelfManaged}") {
		text, err := template(t, values)
		if err != nil {
			t.Fatal(text)
		}
		conform := exec.CommandContext(t.Context(), "go", "tool", "-modfile=../../tools/go.mod", "kubeconform", "-strict", "-summary",
			"-schema-location", filepath.Join(dir, "{{ .Group }}_{{ .ResourceAPIVersion }}_{{ .ResourceKind }}.json"), "-")
		conform.Stdin = strings.NewReader(text)
		if out, err := conform.CombinedOutput(); err != nil {
			t.Errorf("with %q: %v\n%s", values, err, out)
		}
	}
}

type schema = map[string]any

// writeSchema writes the schema of a kind under the name by which it is looked for.
func writeSchema(t *testing.T, dir, group, version, kind string, content schema) {
	t.Helper()
	text, err := json.Marshal(content)
	if err != nil {
		t.Fatal(err)
	}
	// kubeconform takes the version of the core group for its name.
	name := fmt.Sprintf("%s_%s_%s.json", cmp.Or(group, version), version, strings.ToLower(kind))
	if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// writeKubernetesSchemas takes apart the OpenAPI document of Kubernetes.
func writeKubernetesSchemas(t *testing.T, dir string) {
	t.Helper()
	source := module(t, "../cluster/binaries/kubernetes", "k8s.io/kubernetes")
	text, err := os.ReadFile(filepath.Join(source, "api", "openapi-spec", "swagger.json"))
	if err != nil {
		t.Fatal(err)
	}
	var document struct{ Definitions map[string]any }
	if err := json.Unmarshal(text, &document); err != nil {
		t.Fatal(err)
	}
	strict(document.Definitions)
	for name, definition := range document.Definitions {
		kinds, _ := definition.(schema)["x-kubernetes-group-version-kind"].([]any)
		if len(kinds) != 1 { // options and lists, which are of every group
			continue
		}
		kind := kinds[0].(schema)
		writeSchema(t, dir, kind["group"].(string), kind["version"].(string), kind["kind"].(string),
			schema{"$ref": "#/definitions/" + name, "definitions": reachable(document.Definitions, name)})
	}
}

// reachable are the definitions that the named one refers to, and it itself.
func reachable(all map[string]any, name string) map[string]any {
	found := map[string]any{}
	var visit func(node any)
	visit = func(node any) {
		switch node := node.(type) {
		case schema:
			if ref, ok := node["$ref"].(string); ok {
				to := strings.TrimPrefix(ref, "#/definitions/")
				if found[to] == nil {
					found[to] = all[to]
					visit(all[to])
				}
			}
			for _, child := range node {
				visit(child)
			}
		case []any:
			for _, child := range node {
				visit(child)
			}
		}
	}
	visit(schema{"$ref": "#/definitions/" + name})
	return found
}

func writeCRDSchemas(t *testing.T, dir, crds string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(crds, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("find CRDs in %s: %v", crds, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var crd struct {
			Spec struct {
				Group    string
				Names    struct{ Kind string }
				Versions []struct {
					Name   string
					Schema struct{ OpenAPIV3Schema schema }
				}
			}
		}
		if err := yaml.Unmarshal(text, &crd); err != nil {
			t.Fatal(err)
		}
		for _, version := range crd.Spec.Versions {
			strict(version.Schema.OpenAPIV3Schema)
			writeSchema(t, dir, crd.Spec.Group, version.Name, crd.Spec.Names.Kind, version.Schema.OpenAPIV3Schema)
		}
	}
}

// strict has objects with known fields take no others, and says in JSON schema's words
// what may be a number or a string.
func strict(node any) {
	switch node := node.(type) {
	case schema:
		if node["format"] == "int-or-string" {
			delete(node, "format")
			node["type"] = []string{"integer", "string"}
		}
		_, fields := node["properties"].(schema)
		if fields && node["additionalProperties"] == nil && node["x-kubernetes-preserve-unknown-fields"] != true {
			node["additionalProperties"] = false
		}
		for _, child := range node {
			strict(child)
		}
	case []any:
		for _, child := range node {
			strict(child)
		}
	}
}
