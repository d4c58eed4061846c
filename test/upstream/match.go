// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package upstream

import "github.com/sluice-dev/sluice/test/distribution"

// Match picks requests: for a fault to strike, or to be counted. A fault asks
// it under the server's lock, when the request is not answered yet.
type Match func(Request) bool

// Any picks every request.
func Any(Request) bool { return true }

// Blobs picks requests for configs and layers.
func Blobs(r Request) bool { return r.Kind == distribution.Blob }

// Manifests picks requests for manifests and indexes, by tag or by digest.
func Manifests(r Request) bool { return r.Kind == distribution.Manifest || r.Kind == distribution.Tag }

// Of picks requests for the content with this digest, also by a tag.
func Of(digest string) Match {
	return func(r Request) bool { return r.Digest == digest }
}

// In picks requests for one repository.
func In(repository string) Match {
	return func(r Request) bool { return r.Repository == repository }
}

// From picks requests of one client address.
func From(client string) Match {
	return func(r Request) bool { return r.Client == client }
}

// All picks what every one of the matches picks.
func All(matches ...Match) Match {
	return func(r Request) bool {
		for _, match := range matches {
			if !match(r) {
				return false
			}
		}
		return true
	}
}
