// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// Image is what a node's containerd has under a name.
type Image struct {
	Digest string
	// Content says how much of the content for the node's platform is there, in the
	// words of ctr: "complete (5/5)".
	Content string
	// Unpacked reports whether the snapshot is there that containers start from.
	Unpacked bool
}

// Usable reports whether a container can start from the image without a registry.
func (i Image) Usable() bool { return strings.HasPrefix(i.Content, "complete ") && i.Unpacked }

// String names what is missing, if anything is.
func (i Image) String() string {
	switch {
	case !i.Unpacked:
		return fmt.Sprintf("%s, %s, not unpacked", i.Digest, i.Content)
	case !i.Usable():
		return fmt.Sprintf("%s, %s", i.Digest, i.Content)
	default:
		return i.Digest
	}
}

// Images asks the node's containerd what it has under each of the names. It goes by
// content and snapshots, and not by the image's record alone. A name that is not there
// is not in the result. An image of which even the manifest or the config is missing is
// an error.
func (n *Node) Images(ctx context.Context, names ...string) (map[string]Image, error) {
	filters := make([]string, len(names))
	for i, name := range names {
		filters[i] = "name==" + strconv.Quote(name)
	}
	out, err := n.Ctr(ctx, append([]string{"images", "check"}, filters...)...)
	if err != nil {
		return nil, fmt.Errorf("check the images of %s: %w", n.Name, err)
	}
	return parseImages(out)
}

// parseImages reads the table of `ctr images check`: REF TYPE DIGEST STATUS SIZE
// UNPACKED. Status and size have spaces in them.
func parseImages(table string) (map[string]Image, error) {
	const columns = 8
	images := map[string]Image{}
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] == "REF" {
			continue
		}
		unpacked, err := strconv.ParseBool(fields[len(fields)-1])
		if err != nil || len(fields) < columns {
			return nil, fmt.Errorf("read what ctr says of an image: %q", line)
		}
		images[fields[0]] = Image{Digest: fields[2], Content: fields[3] + " " + fields[4], Unpacked: unpacked}
	}
	return images, nil
}
