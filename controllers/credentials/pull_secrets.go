// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package credentials

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/controllers/credentials/keyring"
	"github.com/sluice-dev/sluice/internal/credentialapi"
	"github.com/sluice-dev/sluice/internal/excerpt"
	"github.com/sluice-dev/sluice/internal/imageref"
)

// Pull secrets are read one by one. Nothing lists or watches them.
//
// +kubebuilder:rbac:groups="",resources=secrets,verbs=get
// +kubebuilder:rbac:groups=authentication.k8s.io,resources=tokenreviews,verbs=create
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch
// +kubebuilder:rbac:groups=sluice.dev,resources=nodeimagesets,verbs=get
// +kubebuilder:rbac:groups=sluice.dev,resources=imageprefetches,verbs=list

// pullSecrets finds the credentials that a node may have for an image.
type pullSecrets struct {
	apiReader client.Reader
	recorder  events.EventRecorder
	log       logr.Logger
}

// credentials returns the credentials for an image. The node's NodeImageSet must let the node pull
// it from the upstream, and names the pull secrets that count.
func (s pullSecrets) credentials(ctx context.Context, node string, image imageref.Reference) ([]credentialapi.Credential, error) {
	wanted, err := s.entry(ctx, node, image)
	if err != nil {
		return nil, err
	}
	prefetches := map[string][]v1alpha1.ImagePrefetch{} // by namespace
	var readable []corev1.Secret
	var owners [][]*v1alpha1.ImagePrefetch // of each readable Secret
	for _, ref := range wanted.ImagePullSecrets {
		if _, ok := prefetches[ref.Namespace]; !ok {
			var list v1alpha1.ImagePrefetchList
			if err := s.apiReader.List(ctx, &list, client.InNamespace(ref.Namespace)); err != nil {
				return nil, fmt.Errorf("list ImagePrefetches in namespace %q: %w", ref.Namespace, err)
			}
			prefetches[ref.Namespace] = list.Items
		}
		offering := ownersOf(ref, image, prefetches[ref.Namespace])
		if len(offering) == 0 {
			s.log.Info("Left out a pull secret that no ImagePrefetch of its namespace names for the image",
				"node", node, "image", wanted.Name, "namespace", ref.Namespace, "secret", ref.Name)
			continue
		}
		secret, err := s.read(ctx, ref, offering)
		if err != nil {
			return nil, err
		}
		if secret != nil {
			readable, owners = append(readable, *secret), append(owners, offering)
		}
	}

	ring, problems := keyring.New(readable)
	for i, secret := range readable {
		ref := v1alpha1.NamespacedSecretReference{Namespace: secret.Namespace, Name: secret.Name}
		if note := noteOn(problems, ref); note != "" {
			s.warn(owners[i], secret.ObjectMeta, v1alpha1.ReasonPullSecretMalformed, note)
		}
	}
	found := ring.Lookup(image)
	s.log.Info("Handed out credentials", "node", node, "image", wanted.Name, "count", len(found))
	return found, nil
}

// read reads a Secret. One that does not exist, or that Sluice may not read, is nil and is an
// Event on its owners.
func (s pullSecrets) read(ctx context.Context, ref v1alpha1.NamespacedSecretReference, owners []*v1alpha1.ImagePrefetch) (*corev1.Secret, error) {
	// An Event has no more of a Secret that could not be read than its name.
	unread := metav1.ObjectMeta{Namespace: ref.Namespace, Name: ref.Name}
	var secret corev1.Secret
	err := s.apiReader.Get(ctx, client.ObjectKey{Namespace: ref.Namespace, Name: ref.Name}, &secret)
	switch {
	case apierrors.IsNotFound(err):
		s.warn(owners, unread, v1alpha1.ReasonPullSecretMissing, fmt.Sprintf("Secret %s/%s does not exist; pulling goes on without it", ref.Namespace, ref.Name))
		return nil, nil
	case apierrors.IsForbidden(err): // the administrator may have allowed some namespaces only
		s.warn(owners, unread, v1alpha1.ReasonPullSecretMissing, fmt.Sprintf("Sluice may not read Secret %s/%s; pulling goes on without it", ref.Namespace, ref.Name))
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("get Secret %s/%s: %w", ref.Namespace, ref.Name, err)
	}
	return &secret, nil
}

// entry returns the entry of the image in the node's NodeImageSet, if the node is a seed of it. A
// peer is denied: it sends credentials to nobody. A seed sends them to each host of the node's
// hosts.toml that asks for credentials, as the kubelet does.
func (s pullSecrets) entry(ctx context.Context, node string, image imageref.Reference) (*v1alpha1.NodeImage, error) {
	notWanted := deny(http.StatusNotFound, credentialapi.ReasonNotWanted, "the NodeImageSet of this node does not name the image")
	set := v1alpha1.NodeImageSet{}
	err := s.apiReader.Get(ctx, client.ObjectKey{Name: node}, &set)
	if apierrors.IsNotFound(err) {
		return nil, notWanted.withDetail("the node has no NodeImageSet")
	}
	if err != nil {
		return nil, fmt.Errorf("get NodeImageSet %q: %w", node, err)
	}
	i := slices.IndexFunc(set.Spec.ImageSet, func(entry v1alpha1.NodeImage) bool { return entry.Name == image.String() })
	if i < 0 {
		return nil, notWanted.withDetail("the NodeImageSet does not name " + image.String())
	}
	wanted := &set.Spec.ImageSet[i]
	if wanted.RegistryPolicy != v1alpha1.RegistryPolicyDefault {
		return nil, deny(http.StatusForbidden, credentialapi.ReasonNotNeeded, "this node shall pull the image from the mirror, without credentials").
			withDetail("the NodeImageSet has the node pull " + wanted.Name + " from the mirror")
	}
	return wanted, nil
}

// ownersOf returns the ImagePrefetches that offer a Secret for an image: those of the Secret's
// namespace that name both. The controller writes NodeImageSets from such offers alone. The check
// covers a NodeImageSet that somebody else wrote: it cannot reach a Secret that the Secret's own
// namespace does not offer for that image.
func ownersOf(ref v1alpha1.NamespacedSecretReference, image imageref.Reference, prefetches []v1alpha1.ImagePrefetch) []*v1alpha1.ImagePrefetch {
	var owners []*v1alpha1.ImagePrefetch
	for i := range prefetches {
		prefetch := &prefetches[i]
		if slices.Contains(prefetch.Spec.ImagePullSecrets, v1alpha1.SecretReference{Name: ref.Name}) &&
			slices.ContainsFunc(prefetch.Spec.Images, func(name v1alpha1.ImageReference) bool {
				parsed, err := imageref.Parse(string(name))
				return err == nil && parsed == image
			}) {
			owners = append(owners, prefetch)
		}
	}
	return owners
}

// warn records an Event about a Secret on each of its owners. The Event is related to the Secret
// with the resource version that was read. Otherwise client-go would take a second Event with the
// same reason and objects for a repetition, and drop its note, though another version of the
// Secret may have another problem.
func (s pullSecrets) warn(owners []*v1alpha1.ImagePrefetch, secret metav1.ObjectMeta, reason, note string) {
	related := &corev1.Secret{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: secret.Namespace, Name: secret.Name, UID: secret.UID, ResourceVersion: secret.ResourceVersion,
		},
	}
	for _, owner := range owners {
		s.recorder.Eventf(owner, related, corev1.EventTypeWarning, reason, "ReadPullSecret", "%s", note)
	}
}

const (
	// shownProblems bounds the problems that a note lists.
	shownProblems = 3
	// maxNote bounds a note, in bytes; the API allows 1024.
	maxNote = 1000
)

// noteOn lists the first problems of a Secret, and says how many more there are; empty if there is
// none.
func noteOn(problems []keyring.Problem, ref v1alpha1.NamespacedSecretReference) string {
	var lines []string
	for _, p := range problems {
		if p.Namespace == ref.Namespace && p.Name == ref.Name {
			lines = append(lines, p.String())
		}
	}
	if more := len(lines) - shownProblems; more > 0 {
		lines = append(lines[:shownProblems], fmt.Sprintf("and %d more", more))
	}
	return excerpt.Of(strings.Join(lines, "; "), maxNote)
}
