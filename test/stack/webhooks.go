// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package stack

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/admission"
)

// firstWebhookPort is where the first controller serves the webhooks, and the next
// ones after it. The API server asks the first one alone: there is no Service here.
const firstWebhookPort = 9454

func (s *Stack) webhookAddress(controller int) (string, error) {
	apiServer, err := url.Parse(s.config.Host)
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(apiServer.Hostname(), strconv.Itoa(firstWebhookPort+controller)), nil
}

func (s *Stack) webhookFlags(controller int) ([]string, error) {
	if !s.options.Webhooks {
		return nil, nil
	}
	address, err := s.webhookAddress(controller)
	return []string{"--webhook-bind-address=" + address}, err
}

// Webhook is the URL of a webhook of the first controller, and a client that trusts it
// and talks as the API server does: over one connection that stays.
func (s *Stack) Webhook(path string) (url string, c *http.Client, err error) {
	address, err := s.webhookAddress(0)
	if err != nil {
		return "", nil, err
	}
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(s.ca)
	return "https://" + address + path, &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: trusted}, ForceAttemptHTTP2: true,
	}}, nil
}

// installWebhooks applies config/webhook and waits until the API server asks them:
// it takes up a new configuration a moment later.
func (s *Stack) installWebhooks(ctx context.Context, root string) error {
	address, err := s.webhookAddress(0)
	if err != nil {
		return err
	}
	if err := admission.Install(ctx, s.Client, root, "https://"+address, s.ca); err != nil {
		return err
	}
	const bound, interval = 30 * time.Second, 100 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	for {
		probe := gatedDeployment()
		if err := s.Client.Create(ctx, probe, client.DryRunAll); err != nil {
			return err
		}
		if probe.Spec.Paused {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(interval):
		}
	}
}

// gatedDeployment is one that is held, for its ImagePrefetch does not exist.
func gatedDeployment() *appsv1.Deployment {
	labels := map[string]string{"app": "probe"}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: "probe",
			Annotations: map[string]string{v1alpha1.PrefetchAnnotation: "none"},
		},
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: Registry + "/probe:v1"}}},
			},
		},
	}
}
