// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package chart_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"

	"github.com/sluice-dev/sluice/test/cluster"
)

const (
	chartDir  = "../../charts/sluice"
	namespace = "sluice-system"
)

var buildHelm = sync.OnceValues(func() (string, error) {
	return cluster.Helm(context.Background(), func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) })
})

// dependOn reads the files that another program is going to read, so that the Go
// command knows that results depend on them and does not take those from its cache.
func dependOn(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		_, err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// helm runs helm and returns what it printed.
func helm(t *testing.T, args ...string) (string, error) {
	t.Helper()
	return helmWith(t, "", args...)
}

// helmWith runs helm with something to read.
func helmWith(t *testing.T, input string, args ...string) (string, error) {
	t.Helper()
	dependOn(t, chartDir)
	path, err := buildHelm()
	if err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), path, args...)
	home := t.TempDir()
	command.Env = append(os.Environ(), "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home)
	command.Stdin = strings.NewReader(input)
	out, err := command.CombinedOutput()
	return string(out), err
}

// template renders the chart with the given values, as YAML.
func template(t *testing.T, values string) (string, error) {
	t.Helper()
	return helmWith(t, values, "template", "sluice", chartDir, "--namespace", namespace, "--kube-version", "1.36.0", "--values", "-")
}

// manifest are the objects of a rendered chart, in Helm's order.
type manifest []*unstructured.Unstructured

func render(t *testing.T, values string) manifest {
	t.Helper()
	text, err := template(t, values)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return parseAll(t, strings.NewReader(text))
}

func parseAll(t *testing.T, text io.Reader) manifest {
	t.Helper()
	var all manifest
	for decoder := utilyaml.NewYAMLOrJSONDecoder(text, 4096); ; {
		object := &unstructured.Unstructured{}
		if err := decoder.Decode(&object.Object); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		if len(object.Object) > 0 {
			all = append(all, object)
		}
	}
}

func readAll(t *testing.T, path string) manifest {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return parseAll(t, bytes.NewReader(text))
}

// find returns the object of the kind and name, or nil.
func (m manifest) find(kind, name string) *unstructured.Unstructured {
	for _, object := range m {
		if object.GetKind() == kind && object.GetName() == name {
			return object
		}
	}
	return nil
}

// as decodes the object of the kind and name, strictly.
func as[T any](t *testing.T, m manifest, kind, name string) T {
	t.Helper()
	var typed T
	object := m.find(kind, name)
	if object == nil {
		t.Fatalf("there is no %s %s", kind, name)
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(object.Object, &typed, true); err != nil {
		t.Fatalf("%s %s: %v", kind, name, err)
	}
	return typed
}

// pods are the Pod templates of all workloads by "Kind/name".
func (m manifest) pods(t *testing.T) map[string]corev1.PodTemplateSpec {
	t.Helper()
	pods := map[string]corev1.PodTemplateSpec{}
	for _, object := range m {
		key := object.GetKind() + "/" + object.GetName()
		switch object.GetKind() {
		case "Deployment":
			pods[key] = as[appsv1.Deployment](t, m, object.GetKind(), object.GetName()).Spec.Template
		case "DaemonSet":
			pods[key] = as[appsv1.DaemonSet](t, m, object.GetKind(), object.GetName()).Spec.Template
		case "Job":
			pods[key] = as[batchv1.Job](t, m, object.GetKind(), object.GetName()).Spec.Template
		}
	}
	return pods
}

// flags are the arguments of the first container of a workload.
func (m manifest) flags(t *testing.T, workload string) []string {
	t.Helper()
	return m.pods(t)[workload].Spec.Containers[0].Args
}
