// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package certificate keeps the certificate that the controller serves with, for
// clusters without cert-manager. It makes a CA and a certificate, keeps both in a
// secret, of which every replica writes a copy to the folder that the servers read,
// and puts the CA into the webhook configurations. Agents get the CA from the secret.
//
//	          make, renew                    files, read again as they change
//	Keeper ◀──────────────▶ Secret ─────▶ Keeper ─────────▶ webhooks, endpoint
//	   │                      │ ca.crt
//	   ▼ caBundle             ▼
//	webhook configurations   agents
//
// It needs no right to list or watch anything: it looks from time to time.
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

// interval is how long somebody else's change to the secret or to the webhook
// configurations stays unseen.
const interval = 10 * time.Second

// Keeper keeps the certificate. It is a manager.Runnable, and runs on every replica.
type Keeper struct {
	// Client reads and writes without a cache.
	Client client.Client
	// Secret is where the certificate is kept.
	Secret client.ObjectKey
	// Dir is the folder for tls.crt and tls.key.
	Dir string
	// Names are the DNS names of the controller's Service.
	Names []string
	// WebhookConfiguration is the name of the configurations that need the CA.
	WebhookConfiguration string
	// Clock tells when a certificate is to be renewed.
	Clock clock.WithTicker
}

// ParseSecret reads NAMESPACE/NAME.
func ParseSecret(text string) (client.ObjectKey, error) {
	namespace, name, ok := strings.Cut(text, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return client.ObjectKey{}, fmt.Errorf("%q is not NAMESPACE/NAME", text)
	}
	return client.ObjectKey{Namespace: namespace, Name: name}, nil
}

// NeedLeaderElection is false: every replica serves.
func (k *Keeper) NeedLeaderElection() bool { return false }

// Start keeps the certificate until ctx ends. An error is tried again: what is served
// is good for a month yet.
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

// Ensure has the certificate in the secret and in the folder, and the CA in the
// webhook configurations. Servers can start when it has returned without an error.
func (k *Keeper) Ensure(ctx context.Context) error {
	kept, err := k.ensureSecret(ctx)
	if err != nil {
		return fmt.Errorf("keep the certificate in secret %s: %w", k.Secret, err)
	}
	if err := k.writeFiles(kept); err != nil {
		return fmt.Errorf("write the certificate: %w", err)
	}
	if err := k.injectCA(ctx, kept[caCertKey]); err != nil {
		return fmt.Errorf("put the CA into the webhook configurations: %w", err)
	}
	return nil
}

// ensureSecret returns what the secret holds when it is right. Replicas may do so at
// once: the first to write decides for all.
func (k *Keeper) ensureSecret(ctx context.Context) (kept material, err error) {
	isRetriable := func(err error) bool { return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) }
	err = retry.OnError(retry.DefaultRetry, isRetriable, func() error {
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: k.Secret.Namespace, Name: k.Secret.Name}}
		err := k.Client.Get(ctx, k.Secret, secret)
		if client.IgnoreNotFound(err) != nil {
			return err
		}
		absent := err != nil
		present := material(secret.Data)
		if kept, err = present.renewed(k.Clock.Now(), k.Names); err != nil {
			return err
		}
		if present.equal(kept) {
			return nil
		}
		secret.Data = kept
		if absent {
			secret.Type = corev1.SecretTypeTLS
			return k.Client.Create(ctx, secret)
		}
		return k.Client.Update(ctx, secret)
	})
	return kept, err
}

// writeFiles puts the key there first: whoever reads between the two sees that they
// do not belong together, and looks again when the second one comes.
func (k *Keeper) writeFiles(kept material) error {
	for _, name := range []string{leafKeyKey, leafCertKey} {
		path := filepath.Join(k.Dir, name)
		if present, err := os.ReadFile(path); err == nil && bytes.Equal(present, kept[name]) {
			continue
		}
		temporary := path + ".new"
		if err := os.WriteFile(temporary, kept[name], 0o600); err != nil {
			return err
		}
		if err := os.Rename(temporary, path); err != nil {
			return err
		}
	}
	return nil
}

// injectCA gives the CA to whoever asks the webhooks. A configuration that is not there,
// or not yet, needs none.
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
