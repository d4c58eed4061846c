// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package install_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/test/install"
)

// serverName is what the controllers' certificate is for.
const serverName = "sluice-controller." + install.Namespace + ".svc"

var caConfigMap = client.ObjectKey{Namespace: install.Namespace, Name: "sluice-controller-ca"}

// ownIssuer is an issuer that the chart knows nothing of, with a CA of its own.
const ownIssuer = `
apiVersion: cert-manager.io/v1
kind: Issuer
metadata: {name: own-root}
spec: {selfSigned: {}}
---
apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {name: own}
spec:
  isCA: true
  commonName: own
  secretName: own
  issuerRef: {name: own-root}
---
apiVersion: cert-manager.io/v1
kind: Issuer
metadata: {name: own}
spec: {ca: {secretName: own}}
`

// createOwnIssuer creates it in Sluice's namespace, and deletes all of it when the spec ends.
func createOwnIssuer(ctx context.Context) {
	GinkgoHelper()
	file := filepath.Join(GinkgoT().TempDir(), "issuer.yaml")
	Expect(os.WriteFile(file, []byte(ownIssuer), 0o600)).To(Succeed())
	for _, args := range [][]string{{"apply"}, {"wait", "--for=condition=Ready", "--timeout=60s"}} {
		_, err := site.Cluster.Kubectl(ctx, append(args, "--namespace="+install.Namespace, "--filename="+file)...)
		Expect(err).NotTo(HaveOccurred())
	}
	DeferCleanup(func(ctx SpecContext) {
		_, err := site.Cluster.Kubectl(ctx, "delete", "--namespace="+install.Namespace, "--filename="+file)
		Expect(err).NotTo(HaveOccurred())
		Expect(site.Client.Delete(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: install.Namespace, Name: "own"}})).To(Succeed())
	})
}

// eventuallyServeWithAnotherCA waits until all controllers serve with a certificate whose CA is not the
// one before, and returns the CA.
func eventuallyServeWithAnotherCA(ctx context.Context, before []byte) []byte {
	GinkgoHelper()
	Eventually(func() []byte { return secret(ctx).Data["ca.crt"] }).ShouldNot(Or(BeEmpty(), Equal(before)))
	for _, pod := range pods(ctx, "controller") {
		for _, port := range []string{"9443", "9444"} {
			Eventually(served(ctx, pod, port)).Should(Equal(leafOf(secret(ctx))), pod.Name)
		}
	}
	return secret(ctx).Data["ca.crt"]
}

// calls connects to one controller after another, as agents do: each time with the CA that is published
// at that moment.
type calls struct {
	cancel context.CancelFunc
	done   chan struct{}

	mu     sync.Mutex
	made   int
	failed []error
}

func startCalls(ctx context.Context) *calls {
	GinkgoHelper()
	readCA := nodeagent.CAReader(agentOf(ctx, pods(ctx, "agent")[0]), caConfigMap)
	controllers := pods(ctx, "controller")
	ctx, cancel := context.WithCancel(ctx)
	c := &calls{cancel: cancel, done: make(chan struct{})}
	DeferCleanup(cancel)
	go func() {
		defer close(c.done)
		for n := 0; ctx.Err() == nil; n++ {
			pod := controllers[n%len(controllers)]
			if err := connect(ctx, readCA, pod); ctx.Err() == nil {
				c.note(pod, err)
			}
		}
	}()
	return c
}

func connect(ctx context.Context, readCA func(context.Context) ([]byte, error), pod corev1.Pod) error {
	ca, err := readCA(ctx)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	dialer := tls.Dialer{Config: &tls.Config{RootCAs: roots, ServerName: serverName}}
	connection, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(pod.Status.PodIP, "9444"))
	if err != nil {
		return err
	}
	return connection.Close()
}

func (c *calls) note(pod corev1.Pod, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.made++
	if err != nil {
		c.failed = append(c.failed, fmt.Errorf("%s at %s: %w", pod.Name, time.Now().Format(time.RFC3339Nano), err))
	}
}

func (c *calls) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.made
}

// more waits until n further calls were made.
func (c *calls) more(ctx context.Context, n int) {
	GinkgoHelper()
	Eventually(ctx, c.count).Should(BeNumerically(">=", c.count()+n))
}

// stop ends the calls, and returns why some failed.
func (c *calls) stop() []error {
	c.cancel()
	<-c.done
	return c.failed
}
