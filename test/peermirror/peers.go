// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package peermirror

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// Peers returns the base URLs of the other nodes' mirrors, such as
// "http://10.0.0.2:5000". It is asked for each search.
type Peers func() ([]string, error)

// FixedPeers never change.
func FixedPeers(urls ...string) Peers {
	return func() ([]string, error) { return urls, nil }
}

// PeersFile reads the peers from a file, one URL a line, each time: nodes come
// and go. Without the file there are none yet. Replace it by renaming, so that
// it is never read half written.
func PeersFile(path string) Peers {
	return func() ([]string, error) {
		content, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return strings.Fields(string(content)), err
	}
}

// Without leaves one URL out, so that all nodes can be given the same list.
func (p Peers) Without(self string) Peers {
	return func() ([]string, error) {
		urls, err := p()
		return slices.DeleteFunc(slices.Clone(urls), func(url string) bool { return url == self }), err
	}
}
