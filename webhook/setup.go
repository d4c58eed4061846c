// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/hold"
	"github.com/sluice-dev/sluice/internal/policy"
)

// Paths that config/webhook names.
const (
	gatePath             = "/gate"
	imagePrefetchPath    = "/validate/imageprefetches"
	prefetchPoliciesPath = "/validate/prefetchpolicies"
)

// Options say where the webhooks listen, and what applies to namespaces without a policy.
type Options struct {
	// BindAddress is HOST:PORT or :PORT. Empty: there are no webhooks.
	BindAddress string
	// DefaultPolicy applies to a namespace that no PrefetchPolicy selects.
	DefaultPolicy policy.Default
}

// Validate returns an error that names each option that is missing or malformed.
func (o Options) Validate() error {
	var problems []error
	if _, err := policy.ParseDefault(string(o.DefaultPolicy)); err != nil {
		problems = append(problems, fmt.Errorf("--default-policy %w", err))
	}
	if o.BindAddress == "" {
		return errors.Join(problems...)
	}
	if _, _, err := splitAddress(o.BindAddress); err != nil {
		problems = append(problems, fmt.Errorf("--webhook-bind-address must be HOST:PORT or :PORT: %w", err))
	}
	return errors.Join(problems...)
}

func splitAddress(address string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, err
	}
	number, err := strconv.ParseUint(text, 10, 16)
	return host, int(number), err
}

// ClusterReader knows the nodes, what their agents report about images, and what tags mean.
type ClusterReader interface {
	// Read returns what evidence for a Deployment is read from, and when that changes by time
	// alone. The prefetch is the one that the Deployment names, or nil. It fails if ctx ends
	// before all nodes are known.
	Read(ctx context.Context, deployment *appsv1.Deployment, named *v1alpha1.ImagePrefetch) (cluster hold.Cluster, until time.Time, err error)
}

// GetCertificate returns the certificate to serve with, as in a tls.Config.
type GetCertificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)

// NewServer returns the server for the manager that is passed to SetupWithManager; nil without a
// bind address.
func NewServer(o Options, certificate GetCertificate) (webhook.Server, error) {
	if o.BindAddress == "" {
		return nil, nil
	}
	host, port, err := splitAddress(o.BindAddress)
	if err != nil {
		return nil, fmt.Errorf("read the address of the webhooks: %w", err)
	}
	return webhook.NewServer(webhook.Options{Host: host, Port: port, TLSOpts: []func(*tls.Config){
		func(config *tls.Config) { config.GetCertificate = certificate },
	}}), nil
}

// +kubebuilder:rbac:groups=sluice.dev,resources=imageprefetches;prefetchpolicies,verbs=list;watch
// +kubebuilder:rbac:groups="",resources=namespaces,verbs=list;watch

// SetupWithManager adds the handlers to the manager's webhook server, on every replica.
func SetupWithManager(ctx context.Context, mgr manager.Manager, o Options, cluster ClusterReader, registry prometheus.Registerer) error {
	metrics, err := newMetrics(registry)
	if err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	// The informers are started now, so that the caches are full before the first request.
	for _, kind := range []client.Object{&v1alpha1.ImagePrefetch{}, &v1alpha1.PrefetchPolicy{}, &corev1.Namespace{}} {
		if _, err := mgr.GetCache().GetInformer(ctx, kind); err != nil {
			return fmt.Errorf("cache %T: %w", kind, err)
		}
	}
	decoder, cache := admission.NewDecoder(mgr.GetScheme()), mgr.GetCache()
	for path, handler := range map[string]admission.Handler{
		gatePath: &gateHandler{
			decoder: decoder, cache: cache, cluster: cluster, clock: clock.RealClock{}, metrics: metrics,
			events: newStoredEvents(mgr.GetEventRecorder("sluice-gate"), mgr.GetAPIReader()),
		},
		imagePrefetchPath:    &imagePrefetchHandler{decoder: decoder, cache: cache, fallback: o.DefaultPolicy},
		prefetchPoliciesPath: &prefetchPolicyHandler{decoder: decoder},
	} {
		mgr.GetWebhookServer().Register(path, &admission.Webhook{Handler: handler})
	}
	return nil
}
