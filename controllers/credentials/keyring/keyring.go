// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package keyring finds the credentials for an image in image pull secrets, as the
// kubelet does (k8s.io/kubernetes/pkg/credentialprovider): the same entries fit, and
// they are tried in the same order, so that what a Pod can pull Sluice can prefetch.
//
// It differs from the kubelet's in this:
//   - One malformed entry or Secret spoils nothing else, and is reported.
//   - An identitytoken is used.
//   - An entry without any credential is left out; the kubelet tries it as anonymous.
//   - The order is the same each time, also where two entries of one Secret mean the
//     same registry, and no credential is tried twice.
//   - Docker Hub's credentials go to docker.io alone; the kubelet offers them also to
//     a registry whose name has neither dot nor port, such as localhost.
//   - An entry for an IPv6 address without a port fits; the kubelet takes the brackets
//     for a pattern.
package keyring

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-dev/sluice/internal/credentialapi"
	"github.com/sluice-dev/sluice/internal/imageref"
)

// Keyring holds the credentials of some pull secrets.
type Keyring struct {
	// entries are sorted in the order in which they are tried.
	entries []entry
}

type entry struct {
	location   location
	credential credentialapi.Credential
}

// New reads pull secrets, which are given in the order of imagePullSecrets. What
// cannot be used is left out of the keyring and reported.
func New(secrets []corev1.Secret) (*Keyring, []Problem) {
	keyring := &Keyring{}
	var problems []Problem
	for i := range secrets {
		entries, found := read(&secrets[i])
		keyring.entries = append(keyring.entries, entries...)
		problems = append(problems, found...)
	}
	// The kubelet sorts backwards, so that a longer path comes before a shorter one
	// and a host before the wildcard that covers it. Stable: entries of the same
	// location stay in the order of the Secrets.
	slices.SortStableFunc(keyring.entries, func(a, b entry) int { return cmp.Compare(b.location.key(), a.location.key()) })
	return keyring, problems
}

// Lookup returns the credentials to try for an image, the most specific first. None
// means that no entry fits.
func (k *Keyring) Lookup(image imageref.Reference) []credentialapi.Credential {
	found := k.matching(func(l location) bool { return l.covers(image.Domain(), image.Path()) })
	if len(found) == 0 && image.Domain() == "docker.io" {
		// `docker login` writes Docker Hub's credentials under the name that it
		// had in the first version of the registry protocol.
		found = k.matching(func(l location) bool { return l.key() == "index.docker.io" })
	}
	return found
}

func (k *Keyring) matching(matches func(location) bool) []credentialapi.Credential {
	var found []credentialapi.Credential
	for _, e := range k.entries {
		if matches(e.location) && !slices.Contains(found, e.credential) {
			found = append(found, e.credential)
		}
	}
	return found
}
