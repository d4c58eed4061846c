// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package chart_test

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/sluice-dev/sluice/test/cluster"
)

const certManagerDir = "../cluster/binaries/certmanager"

// The chain that the chart makes, on the real cert-manager: selfSigned issuer, CA,
// CA issuer, leaf; and the CA in a webhook configuration.
func TestCertManagerIssuesAndInjects(t *testing.T) {
	programs, err := cluster.CertManager(t.Context(), t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	_, c, kubeconfig := apiServer(t, filepath.Join(module(t, certManagerDir, "github.com/cert-manager/cert-manager"), "deploy", "crds"))
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(path, kubeconfig, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, filepath.Join(programs, "controller"), "--kubeconfig="+path, "--healthz-listen-address=127.0.0.1:0", "--v=2")
	run(t, filepath.Join(programs, "cainjector"), "--kubeconfig="+path)

	began := time.Now()
	for _, text := range []string{
		"{apiVersion: cert-manager.io/v1, kind: Issuer, metadata: {name: self, namespace: default}, spec: {selfSigned: {}}}",
		`{apiVersion: cert-manager.io/v1, kind: Certificate, metadata: {name: ca, namespace: default},
		  spec: {isCA: true, commonName: ca, secretName: ca, issuerRef: {name: self}}}`,
		"{apiVersion: cert-manager.io/v1, kind: Issuer, metadata: {name: ca, namespace: default}, spec: {ca: {secretName: ca}}}",
		`{apiVersion: cert-manager.io/v1, kind: Certificate, metadata: {name: leaf, namespace: default},
		  spec: {dnsNames: [leaf.default.svc], secretName: leaf, issuerRef: {name: ca}}}`,
		`{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingWebhookConfiguration,
		  metadata: {name: hook, annotations: {cert-manager.io/inject-ca-from: default/leaf}},
		  webhooks: [{name: hook.example.org, sideEffects: None, admissionReviewVersions: [v1], clientConfig: {url: "https://leaf.default.svc/"}}]}`,
	} {
		if err := c.Create(t.Context(), parse(t, text)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, c, named("cert-manager.io/v1", "Certificate", "default", "leaf"), "not Ready", isReady)
	t.Logf("leaf ready after %s", time.Since(began))

	secret := named("v1", "Secret", "default", "leaf")
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(secret), secret); err != nil {
		t.Fatal(err)
	}
	ca, leaf := secretKey(t, secret, "ca.crt"), secretKey(t, secret, "tls.crt")
	block, _ := pem.Decode(leaf)
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	if _, err := certificate.Verify(x509.VerifyOptions{Roots: roots, DNSName: "leaf.default.svc"}); err != nil {
		t.Error(err)
	}
	hook := named("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration", "", "hook")
	eventually(t, c, hook, "the CA is not injected", func(u *unstructured.Unstructured) bool {
		hooks, _, _ := unstructured.NestedSlice(u.Object, "webhooks")
		text, _, _ := unstructured.NestedString(hooks[0].(map[string]any), "clientConfig", "caBundle")
		bundle, err := base64.StdEncoding.DecodeString(text)
		return err == nil && bytes.Equal(bundle, ca)
	})
	t.Logf("CA injected after %s", time.Since(began))
}

func parse(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	object := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(text), &object.Object); err != nil {
		t.Fatal(err)
	}
	return object
}

func named(apiVersion, kind, namespace, name string) *unstructured.Unstructured {
	object := &unstructured.Unstructured{}
	object.SetAPIVersion(apiVersion)
	object.SetKind(kind)
	object.SetNamespace(namespace)
	object.SetName(name)
	return object
}

func isReady(u *unstructured.Unstructured) bool {
	conditions, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	for _, condition := range conditions {
		c := condition.(map[string]any)
		if c["type"] == "Ready" && c["status"] == "True" {
			return true
		}
	}
	return false
}

func secretKey(t *testing.T, secret *unstructured.Unstructured, key string) []byte {
	t.Helper()
	text, _, _ := unstructured.NestedString(secret.Object, "data", key)
	content, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(content) == 0 {
		t.Fatalf("secret %s has no %s: %v", secret.GetName(), key, err)
	}
	return content
}
