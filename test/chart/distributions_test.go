// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package chart_test

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// distributions are the chart's files of values for a distribution of Kubernetes, by name.
func distributions(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(chartDir, "values-*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("found %q, %v", files, err)
	}
	texts := map[string]string{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		texts[filepath.Base(file)] = string(text)
	}
	return texts
}

// Every file is found in the chart and in the guide, says nothing that is so without it, and ends up
// in the agent.
func TestDistributions(t *testing.T) {
	defaults, err := os.ReadFile(filepath.Join(chartDir, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	guide, err := os.ReadFile("../../docs/compatibility.md")
	if err != nil {
		t.Fatal(err)
	}
	packaged := packagedFiles(t)
	for name, text := range distributions(t) {
		t.Run(name, func(t *testing.T) {
			if !slices.Contains(packaged, "sluice/"+name) {
				t.Errorf("the packaged chart lacks it: %q", packaged)
			}
			if !strings.Contains(string(guide), "`"+name+"`") {
				t.Error("docs/compatibility.md does not name it")
			}
			values, own := parseValues(t, string(defaults)), parseValues(t, text)
			override(t, "", values, own)
			checkPaths(t, render(t, text), values)
		})
	}
}

func parseValues(t *testing.T, text string) (values map[string]any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(text), &values); err != nil {
		t.Fatal(err)
	}
	return values
}

// override sets the values of a file, and finds those that are so anyway.
func override(t *testing.T, prefix string, values, own map[string]any) {
	t.Helper()
	for key, value := range own {
		inner, isMap := value.(map[string]any)
		if defaults, ok := values[key].(map[string]any); isMap && ok && len(defaults) > 0 {
			override(t, prefix+key+".", defaults, inner)
			continue
		}
		if equality.Semantic.DeepEqual(value, values[key]) {
			t.Errorf("%s%s is %v by default", prefix, key, value)
		}
		values[key] = value
	}
}

// checkPaths compares what the agent mounts and is told with the values.
func checkPaths(t *testing.T, rendered manifest, values map[string]any) {
	t.Helper()
	text := func(keys ...string) string {
		value, _, err := unstructured.NestedString(values, keys...)
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
	trustDirs, _, err := unstructured.NestedStringSlice(values, "agent", "trustDirs")
	if err != nil {
		t.Fatal(err)
	}
	socket, certsDir := text("agent", "containerd", "socket"), text("agent", "containerd", "certsDir")
	flags := rendered.flags(t, agentPod)
	for _, flag := range []string{"--containerd-address=" + socket, "--registry-config-path=" + certsDir} {
		if !slices.Contains(flags, flag) {
			t.Errorf("the agent lacks %s: %v", flag, flags)
		}
	}
	want := slices.Concat([]string{path.Dir(socket), text("agent", "containerd", "root"), "/run/sluice"}, strings.Split(certsDir, ":"), trustDirs)
	pod := rendered.pods(t)[agentPod].Spec
	var mounted []string
	for _, volume := range pod.Volumes {
		if volume.HostPath == nil {
			continue
		}
		mounted = append(mounted, volume.HostPath.Path)
		for _, mount := range pod.Containers[0].VolumeMounts {
			if mount.Name == volume.Name && mount.MountPath != volume.HostPath.Path {
				t.Errorf("%s is at %s in the Pod", volume.HostPath.Path, mount.MountPath)
			}
		}
	}
	slices.Sort(want)
	slices.Sort(mounted)
	if !slices.Equal(mounted, want) {
		t.Errorf("the agent mounts %q, want %q", mounted, want)
	}
}

// packagedFiles are the names in the archive of the chart, which is what users pull.
func packagedFiles(t *testing.T) (names []string) {
	t.Helper()
	dir := t.TempDir()
	if out, err := helm(t, "package", chartDir, "--version=1.0.0", "--destination", dir); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	file, err := os.Open(filepath.Join(dir, "sluice-1.0.0.tgz"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	unzipped, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	for archive := tar.NewReader(unzipped); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, header.Name)
	}
}
