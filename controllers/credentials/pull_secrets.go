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
	"github.com/sluice-dev/sluice/internal/credentialapi"
	"github.com/sluice-dev/sluice/internal/excerpt"
	"github.com/sluice-dev/sluice/internal/imageprefetch"
	"github.com/sluice-dev/sluice/internal/imageref"
	"github.com/sluice-dev/sluice/internal/keyring"
)

// Pull secrets are read one by one. Nothing lists or watches them.
//
// +kubebuilder:rbac:groups="",resources=secrets;serviceaccounts,verbs=get
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
// it from the upstream, and names where the credentials come from that count.
func (s pullSecrets) credentials(ctx context.Context, node string, image imageref.Reference) ([]credentialapi.Credential, error) {
	wanted, err := s.entry(ctx, node, image)
	if err != nil {
		return nil, err
	}
	prefetches := map[string][]v1alpha1.ImagePrefetch{} // by namespace
	var readable []corev1.Secret
	var owners [][]*v1alpha1.ImagePrefetch // of each readable Secret
	for _, source := range wanted.ImagePullSecrets {
		if _, ok := prefetches[source.Namespace]; !ok {
			var list v1alpha1.ImagePrefetchList
			if err := s.apiReader.List(ctx, &list, client.InNamespace(source.Namespace)); err != nil {
				return nil, fmt.Errorf("list ImagePrefetches in namespace %q: %w", source.Namespace, err)
			}
			prefetches[source.Namespace] = list.Items
		}
		offering := ownersOf(source, image, prefetches[source.Namespace])
		if len(offering) == 0 {
			s.log.Info("Left out a pull secret that no ImagePrefetch of its namespace names for the image",
				"node", node, "image", wanted.Name, "kind", source.Kind, "namespace", source.Namespace, "name", source.Name)
			continue
		}
		secrets, err := s.read(ctx, source, offering)
		if err != nil {
			return nil, err
		}
		for _, secret := range secrets {
			readable, owners = append(readable, secret), append(owners, offering)
		}
	}

	ring, problems := keyring.FromSecrets(readable)
	for i, secret := range readable {
		if note := noteOn(problems, client.ObjectKeyFromObject(&secret)); note != "" {
			s.warn(owners[i], "Secret", secret.ObjectMeta, v1alpha1.ReasonPullSecretMalformed, note)
		}
	}
	found := ring.Lookup(image)
	s.log.Info("Handed out credentials", "node", node, "image", wanted.Name, "count", len(found))
	return found, nil
}

// read reads the Secret, or those that the ServiceAccount names.
func (s pullSecrets) read(ctx context.Context, source v1alpha1.PullSecretSource, owners []*v1alpha1.ImagePrefetch) ([]corev1.Secret, error) {
	key := client.ObjectKey{Namespace: source.Namespace, Name: source.Name}
	if !source.IsServiceAccount() {
		var secret corev1.Secret
		found, err := s.get(ctx, key, "Secret", &secret, owners)
		if !found {
			return nil, err
		}
		return []corev1.Secret{secret}, nil
	}
	var account corev1.ServiceAccount
	if found, err := s.get(ctx, key, "ServiceAccount", &account, owners); !found {
		return nil, err
	}
	var secrets []corev1.Secret
	for _, named := range account.ImagePullSecrets {
		var secret corev1.Secret
		found, err := s.get(ctx, client.ObjectKey{Namespace: source.Namespace, Name: named.Name}, "Secret", &secret, owners)
		if err != nil {
			return nil, err
		}
		if found {
			secrets = append(secrets, secret)
		}
	}
	return secrets, nil
}

// get reads an object. It is an Event on its owners if the object does not exist, or if Sluice may not
// read it.
func (s pullSecrets) get(ctx context.Context, key client.ObjectKey, kind string, object client.Object, owners []*v1alpha1.ImagePrefetch) (bool, error) {
	// An Event has no more of an object that could not be read than its name.
	unread := metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}
	err := s.apiReader.Get(ctx, key, object)
	switch {
	case apierrors.IsNotFound(err):
		s.warn(owners, kind, unread, v1alpha1.ReasonPullSecretMissing, fmt.Sprintf("%s %s does not exist; pulling goes on without it", kind, key))
		return false, nil
	case apierrors.IsForbidden(err): // the administrator may have allowed some namespaces only
		s.warn(owners, kind, unread, v1alpha1.ReasonPullSecretMissing, fmt.Sprintf("Sluice may not read %s %s; pulling goes on without it", kind, key))
		return false, nil
	case err != nil:
		return false, fmt.Errorf("get %s %s: %w", kind, key, err)
	}
	return true, nil
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

// ownersOf returns the ImagePrefetches that offer a Secret or a ServiceAccount for an image: those of
// its namespace that name both. The controller writes NodeImageSets from such offers alone. The check
// covers a NodeImageSet that somebody else wrote: it cannot reach a Secret that the Secret's own
// namespace does not offer for that image.
func ownersOf(source v1alpha1.PullSecretSource, image imageref.Reference, prefetches []v1alpha1.ImagePrefetch) []*v1alpha1.ImagePrefetch {
	var owners []*v1alpha1.ImagePrefetch
	for i := range prefetches {
		prefetch := &prefetches[i]
		if offers(&prefetch.Spec, source) &&
			slices.ContainsFunc(prefetch.Spec.Images, func(name v1alpha1.ImageReference) bool {
				parsed, err := imageref.Parse(string(name))
				return err == nil && parsed == image
			}) {
			owners = append(owners, prefetch)
		}
	}
	return owners
}

// offers reports whether the spec names the Secret or, with no Secrets at all, the ServiceAccount.
func offers(spec *v1alpha1.ImagePrefetchSpec, source v1alpha1.PullSecretSource) bool {
	if source.IsServiceAccount() {
		return len(spec.ImagePullSecrets) == 0 && imageprefetch.ServiceAccountName(spec) == source.Name
	}
	return slices.Contains(spec.ImagePullSecrets, v1alpha1.SecretReference{Name: source.Name})
}

// warn records an Event about a Secret or a ServiceAccount on each of its owners. The Event is related
// to the object with the resource version that was read. Otherwise client-go would take a second Event
// with the same reason and objects for a repetition, and drop its note, though another version of the
// object may have another problem.
func (s pullSecrets) warn(owners []*v1alpha1.ImagePrefetch, kind string, object metav1.ObjectMeta, reason, note string) {
	related := &metav1.PartialObjectMetadata{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: kind},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: object.Namespace, Name: object.Name, UID: object.UID, ResourceVersion: object.ResourceVersion,
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
func noteOn(problems []keyring.Problem, secret client.ObjectKey) string {
	var lines []string
	for _, p := range problems {
		if p.Namespace == secret.Namespace && p.Name == secret.Name {
			lines = append(lines, p.String())
		}
	}
	if more := len(lines) - shownProblems; more > 0 {
		lines = append(lines[:shownProblems], fmt.Sprintf("and %d more", more))
	}
	return excerpt.Of(strings.Join(lines, "; "), maxNote)
}
