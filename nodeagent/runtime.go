// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"

	"github.com/opencontainers/go-digest"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/imageref"
)

// Runtime is the node's container runtime, as far as the agent needs it. Its
// errors wrap one of the Err variables of this package where the agent should act
// on the kind. All methods may be called at the same time; Pull is never called
// twice at a time for one image name.
type Runtime interface {
	// Check says whether the node holds the image: the content of the digest
	// complete for the node's platform, unpacked, and found under every name that a
	// Pod may use for it. It asks nobody but the runtime.
	Check(ctx context.Context, ref imageref.Reference, want digest.Digest) (Presence, error)

	// Pull makes Check true, and fetches no more than what is missing. What was
	// fetched before an error stays for the next try, until Retain lets go of it.
	// Each call of report is a sign of progress; the silence between two is what the
	// caller's timeout measures. report must not block.
	Pull(ctx context.Context, req PullRequest, report func(Progress)) (Result, error)

	// Retain pins exactly the names of the pinned images, and keeps unfinished
	// content of the listed images; that of others may go, at once or after a while.
	// It touches no pin that others have set, and deletes no image.
	Retain(ctx context.Context, images []Retained) error

	// Watch tells of changes to image names until ctx ends or the runtime goes away, or
	// answers no more, and then returns why. It calls connected once, after which no change is missed.
	Watch(ctx context.Context, connected func(), changed func(Change)) error
}

// Presence is what a node holds under an image's names.
type Presence struct {
	// Present says that nothing is missing.
	Present bool
	// SizeBytes is the compressed size for the node's platform; 0 if not Present.
	SizeBytes int64
}

// PullRequest is one image to bring onto the node.
type PullRequest struct {
	// Ref names the image.
	Ref imageref.Reference
	// Digest is what shall be held under the name. Empty: ask the registry what the
	// tag means now; for RegistryPolicyDefault only.
	Digest digest.Digest
	// Policy says where content may come from.
	Policy v1alpha1.RegistryPolicy
	// Pinned keeps the kubelet's garbage collection off.
	Pinned bool
	// Credentials for the registry, in the order to try them; none is anonymous.
	Credentials []Credential
}

// Progress is how far a pull is. Fields that are not known yet are zero.
type Progress struct {
	// Digest is what the tag was resolved to, or what was asked for.
	Digest digest.Digest
	// SizeBytes is the compressed size for the node's platform.
	SizeBytes int64
	// PulledBytes is how much was received by this pull.
	PulledBytes int64
	// Received says that nothing is received or waited for any more: what is left is
	// work on the node, such as unpacking.
	Received bool
}

// Result is what a successful pull brought.
type Result struct {
	Digest    digest.Digest
	SizeBytes int64
	// PulledBytes went over the network; 0 when the content was there.
	PulledBytes int64
	// Source is SourceLocal when nothing was fetched.
	Source v1alpha1.ImageSource
}

// Retained is an image that the node's spec names.
type Retained struct {
	Ref imageref.Reference
	// Digest is empty while it is not known.
	Digest digest.Digest
	Pinned bool
}

// Change tells that a name was created, moved or deleted.
type Change struct {
	Name    string
	Deleted bool
}
