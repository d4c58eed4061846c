// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package keyring

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-dev/sluice/internal/credentialapi"
)

// Problem is a Secret, or an entry of one, that cannot be used. Of the Secret's content it has at
// most the name of a registry, and only where that cannot be anything else.
type Problem struct {
	// Namespace and Name are the Secret's.
	Namespace, Name string
	// Key is the key in the Secret's data; empty if the problem is the Secret as a whole.
	Key string
	// Entry is the position of the entry under the key, from 1; 0 if the problem is the key as a
	// whole.
	Entry int
	// Registry is the host of the entry; empty if its name may not be that of a registry.
	Registry string
	// Message is one of the fixed texts of this package.
	Message string
}

// String is the problem in one line, for people.
func (p Problem) String() string {
	where := fmt.Sprintf("Secret %s/%s", p.Namespace, p.Name)
	if p.Key != "" {
		where += ", key " + p.Key
	}
	switch {
	case p.Registry != "":
		where += ", entry " + p.Registry
	case p.Entry != 0:
		where += fmt.Sprintf(", entry %d%s", p.Entry, notShown)
	}
	return where + ": " + p.Message
}

const notShown = " (the name is not shown, for it may be a credential)"

const (
	wrongType     = "the type is neither kubernetes.io/dockerconfigjson nor kubernetes.io/dockercfg"
	noData        = "the key is missing or empty"
	noJSON        = "not JSON, or not of the form that docker login writes"
	noEntries     = `no "auths" in it; what docker login wrote before version 1.7 belongs in a Secret of type kubernetes.io/dockercfg`
	noRegistry    = "the name is not a registry"
	noObject      = "not an object whose fields are strings"
	noAuth        = `"auth" is not base64 of USERNAME:PASSWORD`
	noCredential  = "neither auth, username and password, nor identitytoken; a credential store of the machine that wrote it cannot be asked"
	registryToken = "only a registrytoken, which containerd does not take"
)

// read returns the credentials of a Secret, sorted by the names of their entries, and a problem for
// each entry that cannot be used.
// The errors of the parsers are dropped, because they quote what they could not parse.
func read(secret *corev1.Secret) ([]locatedCredential, []Problem) {
	problem := Problem{Namespace: secret.Namespace, Name: secret.Name}
	fail := func(message string) ([]locatedCredential, []Problem) {
		problem.Message = message
		return nil, []Problem{problem}
	}

	var named entries
	switch secret.Type {
	case corev1.SecretTypeDockerConfigJson:
		problem.Key = corev1.DockerConfigJsonKey
	case corev1.SecretTypeDockercfg:
		problem.Key = corev1.DockerConfigKey
	default:
		return fail(wrongType)
	}
	data := secret.Data[problem.Key]
	if len(data) == 0 {
		return fail(noData)
	}
	if secret.Type == corev1.SecretTypeDockerConfigJson {
		var file struct {
			Auths entries `json:"auths"`
		}
		if json.Unmarshal(data, &file) != nil {
			return fail(noJSON)
		}
		if file.Auths.byName == nil {
			return fail(noEntries)
		}
		named = file.Auths
	} else if json.Unmarshal(data, &named) != nil {
		return fail(noJSON)
	}

	var usable []locatedCredential
	var problems []Problem
	for _, name := range slices.Sorted(maps.Keys(named.byName)) {
		problem := problem
		problem.Entry = named.position[name]
		location, ok := parseLocation(name)
		if !ok {
			problem.Message = noRegistry
			problems = append(problems, problem)
			continue
		}
		credential, message := readEntry(named.byName[name])
		if message != "" {
			problem.Registry, problem.Message = location.registry(), message
			problems = append(problems, problem)
			continue
		}
		usable = append(usable, locatedCredential{location: location, credential: credential})
	}
	return usable, problems
}

// entries are those of a docker config, and the position of each in it, from 1.
type entries struct {
	byName   map[string]json.RawMessage
	position map[string]int
}

// UnmarshalJSON implements json.Unmarshaler.
func (e *entries) UnmarshalJSON(data []byte) error {
	if err := json.Unmarshal(data, &e.byName); err != nil {
		return err
	}
	e.position = map[string]int{}
	decoder := json.NewDecoder(bytes.NewReader(data))
	if _, err := decoder.Token(); err != nil { // the brace, or null
		return err
	}
	for position := 1; decoder.More(); position++ {
		name, err := decoder.Token()
		if err != nil {
			return err
		}
		e.position[fmt.Sprint(name)] = position
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			return err
		}
	}
	return nil
}

// readEntry returns the credential of an entry, or the message of its problem. As in Docker, an
// identity token takes precedence over a password, and auth over username and password.
func readEntry(data json.RawMessage) (credentialapi.Credential, string) {
	var fields struct {
		Username      string `json:"username"`
		Password      string `json:"password"`
		Auth          string `json:"auth"`
		IdentityToken string `json:"identitytoken"`
		RegistryToken string `json:"registrytoken"`
	}
	if json.Unmarshal(data, &fields) != nil {
		return credentialapi.Credential{}, noObject
	}
	switch {
	case fields.IdentityToken != "":
		return credentialapi.Credential{IdentityToken: fields.IdentityToken}, ""
	case fields.Auth != "":
		username, password, ok := decodeAuth(fields.Auth)
		if !ok {
			return credentialapi.Credential{}, noAuth
		}
		return credentialapi.Credential{Username: username, Password: password}, ""
	case fields.Username != "":
		return credentialapi.Credential{Username: fields.Username, Password: fields.Password}, ""
	case fields.RegistryToken != "":
		return credentialapi.Credential{}, registryToken
	}
	return credentialapi.Credential{}, noCredential
}

// decodeAuth decodes the base64 of USERNAME:PASSWORD, with or without padding. Line breaks are
// ignored, as in encoding/base64, and other white space is an error. So is an empty username:
// containerd would take the password for an identity token.
func decodeAuth(auth string) (username, password string, ok bool) {
	encoding := base64.RawStdEncoding
	if strings.HasSuffix(strings.TrimSpace(auth), "=") {
		encoding = base64.StdEncoding
	}
	decoded, err := encoding.DecodeString(auth)
	if err != nil {
		return "", "", false
	}
	username, password, ok = strings.Cut(string(decoded), ":")
	return username, password, ok && username != ""
}
