// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package containerd is the node agent's Runtime on containerd: the only package
// that knows it.
//
// A seed (RegistryPolicyDefault) has the daemon pull through its transfer service,
// as it does for the kubelet (transfer.go). A peer (RegistryPolicyMirror) follows the
// mirrors blob by blob (follow.go) and writes into the same content store under the
// same ingest keys, so that a pull of the kubelet's and ours share their work:
//
//	          content complete already? ──yes──────────────┐
//	                    │ no                               │
//	     Default        ▼          Mirror                  │
//	   ┌────────────────┴────────────────┐                 │
//	ask the tag's digest         manifest by digest        │
//	transfer, unpack             disk check                │
//	disk check meanwhile         each blob when it is there│
//	   │                         unpack behind it          │
//	   └────────────────┬────────────────┘                 ▼
//	                    └──▶ image records: id, repo@digest, repo:tag
//
// Everything that a pull fetches is held by a lease named after the image until the
// pull succeeds or nobody wants the image any more; so containerd's garbage collection
// takes nothing between two tries, and no blob is fetched twice.
//
// The daemon must keep discard_unpacked_layers = false (its default): an image
// without its layers can be run, but no mirror can serve it, and it does not count as
// present here.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/go-logr/logr"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/nodeagent/containerd/mirror"
)

// Options of a Runtime.
type Options struct {
	// Address is the path of the daemon's socket.
	Address string
	// Namespace is where CRI looks: "k8s.io".
	Namespace string
	// RegistryConfigPath is the directory of the hosts.toml files. It must be the same
	// path for the daemon and for this process.
	RegistryConfigPath string
	// Snapshotter that CRI uses.
	Snapshotter string
	// MinFreeDisk is the share of a filesystem, 0 to 1, that a pull must leave free.
	MinFreeDisk float64
	// NoProgressTimeout is how long a mirror may keep silent within one request.
	NoProgressTimeout time.Duration
	// UserAgent of requests that this process makes itself.
	UserAgent string
	Log       logr.Logger
}

// answerTimeout bounds calls that only ask whether the daemon is there.
const answerTimeout = 5 * time.Second

// Runtime is containerd. Make it with New.
type Runtime struct {
	Options

	client *client.Client
	// platform is the node's, as strict as CRI's own pulls are.
	platform ocispec.Platform
	matcher  platforms.MatchComparer
	throttle    mirror.Throttle
	streams  *streams
	disk     disk
	// unwanted are leases by name, and since when no image that is wanted has them.
	// Only Retain, which is called once at a time, uses it.
	unwanted map[string]time.Time
}

var _ nodeagent.Runtime = (*Runtime)(nil)

// New returns a Runtime. It does not connect yet: Watch does, and again after the
// daemon was away.
func New(opts Options) (*Runtime, error) {
	c, err := client.New(opts.Address, client.WithDefaultNamespace(opts.Namespace))
	if err != nil {
		return nil, fmt.Errorf("make containerd client for %q: %w", opts.Address, err)
	}
	platform := platforms.DefaultSpec()
	return &Runtime{
		Options:  opts,
		client:   c,
		platform: platform,
		matcher:  platforms.Ordered(platform),
		throttle:    mirror.Throttle{AfterMiss: 5 * time.Second, AfterError: time.Second},
		streams:  newStreams(),
	}, nil
}

// Close ends the connection.
func (r *Runtime) Close() error { return r.client.Close() }

// oldest is the first containerd that offers blobs to peers as soon as they are
// committed, and whose transfer service does all that is asked of it here.
var oldest = [2]int{2, 1}

// supported asks the daemon for its version.
func (r *Runtime) supported(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	version, err := r.client.Version(ctx)
	if err != nil {
		return fmt.Errorf("%w: ask for its version: %w", nodeagent.ErrRuntimeUnavailable, err)
	}
	if !atLeast(version.Version, oldest) {
		return fmt.Errorf("%w: containerd %s, need %d.%d or newer", nodeagent.ErrUnsupportedRuntime, version.Version, oldest[0], oldest[1])
	}
	return nil
}

// atLeast compares "v2.4.2", "2.1.0-rc.1+dist" and the like. What does not parse is a
// build of somebody's own: it is let through.
func atLeast(version string, least [2]int) bool {
	var major, minor int
	if _, err := fmt.Sscanf(strings.TrimPrefix(version, "v"), "%d.%d", &major, &minor); err != nil {
		return true
	}
	return major > least[0] || major == least[0] && minor >= least[1]
}

// translate adds what an error means to the agent, if nothing has said so yet.
func (r *Runtime) translate(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	for _, known := range []error{
		nodeagent.ErrImageNotFound, nodeagent.ErrUnauthorized, nodeagent.ErrPlatformNotProvided, nodeagent.ErrRegistryUnavailable,
		nodeagent.ErrNotOnMirror, nodeagent.ErrInsufficientDisk, nodeagent.ErrRuntimeUnavailable,
	} {
		if errors.Is(err, known) {
			return err
		}
	}
	// containerd says "unavailable" of a locked ingest too; the daemon itself is asked
	// rather than the text of the error.
	if errdefs.IsUnavailable(err) || errdefs.IsCanceled(err) || errdefs.IsUnknown(err) {
		if down := r.supported(ctx); errors.Is(down, nodeagent.ErrRuntimeUnavailable) {
			return fmt.Errorf("%w: %w", nodeagent.ErrRuntimeUnavailable, err)
		}
	}
	return err
}
