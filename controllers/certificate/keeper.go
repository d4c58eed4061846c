// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package certificate

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

const (
	// interval bounds how long another's change to the Secret, the ConfigMap or the webhook
	// configurations goes unnoticed.
	interval = 10 * time.Second
	// settle is the time between telling of a new CA and serving with it. An agent that has read the
	// ConfigMap before has made its connection by then, and API servers have read the webhook
	// configurations. It is also the pause before another try.
	settle = 2 * time.Second
	// forgetAfter is how long the CA before stays trusted. The other replicas need interval and settle
	// to serve with the new one; the rest is for one that could not read for a while.
	forgetAfter = 10 * time.Minute
)

// errNone is the answer to a client while there is no certificate.
var errNone = errors.New("there is no serving certificate yet")

// +kubebuilder:rbac:groups="",namespace=sluice-system,resources=secrets,resourceNames=sluice-controller-tls,verbs=get
// +kubebuilder:rbac:groups="",namespace=sluice-system,resources=configmaps,resourceNames=sluice-controller-ca,verbs=get;update
// +kubebuilder:rbac:groups="",namespace=sluice-system,resources=configmaps,verbs=create

// Keeper has the certificate to serve with, and tells clients of its CA. It is a manager.Runnable that
// runs on every replica.
type Keeper struct {
	// Client reads and writes without a cache.
	Client client.Client
	// Secret is the Secret that has the certificate and its CA.
	Secret client.ObjectKey
	// CA is the ConfigMap that the agents read. It has the CA, and nothing else.
	CA client.ObjectKey
	// SelfManaged has the Keeper make and renew what is in the Secret, and put the CA into the webhook
	// configurations. Otherwise cert-manager does both.
	SelfManaged bool
	// Names are the DNS names of the controller's Service.
	Names []string
	// WebhookConfiguration is the name of both configurations that need the CA.
	WebhookConfiguration string
	// Clock is compared with the dates of the certificates.
	Clock clock.Clock

	served atomic.Pointer[tls.Certificate]
	ca     []byte    // what clients were told last, by this replica
	told   time.Time // when that was new
}

// NeedLeaderElection is false: every replica serves.
func (k *Keeper) NeedLeaderElection() bool { return false }

// GetCertificate is for a tls.Config. It fails while there is no certificate yet.
func (k *Keeper) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if served := k.served.Load(); served != nil {
		return served, nil
	}
	return nil, errNone
}

// Ready is a health check that fails while there is no certificate yet.
func (k *Keeper) Ready(*http.Request) error {
	_, err := k.GetCertificate(nil)
	return err
}

// Start runs until ctx ends. It retries after an error, and has time for that: certificates are
// renewed a month before they end.
func (k *Keeper) Start(ctx context.Context) error {
	for {
		pause := interval
		switch settled, err := k.pass(ctx); {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			log.FromContext(ctx).Error(err, "Could not keep the certificate")
			pause = settle
		case !settled:
			pause = settle
		}
		timer := k.Clock.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C():
		}
	}
}

// pass tells clients of the CA in the Secret, and serves with the certificate in it. It has not settled
// while it waits to serve with a CA that clients have just been told of. A replica that serves nothing
// yet does not wait: nobody counts on it.
func (k *Keeper) pass(ctx context.Context) (settled bool, err error) {
	content, err := k.readSecret(ctx)
	if err != nil {
		return false, fmt.Errorf("read the certificate in secret %s: %w", k.Secret, err)
	}
	pair, err := content.pair()
	if err != nil {
		return false, fmt.Errorf("take the certificate from secret %s: %w", k.Secret, err)
	}
	ca := content[caCertKey]
	known := bytes.Equal(k.ca, ca)
	if err := k.tell(ctx, ca, known && k.Clock.Since(k.told) >= forgetAfter); err != nil {
		return false, err
	}
	if !known {
		k.ca, k.told = ca, k.Clock.Now()
	}
	before := k.served.Load()
	if before != nil && k.Clock.Since(k.told) < settle {
		return false, nil
	}
	if before == nil || !before.Leaf.Equal(pair.Leaf) {
		k.served.Store(pair)
		log.FromContext(ctx).Info("Took the serving certificate", "secret", k.Secret, "notAfter", pair.Leaf.NotAfter)
	}
	return true, nil
}

// readSecret returns the content of the Secret; with SelfManaged, after it has renewed what is missing
// or about to end. Replicas may do so at the same time: the one that writes first decides for all.
func (k *Keeper) readSecret(ctx context.Context) (content material, err error) {
	err = retryWrites(func() error {
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: k.Secret.Namespace, Name: k.Secret.Name}}
		err := k.Client.Get(ctx, k.Secret, secret)
		if !k.SelfManaged {
			content = secret.Data
			return err
		}
		if client.IgnoreNotFound(err) != nil {
			return err
		}
		absent := err != nil
		stored := material(secret.Data)
		if content, err = stored.renewed(k.Clock.Now(), k.Names); err != nil {
			return err
		}
		if stored.equal(content) {
			return nil
		}
		secret.Data = content
		if absent {
			secret.Type = corev1.SecretTypeTLS
			return k.Client.Create(ctx, secret)
		}
		return k.Client.Update(ctx, secret)
	})
	return content, err
}

// retryWrites reads and writes again when another replica has written in between.
func retryWrites(try func() error) error {
	lost := func(err error) bool { return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) }
	return retry.OnError(retry.DefaultRetry, lost, try)
}
