// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package credentialprovider

import (
	"maps"
	"sync"
	"time"

	"github.com/sluice-dev/sluice/internal/credentialapi"
	"github.com/sluice-dev/sluice/internal/imageref"
)

// globalKey is neither a registry nor a repository.
const globalKey = "<global>"

// cache has the answers of one plugin, by repository, registry or globalKey.
type cache struct {
	mu      sync.Mutex
	answers map[string]answer
}

type answer struct {
	entries map[string]credentialapi.Credential
	expires time.Time
}

// get returns the answer for an image: that for its repository if there is one, before that for its
// registry and that for all. It forgets those that have expired.
func (c *cache) get(image imageref.Reference) (map[string]credentialapi.Credential, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(c.answers, func(_ string, a answer) bool { return now.After(a.expires) })
	for _, key := range []string{image.Repository(), image.Domain(), globalKey} {
		if found, ok := c.answers[key]; ok {
			return found.entries, true
		}
	}
	return nil, false
}

func (c *cache) put(key string, entries map[string]credentialapi.Credential, duration time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.answers == nil {
		c.answers = map[string]answer{}
	}
	c.answers[key] = answer{entries: entries, expires: time.Now().Add(duration)}
}
