// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package chart_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/duration"
	"github.com/sluice-dev/sluice/internal/hold"
)

// Each key of the schema has a default, and is described with it where an administrator reads.
func TestEveryValueIsDescribedWithItsDefault(t *testing.T) {
	var schema, values map[string]any
	for name, into := range map[string]*map[string]any{"values.schema.json": &schema, "values.yaml": &values} {
		text, err := os.ReadFile(filepath.Join(chartDir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal(text, into); err != nil {
			t.Fatal(err)
		}
	}
	described := describedValues(t)
	var walk func(prefix string, schema, values map[string]any)
	walk = func(prefix string, schema, values map[string]any) {
		if schema["additionalProperties"] != false {
			t.Errorf("%s takes unknown keys", prefix)
		}
		for key, property := range schema["properties"].(map[string]any) {
			path := strings.TrimPrefix(prefix+"."+key, ".")
			if path == "global" { // Helm's own
				continue
			}
			value, ok := values[key]
			if !ok {
				t.Errorf("values.yaml lacks %s", path)
			}
			nested, _ := property.(map[string]any)["properties"].(map[string]any)
			if inner, ok := value.(map[string]any); ok && nested != nil && len(inner) > 0 && described[path] == nil {
				walk(path, property.(map[string]any), inner)
				continue
			}
			want, err := json.Marshal(value)
			if err != nil {
				t.Fatal(err)
			}
			if got := string(described[path]); got != string(want) {
				t.Errorf("the default of %s is %s, but in docs/install.md it is %s", path, want, got)
			}
			delete(described, path)
		}
	}
	walk("", schema, values)
	for path := range described {
		t.Errorf("docs/install.md describes %s, which is no value", path)
	}
}

// describedValues are the defaults in docs/install.md under "Values", as JSON, by value. A row
// | `value`, `value` | `default`, `default` | meaning | may have one default for all its values.
func describedValues(t *testing.T) map[string][]byte {
	t.Helper()
	guide, err := os.ReadFile("../../docs/install.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(guide), "\n## Values\n")
	section, _, _ = strings.Cut(section, "\n## ")
	described := make(map[string][]byte)
	quoted := regexp.MustCompile("`(.*?)`")
	for _, row := range regexp.MustCompile("(?m)^\\| (`[a-z].*?`) \\| (`.*?`) \\|").FindAllStringSubmatch(section, -1) {
		names, defaults := quoted.FindAllStringSubmatch(row[1], -1), quoted.FindAllStringSubmatch(row[2], -1)
		for i, name := range names {
			text := defaults[min(i, len(defaults)-1)][1]
			if described[name[1]], err = yaml.YAMLToJSON([]byte(text)); err != nil {
				t.Errorf("docs/install.md: the default of %s: %v", name[1], err)
			}
		}
	}
	return described
}

// What the schema calls a default, the code does, too.
func TestDefaultsOfTheAPI(t *testing.T) {
	specOf := func(resource string) apiextensionsv1.JSONSchemaProps {
		crds := readAll(t, "../../config/crd/sluice.dev_"+resource+".yaml")
		crd := as[apiextensionsv1.CustomResourceDefinition](t, crds, "CustomResourceDefinition", resource+".sluice.dev")
		return crd.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"]
	}
	entry := specOf("nodeimagesets").Properties["imageSet"].Items.Schema
	for where, properties := range map[string]map[string]apiextensionsv1.JSONSchemaProps{
		"an ImagePrefetch":           specOf("imageprefetches").Properties,
		"an entry of a NodeImageSet": entry.Properties,
	} {
		got, want := "unset", fmt.Sprint(v1alpha1.DefaultImageDownloadRetryLimit)
		if set := properties["imageDownloadRetryLimit"].Default; set != nil {
			got = string(set.Raw)
		}
		if got != want {
			t.Errorf("imageDownloadRetryLimit of %s is %s by default in the schema, and %s in the code", where, got, want)
		}
	}

	guide, err := os.ReadFile("../../docs/gate.md")
	if err != nil {
		t.Fatal(err)
	}
	gated := &metav1.ObjectMeta{Annotations: map[string]string{v1alpha1.PrefetchAnnotation: "app"}}
	settings, _ := hold.SettingsOf(gated)
	for annotation, want := range map[string]string{
		v1alpha1.HoldTimeoutAnnotation: duration.Format(settings.Timeout),
		v1alpha1.OnTimeoutAnnotation:   string(settings.OnTimeout),
	} {
		if !regexp.MustCompile(annotation + `.*\(default ` + want + `\)`).Match(guide) {
			t.Errorf("docs/gate.md does not say that %s is %s by default", annotation, want)
		}
	}
}
