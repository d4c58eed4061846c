// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package chart_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilwait "k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/sluice-dev/sluice/test/cluster"
)

// apiServer starts a real API server with the given CRDs and ends it with the test.
func apiServer(t *testing.T, crds ...string) (*rest.Config, client.Client, []byte) {
	t.Helper()
	programs, err := cluster.Build(t.Context(), t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	env := &envtest.Environment{BinaryAssetsDirectory: programs.AssetsDir, CRDDirectoryPaths: crds, ErrorIfCRDPathMissing: true}
	env.ControlPlane.GetAPIServer().Configure().Set("authorization-mode", "Node", "RBAC")
	config, err := env.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := env.Stop(); err != nil {
			t.Error(err)
		}
	})
	c, err := client.New(config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return config, c, env.KubeConfig
}

// run starts a program that ends with the test, or with the process of the test.
func run(t *testing.T, path string, args ...string) {
	t.Helper()
	command := exec.Command(path, args...)
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := os.Create(filepath.Join(t.ArtifactDir(), filepath.Base(path)+".log"))
	if err != nil {
		t.Fatal(err)
	}
	command.Stdout, command.Stderr = log, log
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
		log.Close()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("%s:\n%s", filepath.Base(path), text)
		}
	})
}

// eventually waits until the object, read again each time, satisfies the condition.
func eventually(t *testing.T, c client.Client, object *unstructured.Unstructured, what string, holds func(*unstructured.Unstructured) bool) {
	t.Helper()
	wait(t, object.GetKind()+" "+object.GetName()+": "+what, func() bool {
		return c.Get(t.Context(), client.ObjectKeyFromObject(object), object) == nil && holds(object)
	})
}

// wait waits until the condition holds.
func wait(t *testing.T, what string, holds func() bool) {
	t.Helper()
	err := utilwait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, time.Minute, true, func(context.Context) (bool, error) {
		return holds(), nil
	})
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// module is where the source of a required module lies.
func module(t *testing.T, modfileDir, path string) string {
	t.Helper()
	list := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", path)
	list.Dir = modfileDir
	list.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	out, err := list.Output()
	if err != nil {
		t.Fatal(fmt.Errorf("find module %s: %w", path, err))
	}
	return string(out[:len(out)-1])
}
