// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/sluice-dev/sluice/internal/imageref"
)

const (
	// anything is one segment of a path, or with a "/**" behind it every repository.
	anything = "*"
	// below is any depth of segments, at least one; at the end only.
	below = "**"

	dockerHub = "docker.io"
)

// dockerHubHosts are other names of the registry that images on docker.io come from. For CRI,
// images under these names are different images, so a policy that allows docker.io does not allow
// them. The network leads to the same registry, so a policy that denies docker.io denies them.
var dockerHubHosts = []string{"index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"}

// pattern matches repositories: a domain, then path segments.
type pattern struct {
	// everywhere reports whether the domain may be any; domain is empty then.
	everywhere bool
	// domain is a host with the port if there is one.
	domain string
	// subdomains reports whether the host is any below the domain, and not the domain itself.
	subdomains bool
	// segments are literal or "*", any one segment.
	segments []string
	// deep reports whether one or more further segments follow.
	deep bool
}

// parse parses a pattern. It does not check the literal parts: a part that no image reference can
// contain makes the pattern match too little, never too much. Where a pattern is written, check
// rejects it.
func parse(text string) (pattern, error) {
	domain, path, found := strings.Cut(text, "/")
	switch {
	case domain == "":
		return pattern{}, errors.New("cannot match: name the registry, such as ghcr.io, before the first slash")
	case text == anything || text == below:
		return pattern{}, errors.New(`is ambiguous: for every repository of every registry write "*/**"`)
	case !found && strings.ContainsAny(domain, ".:"):
		return pattern{}, fmt.Errorf("names no repository: write %q for all of the registry", text+"/**")
	case !found:
		return pattern{}, fmt.Errorf("is ambiguous: name the registry, such as %q", dockerHub+"/library/"+text)
	case domain == anything && path != below:
		return pattern{}, fmt.Errorf(`is ambiguous: name the registry, such as %q; only "*/**", every repository, stands for all registries`,
			"ghcr.io/"+path)
	case domain == anything:
		return pattern{everywhere: true, deep: true}, nil
	}

	var p pattern
	if p.domain, p.subdomains = strings.CutPrefix(domain, "*."); p.domain == "" || strings.Contains(p.domain, "*") {
		return pattern{}, errors.New(`cannot match: in the registry a * stands only at the start, for any subdomain, as in "*.example.com"`)
	}
	p.segments = strings.Split(path, "/")
	if last := len(p.segments) - 1; p.segments[last] == below {
		p.segments, p.deep = p.segments[:last], true
	}
	for _, segment := range p.segments {
		switch {
		case segment == below:
			return pattern{}, errors.New("cannot match: ** stands only at the end")
		case segment != anything && strings.Contains(segment, "*"):
			return pattern{}, errors.New("cannot match: a * stands for one whole segment between slashes, not for a part of it")
		}
	}
	return p, nil
}

// check parses a pattern. It returns an error if the pattern can match nothing, or something else
// than it seems to. To find that out, it makes up a repository that the pattern should match, and
// parses an image of that repository.
func check(text string) (pattern, error) {
	if err := checkSpelling(text); err != nil {
		return pattern{}, err
	}
	p, err := parse(text)
	if err != nil {
		return pattern{}, err
	}
	example := p.example()
	ref, err := imageref.Parse(example)
	if err != nil {
		return pattern{}, fmt.Errorf("cannot match: %q is not a repository: %w", example, errors.Unwrap(err))
	}
	if ref.Repository() != example {
		return pattern{}, p.misread(text, ref)
	}
	return p, nil
}

// checkSpelling rejects what is usual in image references and has no meaning in a pattern.
func checkSpelling(text string) error {
	domain, path, _ := strings.Cut(text, "/")
	switch {
	case strings.Contains(text, "://"):
		return errors.New("cannot match: leave out the scheme")
	case strings.Contains(text, "@sha"):
		return errors.New("cannot match: a pattern names a repository: leave out the digest")
	case strings.Contains(domain, "@"):
		return errors.New("cannot match: leave out the user name")
	case strings.Contains(path, ":"):
		return errors.New("cannot match: a pattern names a repository: leave out the tag")
	case domain != strings.ToLower(domain):
		return errors.New("is ambiguous: write the registry in lower case")
	}
	return nil
}

// example is a repository that the pattern matches if it can match any.
func (p pattern) example() string {
	domain := p.domain
	switch {
	case p.everywhere:
		domain = "registry.example.com"
	case p.subdomains:
		domain = "sub." + domain
	}
	segments := slices.Clone(p.segments)
	for i, segment := range segments {
		if segment == anything {
			segments[i] = "any"
		}
	}
	if p.deep {
		segments = append(segments, "any")
		if len(segments) == 1 {
			segments = append(segments, "any") // a repository on docker.io has two segments
		}
	}
	return domain + "/" + strings.Join(segments, "/")
}

// misread says what an image that is written like the pattern would mean.
func (p pattern) misread(text string, ref imageref.Reference) error {
	domain, path, _ := strings.Cut(text, "/")
	switch {
	case domain == dockerHub:
		return fmt.Errorf("cannot match: a repository on docker.io has two segments at least: write %q", dockerHub+"/library/"+path)
	case ref.Domain() == dockerHub && slices.Contains(dockerHubHosts, domain):
		return fmt.Errorf("cannot match: images of %s are on docker.io: write %q", domain, dockerHub+"/"+path)
	}
	return fmt.Errorf("is ambiguous: %q is no registry, so such an image is on docker.io: write %q, or the registry with its port or domain",
		domain, dockerHub+"/"+text)
}

// matches reports whether the repository of ref is inside the pattern, with its name as written.
func (p pattern) matches(ref imageref.Reference) bool {
	return p.matchesDomain(ref.Domain()) && p.matchesPath(ref.Path())
}

// matchesAnySpelling reports whether the repository of ref is inside the pattern under any name
// that leads to the same registry.
func (p pattern) matchesAnySpelling(ref imageref.Reference) bool {
	if !p.matchesPath(ref.Path()) {
		return false
	}
	host, port := splitPort(strings.ToLower(ref.Domain()))
	domain := host
	if _, wanted := splitPort(p.domain); wanted != "" {
		domain = host + ":" + cmp.Or(strings.TrimLeft(port, "0"), "443")
	}
	return p.matchesDomain(domain) || slices.Contains(dockerHubHosts, host) && p.matchesDomain(dockerHub)
}

func (p pattern) matchesDomain(domain string) bool {
	switch {
	case p.everywhere:
		return true
	case p.subdomains:
		return strings.HasSuffix(domain, "."+p.domain)
	}
	return domain == p.domain
}

func (p pattern) matchesPath(path string) bool {
	return p.matchesSegments(strings.Split(path, "/"))
}

func (p pattern) matchesSegments(segments []string) bool {
	if len(segments) < len(p.segments) || (len(segments) > len(p.segments)) != p.deep {
		return false
	}
	for i, segment := range p.segments {
		if segment != anything && segment != segments[i] {
			return false
		}
	}
	return true
}

// covers reports whether p matches everything that other matches. If p denies, other then allows
// nothing.
func (p pattern) covers(other pattern) bool {
	return p.coversDomain(other) && p.coversPath(other)
}

func (p pattern) coversDomain(other pattern) bool {
	switch {
	case p.everywhere:
		return true
	case other.everywhere:
		return false
	case other.subdomains:
		return p.subdomains && (p.domain == other.domain || p.matchesDomain(other.domain))
	}
	return p.matchesDomain(other.domain)
}

func (p pattern) coversPath(other pattern) bool {
	if other.deep {
		// The shallowest repository of other stands for the deeper ones.
		return p.deep && p.matchesSegments(append(slices.Clone(other.segments), anything))
	}
	return p.matchesSegments(other.segments)
}

// splitPort splits a domain into host and port. The colons of an IPv6 address are inside brackets.
func splitPort(domain string) (host, port string) {
	if !strings.Contains(domain, ":") || strings.HasSuffix(domain, "]") {
		return domain, ""
	}
	at := strings.LastIndexByte(domain, ':')
	return domain[:at], domain[at+1:]
}
