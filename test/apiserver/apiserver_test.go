// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// childVariable makes this test's binary start a server and wait to be killed.
const childVariable = "SLUICE_TEST_APISERVER_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		if _, err := Start(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("ready")
		select {}
	}
	os.Exit(m.Run())
}

func TestServerKnowsOurKinds(t *testing.T) {
	server, err := Start()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(server.wrappers); !os.IsNotExist(err) {
			t.Errorf("%s is still there after Stop", server.wrappers)
		}
	}()
	scheme := runtime.NewScheme()
	if err := apiextensionsv1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(server.Config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"imageprefetches.sluice.dev", "nodeimagesets.sluice.dev", "prefetchpolicies.sluice.dev"} {
		var crd apiextensionsv1.CustomResourceDefinition
		if err := c.Get(t.Context(), client.ObjectKey{Name: name}, &crd); err != nil {
			t.Error(err)
		}
	}
}

func TestMissingProgramsAreSaidInOneLine(t *testing.T) {
	for _, assets := range []string{"", t.TempDir()} {
		t.Setenv(assetsVariable, assets)
		_, err := Start()
		if err == nil || !strings.Contains(err.Error(), "make test") || strings.Contains(err.Error(), "\n") {
			t.Errorf("with %s=%q: got %v, want one line that says what to do", assetsVariable, assets, err)
		}
	}
}

func TestProgramsEndWithTheTestProcess(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	child := exec.CommandContext(ctx, os.Args[0])
	// What a killed process could not remove goes with the test's own folder.
	child.Env = append(os.Environ(), childVariable+"=1", "TMPDIR="+t.TempDir())
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || line != "ready\n" {
		t.Fatalf("the child said %q, %v", line, err)
	}

	programs := childrenOf(t, child.Process.Pid)
	if len(programs) != 2 {
		t.Errorf("the child runs %d programs, want an API server and an etcd", len(programs))
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // it was killed
	for _, pid := range programs {
		for alive(pid) {
			if ctx.Err() != nil {
				t.Fatalf("process %s is still there", pid)
			}
			<-time.After(10 * time.Millisecond)
		}
	}
}

// childrenOf are the process ids of the children of all threads of a process.
func childrenOf(t *testing.T, pid int) []string {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil || len(lists) == 0 {
		t.Fatalf("list the children of %d: %v", pid, err)
	}
	var children []string
	for _, list := range lists {
		data, err := os.ReadFile(list)
		if err != nil {
			t.Fatal(err)
		}
		children = append(children, strings.Fields(string(data))...)
	}
	return children
}

// alive reports whether a process runs. A zombie does not.
func alive(pid string) bool {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return false
	}
	after := stat[strings.LastIndexByte(string(stat), ')')+2:]
	return after[0] != 'Z'
}
