// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package keyring finds the credentials for an image in image pull secrets, and in the answers of
// credential providers, as the kubelet does (k8s.io/kubernetes/pkg/credentialprovider). The same
// entries match, in the same order, so that Sluice can prefetch what a Pod can pull.
//
// It differs from the kubelet in six points:
//   - A malformed entry or Secret is reported, and the others are used all the same.
//   - An identitytoken is used.
//   - An entry without any credential is left out. The kubelet tries it as anonymous.
//   - The order is always the same, even of two entries of one Secret for the same registry, and no
//     credential is tried twice.
//   - Docker Hub's credentials go to docker.io alone. The kubelet also offers them to a registry
//     whose name has neither dot nor port, such as localhost.
//   - An entry for an IPv6 address without a port matches. The kubelet reads the brackets as a
//     pattern.
package keyring

import (
	"cmp"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-dev/sluice/internal/credentialapi"
	"github.com/sluice-dev/sluice/internal/imageref"
)

// Keyring is the credentials of some pull secrets, or of some credential providers.
type Keyring struct {
	// credentials are sorted in the order in which they are tried.
	credentials []locatedCredential
}

// locatedCredential is a credential and what it is for.
type locatedCredential struct {
	location   Location
	credential credentialapi.Credential
}

// FromSecrets reads pull secrets, in the order of imagePullSecrets. Entries that cannot be used are
// left out of the keyring, and returned as problems.
func FromSecrets(secrets []corev1.Secret) (*Keyring, []Problem) {
	var credentials []locatedCredential
	var problems []Problem
	for i := range secrets {
		usable, found := read(&secrets[i])
		credentials = append(credentials, usable...)
		problems = append(problems, found...)
	}
	return newKeyring(credentials), problems
}

// FromAnswers returns the keyring of the answers of credential providers, in the order of these.
// Each has credentials by the names of their entries. An entry whose name is no registry, or that has
// no username, is left out: containerd would take its password for an identity token.
func FromAnswers(answers []map[string]credentialapi.Credential) *Keyring {
	var credentials []locatedCredential
	for _, entries := range answers {
		for _, name := range slices.Sorted(maps.Keys(entries)) {
			if location, ok := parseLocation(name); ok && entries[name].Username != "" {
				credentials = append(credentials, locatedCredential{location: location, credential: entries[name]})
			}
		}
	}
	return newKeyring(credentials)
}

func newKeyring(credentials []locatedCredential) *Keyring {
	// The kubelet sorts in descending order, so that a longer path precedes a shorter one, and a
	// host the wildcard that covers it. The sort is stable, so that credentials of one location keep
	// the order of their sources.
	slices.SortStableFunc(credentials, func(a, b locatedCredential) int {
		return cmp.Compare(b.location.key(), a.location.key())
	})
	return &Keyring{credentials: credentials}
}

// Lookup returns the credentials to try for an image, the most specific first; none if no entry
// matches.
func (k *Keyring) Lookup(image imageref.Reference) []credentialapi.Credential {
	found := k.matching(func(l Location) bool { return l.Covers(image) })
	if len(found) == 0 && image.Domain() == "docker.io" {
		// `docker login` writes Docker Hub's credentials under the name that Docker Hub had in the
		// first version of the registry protocol.
		found = k.matching(func(l Location) bool { return l.key() == "index.docker.io" })
	}
	return found
}

func (k *Keyring) matching(matches func(Location) bool) []credentialapi.Credential {
	var found []credentialapi.Credential
	for _, c := range k.credentials {
		if matches(c.location) && !slices.Contains(found, c.credential) {
			found = append(found, c.credential)
		}
	}
	return found
}
