// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package keyring

import (
	"net"
	"net/url"
	"path"
	"regexp"
	"strings"
)

// location is what an entry's name says: for which registry, and which repositories
// of it, the credential is meant.
type location struct {
	host string // with the port, as it was written
	path string // "" or a prefix of repositories, beginning with a slash
}

// parseLocation reads the name of an entry: HOST, HOST:PORT, HOST/PATH, each also as
// an http or https URL. The API versions /v1/ and /v2/ at the beginning of the path
// mean the whole host, as for Docker.
func parseLocation(name string) (location, bool) {
	if !strings.HasPrefix(name, "https://") && !strings.HasPrefix(name, "http://") {
		name = "https://" + name
	}
	parsed, err := url.Parse(name)
	if err != nil || parsed.Host == "" {
		return location{}, false
	}
	l := location{host: parsed.Host, path: parsed.Path}
	if strings.HasPrefix(l.path, "/v1/") || strings.HasPrefix(l.path, "/v2/") {
		l.path = l.path[len("/v1"):]
	}
	if l.path == "/" {
		l.path = ""
	}
	return l, true
}

// key orders locations, and is equal for equal ones.
func (l location) key() string { return l.host + l.path }

// covers says whether a repository lies at the location. The port must be the same
// and the path a prefix, of characters rather than of segments. In each label of the
// host a star stands for any characters: "*.example.com" covers "eu.example.com", but
// neither "example.com" nor "a.eu.example.com".
func (l location) covers(domain, repository string) bool {
	if !strings.HasPrefix("/"+repository, l.path) {
		return false
	}
	if l.host == domain {
		return true // also an IPv6 address, whose brackets would be a pattern
	}
	pattern, patternPort := splitPort(l.host)
	name, port := splitPort(domain)
	patterns, labels := strings.Split(pattern, "."), strings.Split(name, ".")
	if patternPort != port || len(patterns) != len(labels) {
		return false
	}
	for i := range patterns {
		if matched, err := path.Match(patterns[i], labels[i]); err != nil || !matched {
			return false
		}
	}
	return true
}

func splitPort(host string) (name, port string) {
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		return host, ""
	}
	return name, port
}

// registryName is what surely is the name of a registry: names with a dot, in lower
// case. People do write "user:password", or the base64 of it, where the registry
// belongs, and that must not be shown to anyone.
var registryName = regexp.MustCompile(`^(localhost|[a-z0-9*-]{1,63}([.][a-z0-9*-]{1,63}){1,9})(:[0-9]{1,5})?$`)

// registry is the host of the location if it can be shown, and otherwise nothing. The
// rest of an entry's name, which may contain a user and a password, is never shown.
func (l location) registry() string {
	if !registryName.MatchString(l.host) {
		return ""
	}
	return l.host
}
