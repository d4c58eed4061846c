// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package chart_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"sigs.k8s.io/yaml"
)

// The Prometheus operator knows every field.
func TestMonitoringObjectsAreOfTheirKinds(t *testing.T) {
	rendered := render(t, "metrics: {podMonitor: {enabled: true}, prometheusRule: {enabled: true}}")
	decode[monitoringv1.PodMonitor](t, rendered, "PodMonitor", "sluice-agent")
	decode[monitoringv1.PodMonitor](t, rendered, "PodMonitor", "sluice-controller")
	rules := decode[monitoringv1.PrometheusRule](t, rendered, "PrometheusRule", "sluice")
	for _, group := range rules.Spec.Groups {
		for _, rule := range group.Rules {
			if rule.Alert == "" || rule.Expr.String() == "" || rule.Annotations["summary"] == "" {
				t.Errorf("%s: %+v", group.Name, rule)
			}
		}
	}
}

// decode is an object as its kind's own Go type, which must have all its fields.
func decode[T any](t *testing.T, m manifest, kind, name string) (object T) {
	t.Helper()
	text, err := yaml.Marshal(m.find(kind, name).Object)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.UnmarshalStrict(text, &object); err != nil {
		t.Errorf("%s %s: %v", kind, name, err)
	}
	return object
}

// Alerts and dashboard ask for metrics that there are.
func TestMonitoringNamesRealMetrics(t *testing.T) {
	defined := map[string]bool{}
	for _, dir := range []string{"controllers", "nodeagent", "webhook"} {
		err := filepath.WalkDir(filepath.Join("../..", dir), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || filepath.Ext(path) != ".go" {
				return err
			}
			text, err := os.ReadFile(path)
			for _, match := range regexp.MustCompile(`Name: +"(sluice_[a-z_]+)"`).FindAllStringSubmatch(string(text), -1) {
				defined[match[1]] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"alerts.yaml", "dashboard.json"} {
		text, err := os.ReadFile(filepath.Join(chartDir, "files", file))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range regexp.MustCompile(`sluice_[a-z_]+`).FindAllString(string(text), -1) {
			if !defined[strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_count")] {
				t.Errorf("%s asks for %s, which nobody counts", file, name)
			}
		}
	}
}

// Each alert leads to a section of the page that says what to do.
func TestAlertsHaveRunbooks(t *testing.T) {
	alerts, err := os.ReadFile(filepath.Join(chartDir, "files", "alerts.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	guide, err := os.ReadFile("../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(string(alerts), -1)
	if len(names) == 0 {
		t.Fatal("no alerts")
	}
	for _, name := range names {
		if !strings.Contains(string(alerts), "docs/troubleshooting.md#"+strings.ToLower(name[1])+"\n") {
			t.Errorf("%s names no runbook of its own", name[1])
		}
		if !strings.Contains(string(guide), "### "+name[1]+"\n") {
			t.Errorf("docs/troubleshooting.md has no section %s", name[1])
		}
	}
}
