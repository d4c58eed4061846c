// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package certificate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// interval bounds how long another's change to the Secret or to the webhook configurations goes
// unnoticed.
const interval = 10 * time.Second

// Keeper keeps the certificate valid and in place. It is a manager.Runnable that runs on every
// replica.
type Keeper struct {
	// Client reads and writes without a cache.
	Client client.Client
	// Secret is the Secret that has the certificate.
	Secret client.ObjectKey
	// Dir is the folder for tls.crt and tls.key.
	Dir string
	// Names are the DNS names of the controller's Service.
	Names []string
	// WebhookConfiguration is the name of both configurations that need the CA.
	WebhookConfiguration string
	// Clock is compared with the dates of the certificates.
	Clock clock.WithTicker
}

// ParseSecret parses NAMESPACE/NAME.
func ParseSecret(text string) (client.ObjectKey, error) {
	namespace, name, ok := strings.Cut(text, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return client.ObjectKey{}, fmt.Errorf("%q is not NAMESPACE/NAME", text)
	}
	return client.ObjectKey{Namespace: namespace, Name: name}, nil
}

// NeedLeaderElection is false: every replica serves.
func (k *Keeper) NeedLeaderElection() bool { return false }

// Start runs until ctx ends. It retries after an error, and has time for that: certificates are
// renewed a month before they end.
func (k *Keeper) Start(ctx context.Context) error {
	ticker := k.Clock.NewTicker(interval)
	defer ticker.Stop()
	for {
		if err := k.Ensure(ctx); err != nil && ctx.Err() == nil {
			log.FromContext(ctx).Error(err, "Could not keep the certificate")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C():
		}
	}
}

// Ensure puts the certificate into the Secret and the folder, and the CA into the webhook
// configurations. Once it has returned without an error, servers can start.
func (k *Keeper) Ensure(ctx context.Context) error {
	content, err := k.ensureSecret(ctx)
	if err != nil {
		return fmt.Errorf("keep the certificate in secret %s: %w", k.Secret, err)
	}
	if err := k.writeFiles(content); err != nil {
		return fmt.Errorf("write the certificate: %w", err)
	}
	if err := k.injectCA(ctx, content[caCertKey]); err != nil {
		return fmt.Errorf("put the CA into the webhook configurations: %w", err)
	}
	return nil
}

// ensureSecret returns the content of the Secret, after it has renewed what is missing or about to
// end. Replicas may do so at the same time: the one that writes first decides for all.
func (k *Keeper) ensureSecret(ctx context.Context) (next material, err error) {
	isRetriable := func(err error) bool { return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) }
	err = retry.OnError(retry.DefaultRetry, isRetriable, func() error {
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: k.Secret.Namespace, Name: k.Secret.Name}}
		err := k.Client.Get(ctx, k.Secret, secret)
		if client.IgnoreNotFound(err) != nil {
			return err
		}
		absent := err != nil
		stored := material(secret.Data)
		if next, err = stored.renewed(k.Clock.Now(), k.Names); err != nil {
			return err
		}
		if stored.equal(next) {
			return nil
		}
		secret.Data = next
		if absent {
			secret.Type = corev1.SecretTypeTLS
			return k.Client.Create(ctx, secret)
		}
		return k.Client.Update(ctx, secret)
	})
	return next, err
}

// writeFiles writes the key before the certificate. A server that reads between the two finds that
// they do not match, and reads again when the certificate changes.
func (k *Keeper) writeFiles(content material) error {
	for _, name := range []string{leafKeyKey, leafCertKey} {
		path := filepath.Join(k.Dir, name)
		if present, err := os.ReadFile(path); err == nil && bytes.Equal(present, content[name]) {
			continue
		}
		temporary := path + ".new"
		if err := os.WriteFile(temporary, content[name], 0o600); err != nil {
			return err
		}
		if err := os.Rename(temporary, path); err != nil {
			return err
		}
	}
	return nil
}

// injectCA writes the CA into the webhook configurations, so that the API server trusts the webhooks.
// A configuration that does not exist is left out.
func (k *Keeper) injectCA(ctx context.Context, ca []byte) error {
	meta := metav1.ObjectMeta{Name: k.WebhookConfiguration}
	mutating := &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: meta}
	validating := &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: meta}
	return errors.Join(
		k.setCA(ctx, mutating, func() (configs []*admissionregistrationv1.WebhookClientConfig) {
			for i := range mutating.Webhooks {
				configs = append(configs, &mutating.Webhooks[i].ClientConfig)
			}
			return configs
		}, ca),
		k.setCA(ctx, validating, func() (configs []*admissionregistrationv1.WebhookClientConfig) {
			for i := range validating.Webhooks {
				configs = append(configs, &validating.Webhooks[i].ClientConfig)
			}
			return configs
		}, ca))
}

func (k *Keeper) setCA(ctx context.Context, configuration client.Object, configs func() []*admissionregistrationv1.WebhookClientConfig, ca []byte) error {
	return retry.RetryOnConflict(retry.DefaultRetry, func() error {
		if err := k.Client.Get(ctx, client.ObjectKeyFromObject(configuration), configuration); err != nil {
			return client.IgnoreNotFound(err)
		}
		changed := false
		for _, config := range configs() {
			changed = changed || !bytes.Equal(config.CABundle, ca)
			config.CABundle = ca
		}
		if !changed {
			return nil
		}
		return k.Client.Update(ctx, configuration)
	})
}
