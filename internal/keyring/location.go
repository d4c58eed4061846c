// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package keyring

import (
	"net"
	"net/url"
	"path"
	"regexp"
	"strings"

	"github.com/sluice-dev/sluice/internal/imageref"
)

// Location is the name of an entry, parsed: the registry that the credential is for, and which of
// its repositories.
type Location struct {
	host string // with the port, as written
	path string // "", or a prefix of repositories that begins with a slash
}

// parseLocation parses the name of an entry: HOST, HOST:PORT or HOST/PATH, or an http or https URL
// of these. As in Docker, an API version (/v1/ or /v2/) at the beginning of the path is no part of
// it.
func parseLocation(name string) (Location, bool) {
	if !strings.HasPrefix(name, "https://") && !strings.HasPrefix(name, "http://") {
		name = "https://" + name
	}
	parsed, err := url.Parse(name)
	if err != nil || parsed.Host == "" {
		return Location{}, false
	}
	l := Location{host: parsed.Host, path: parsed.Path}
	if strings.HasPrefix(l.path, "/v1/") || strings.HasPrefix(l.path, "/v2/") {
		l.path = l.path[len("/v1"):]
	}
	if l.path == "/" {
		l.path = ""
	}
	return l, true
}

// ParseMatchImage parses an entry of the matchImages of a credential provider. Unlike the name of an
// entry it has no scheme, and what looks like an API version is a path like any other.
func ParseMatchImage(pattern string) (Location, error) {
	parsed, err := url.Parse("https://" + pattern)
	if err != nil {
		return Location{}, err
	}
	return Location{host: parsed.Host, path: parsed.Path}, nil
}

// key orders locations, and is equal for equal ones.
func (l Location) key() string { return l.host + l.path }

// Covers reports whether the image's repository is at the location.
func (l Location) Covers(image imageref.Reference) bool {
	return l.covers(image.Domain(), image.Path())
}

// covers is Covers, of the two parts of a repository. The port must be equal, and the path must
// be a prefix, by characters and not by segments. A star in a label of the host stands for any
// characters of that label: "*.example.com" covers "eu.example.com", but neither "example.com" nor
// "a.eu.example.com".
func (l Location) covers(domain, repository string) bool {
	if !strings.HasPrefix("/"+repository, l.path) {
		return false
	}
	if l.host == domain {
		return true // an IPv6 address ends here: its brackets would be a pattern below
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

// registryName matches names that can only be those of a registry: localhost, and lower-case names
// with a dot. Some people write "user:password", or its base64, in place of the registry, and that
// must not be shown.
var registryName = regexp.MustCompile(`^(localhost|[a-z0-9*-]{1,63}([.][a-z0-9*-]{1,63}){1,9})(:[0-9]{1,5})?$`)

// registry is the host of the location if it is certainly the name of a registry; empty otherwise.
// The rest of an entry's name is never shown, because it may have a username and a password.
func (l Location) registry() string {
	if !registryName.MatchString(l.host) {
		return ""
	}
	return l.host
}
