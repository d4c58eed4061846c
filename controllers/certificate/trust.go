// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package certificate

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// tell has clients trust the CA. They go on trusting what they were told before, unless it is alone.
func (k *Keeper) tell(ctx context.Context, ca []byte, alone bool) error {
	trusted, err := k.publish(ctx, ca, alone)
	if err != nil {
		return fmt.Errorf("publish the CA in ConfigMap %s: %w", k.CA, err)
	}
	if !k.SelfManaged {
		return nil // cert-manager's CA injector does the rest
	}
	if err := k.injectCA(ctx, trusted); err != nil {
		return fmt.Errorf("put the CA into the webhook configurations: %w", err)
	}
	return nil
}

// publish writes the ConfigMap and returns the certificates in it. What is right is not written again.
func (k *Keeper) publish(ctx context.Context, ca []byte, alone bool) (trusted []byte, err error) {
	err = retryWrites(func() error {
		published := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: k.CA.Namespace, Name: k.CA.Name}}
		err := k.Client.Get(ctx, k.CA, published)
		if client.IgnoreNotFound(err) != nil {
			return err
		}
		absent := err != nil
		trusted = certificates(ca)
		if !alone {
			trusted = certificates([]byte(published.Data[caCertKey]), ca)
		}
		data := map[string]string{caCertKey: string(trusted)}
		if maps.Equal(published.Data, data) && len(published.BinaryData) == 0 {
			return nil
		}
		published.Data, published.BinaryData = data, nil
		if absent {
			return k.Client.Create(ctx, published)
		}
		return k.Client.Update(ctx, published)
	})
	return trusted, err
}

// certificates joins the certificates in the texts, each once. It leaves out all else, such as a key
// that somebody has put beside them.
func certificates(texts ...[]byte) []byte {
	var joined bytes.Buffer
	seen := map[string]bool{}
	for _, rest := range texts {
		for {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			if block.Type != certificateBlock || seen[string(block.Bytes)] {
				continue
			}
			seen[string(block.Bytes)] = true
			joined.Write(pem.EncodeToMemory(&pem.Block{Type: certificateBlock, Bytes: block.Bytes}))
		}
	}
	return joined.Bytes()
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
