// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"

	"github.com/opencontainers/go-digest"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/imageref"
)

// Runtime is the node's container runtime. Its errors wrap one of this package's Err variables
// where the agent is to distinguish them. All methods may be called at the same time, except Pull
// for the same image name.
type Runtime interface {
	// Check reports whether the image is on the node: the content of the digest is complete for
	// the node's platform, unpacked, and has every name that a Pod may use for it. It asks neither
	// registry nor mirror.
	Check(ctx context.Context, ref imageref.Reference, want digest.Digest) (Presence, error)

	// Pull fetches what is missing and records the names, so that Check finds the image. Content
	// that was fetched before an error stays for the next try, until Retain no longer lists the
	// image; after ErrInsufficientDisk nothing stays of what was written. For room it may delete images
	// that pulls have brought, that Retain no longer lists, and that nothing uses. Pull calls onProgress
	// at each progress; the caller's timeout is for the time between two calls. onProgress must not block.
	Pull(ctx context.Context, req PullRequest, onProgress func(Progress)) (Result, error)

	// Retain sets the runtime's pins to the names of the pinned images, and keeps the unfinished
	// content of all listed images. The unfinished content of other images may be deleted, at once
	// or later. It leaves pins of other clients as they are, and deletes no image.
	Retain(ctx context.Context, images []Retained) error

	// Watch calls changed for each change of an image name. It calls connected once, after which
	// no change is missed. Then it looks for what is wrong on the node, calls found with that, and
	// again whenever it has changed. It returns why it ended: ctx has ended, or the runtime went away
	// or no longer answers.
	Watch(ctx context.Context, connected func(), changed func(Change), found func([]Finding)) error
}

// Presence is the result of a check.
type Presence struct {
	// Present reports whether nothing is missing.
	Present bool
	// SizeBytes is the compressed size for the node's platform; 0 if not Present.
	SizeBytes int64
}

// PullRequest is one image to bring onto the node.
type PullRequest struct {
	// Ref names the image.
	Ref imageref.Reference
	// Digest is what the name is to mean. If it is empty, RegistryPolicyDefault asks the registry what
	// the tag means now, and RegistryPolicyLocal takes what it means on the node. The latter knows
	// nothing else, and RegistryPolicyMirror needs a digest.
	Digest digest.Digest
	// Policy says where content may come from.
	Policy v1alpha1.RegistryPolicy
	// Pinned protects the image from the kubelet's garbage collection.
	Pinned bool
	// Credentials are for the registry, in the order to try them; none is anonymous.
	Credentials []Credential
}

// Progress is how far a pull is. A field that is not known yet is zero.
type Progress struct {
	// Digest is that of the PullRequest. If that has none, it is the digest that the tag means.
	Digest digest.Digest
	// SizeBytes is the compressed size for the node's platform.
	SizeBytes int64
	// PulledBytes is the number of bytes that this pull has received.
	PulledBytes int64
	// Received reports whether all content is there, so that only work on the node is left, such as
	// unpacking.
	Received bool
}

// Result is the outcome of a successful pull.
type Result struct {
	Digest    digest.Digest
	SizeBytes int64
	// PulledBytes is the content that came over the network; 0 if all was there.
	PulledBytes int64
	// Source is SourceLocal if nothing was fetched.
	Source v1alpha1.ImageSource
}

// Retained is an image of the node's spec, for Retain.
type Retained struct {
	Ref imageref.Reference
	// Digest is empty while it is not known.
	Digest digest.Digest
	Pinned bool
}

// Change is that an image name was created, moved or deleted.
type Change struct {
	Name    string
	Deleted bool
}
