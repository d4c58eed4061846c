// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/sluice-dev/sluice/controllers/installation"
	"github.com/sluice-dev/sluice/test/apiserver"
)

// TestRun starts the controller as its command line would, and asks it from outside.
func TestRun(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	server, err := apiserver.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	clients := kubernetes.NewForConfigOrDie(server.Config)
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "sluice-system"}}
	if _, err := clients.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, server.Kubeconfig(), 0o600); err != nil {
		t.Fatal(err)
	}
	health, figures := freeAddress(t), freeAddress(t)
	options, err := parse([]string{
		"--kubeconfig=" + kubeconfig, "--leader-elect-namespace=sluice-system",
		"--health-probe-bind-address=" + health, "--metrics-bind-address=" + figures,
		"--credentials-bind-address=127.0.0.1:0", "--certificate-secret=sluice-system/tls", "--self-managed-certificate",
	})
	if err != nil {
		t.Fatal(err)
	}
	running, stop := context.WithCancel(ctx)
	stopped := make(chan error, 1)
	go func() { stopped <- run(running, options) }()

	for _, probe := range []string{"healthz", "readyz"} {
		await(ctx, t, "http://"+health+"/"+probe, "ok")
	}
	// The controller works only once it holds the lease.
	await(ctx, t, "http://"+figures+"/metrics", "sluice_seeds_replaced_total 0")
	await(ctx, t, "http://"+figures+"/metrics", `leader_election_master_status{name="sluice-controller"} 1`)
	// It was ready, so it has a certificate, and has told of the CA.
	secret, err := clients.CoreV1().Secrets("sluice-system").Get(ctx, "tls", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	published, err := clients.CoreV1().ConfigMaps("sluice-system").Get(ctx, installation.CAConfigMap, metav1.GetOptions{})
	if err != nil || published.Data["ca.crt"] != string(secret.Data["ca.crt"]) {
		t.Errorf("published is %v, %v", published, err)
	}
	lease, err := clients.CoordinationV1().Leases("sluice-system").Get(ctx, "sluice-controller", metav1.GetOptions{})
	if err != nil || lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity == "" {
		t.Errorf("the lease is %v, %v", lease, err)
	}

	stop()
	select {
	case err := <-stopped:
		if err != nil {
			t.Error(err)
		}
	case <-ctx.Done():
		t.Fatal("the controller did not stop")
	}
	lease, err = clients.CoordinationV1().Leases("sluice-system").Get(ctx, "sluice-controller", metav1.GetOptions{})
	if err != nil || lease.Spec.HolderIdentity != nil && *lease.Spec.HolderIdentity != "" {
		t.Errorf("the lease was not given back: %v, %v", lease, err)
	}
}

func TestRunSaysWhichConfigurationIsMissing(t *testing.T) {
	err := run(t.Context(), Options{Kubeconfig: "/does/not/exist"})
	if err == nil || !strings.Contains(err.Error(), "load the client configuration") || !strings.Contains(err.Error(), "/does/not/exist") {
		t.Errorf("got %v", err)
	}
}

// await asks until the answer is 200 and contains something.
func await(ctx context.Context, t *testing.T, url, want string) {
	t.Helper()
	var last string
	for ctx.Err() == nil {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultClient.Do(request)
		if err == nil {
			body, _ := io.ReadAll(response.Body)
			_ = response.Body.Close()
			if response.StatusCode == http.StatusOK && strings.Contains(string(body), want) {
				return
			}
			last = fmt.Sprintf("%s: %s", response.Status, body)
		}
		<-time.After(20 * time.Millisecond)
	}
	t.Fatalf("%s did not say %q, but %s", url, want, last)
}

func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().String()
}
