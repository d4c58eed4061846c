// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"slices"

	"github.com/sluice-dev/sluice/internal/imageref"
)

// Repositories are patterns of repositories, as in a PrefetchPolicy.
type Repositories []pattern

// ParseRepositories parses patterns. Its error says which one is wrong, and what to write instead.
func ParseRepositories(texts []string) (Repositories, error) {
	var all Repositories
	for _, text := range texts {
		p, err := check(text)
		if err != nil {
			return nil, fmt.Errorf("%q %w", text, err)
		}
		all = append(all, p)
	}
	return all, nil
}

// Contain reports whether any pattern matches the image's repository.
func (r Repositories) Contain(ref imageref.Reference) bool {
	return slices.ContainsFunc(r, func(p pattern) bool { return p.matches(ref) })
}
