// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package containerd is the node agent's Runtime on containerd. Only it and the package mirror
// below it import containerd.
//
// A seed (RegistryPolicyDefault) has the daemon pull through its transfer service (seed.go,
// transfer.go). A peer (RegistryPolicyMirror) fetches each blob from the mirrors as soon as they
// have it (peer.go, fetch.go), and writes into the same content store under the same ingest keys:
// if the kubelet pulls at the same time, each blob is fetched once.
//
//	          content complete already? ──yes──────────────┐
//	                    │ no                               │
//	     Default        ▼          Mirror                  │
//	   ┌────────────────┴────────────────┐                 │
//	resolve the tag              fetch the manifests       │
//	transfer and unpack,         reserve room on the disk  │
//	reserve room meanwhile       fetch blobs, unpack layers│
//	   │                                 │                 │
//	   └────────────────┬────────────────┘                 │
//	                    ▼                                  │
//	      announce the content to the mirror ◀─────────────┘
//	                    │
//	                    ▼
//	      image records: id, repo@digest, repo:tag
//
// A lease with the image's name keeps all content that a pull fetches, until the pull succeeds or
// the image has been out of the spec for a while. So containerd's garbage collection takes nothing
// between two tries, and no blob is fetched twice. Where there is too little room on the disk, all of it
// goes at once (disk.go, watchdisk.go, giveup.go).
//
// The daemon should keep discard_unpacked_layers = false, its default. An image without its layers
// can run, but no mirror can serve it; here it does not count as present. So layers that the kubelet
// pulled and the daemon threw away are fetched once more. Those that come through here stay: the
// manifest's labels keep them.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
	// Namespace is the containerd namespace of CRI's images: "k8s.io".
	Namespace string
	// RegistryConfigPath is the directory of the hosts.toml files, or a list of them as CRI's
	// config_path is: "/etc/containerd/certs.d:/etc/docker/certs.d". They must be the same paths for
	// the daemon and for this process.
	RegistryConfigPath string
	// ScratchPath is a directory of the agent alone, for hosts.toml files that leave hosts out. It
	// must be the same path for the daemon and for this process, too.
	ScratchPath string
	// UpstreamHosts are hosts of hosts.toml files, besides the registries, that count as upstream.
	UpstreamHosts []string
	// MirrorRedirectHosts are the hosts to which mirrors may send a peer: their storage, or what gives
	// out their tokens.
	MirrorRedirectHosts []string
	// MinFreeDisk is the share of a filesystem, 0 to 1, that pulls must leave free; 0 lets them take all.
	MinFreeDisk float64
	// KubeletConfig is the file with the kubelet's configuration, or empty. Where it asks for more than
	// MinFreeDisk, that counts.
	KubeletConfig string
	// NoProgressTimeout is how long a mirror may send nothing within one request.
	NoProgressTimeout time.Duration
	// MirrorStartTimeout is how long after this process a mirror may come up for the first time, as
	// on a node that has just joined. A peer waits for it; 0 is not at all.
	MirrorStartTimeout time.Duration
	// UserAgent is sent with the HTTP requests that this process makes itself.
	UserAgent string
	Log       logr.Logger
}

// versionTimeout is for one question whether the daemon answers.
const versionTimeout = 5 * time.Second

// Runtime is containerd. Make it with New.
type Runtime struct {
	Options

	client     *client.Client
	registries mirror.Config
	// platform is the node's. It is matched as strictly as CRI's own pulls match it.
	platform ocispec.Platform
	matcher  platforms.MatchComparer
	throttle mirror.Throttle
	streams  *streams
	disk     disk
	facts    facts
	unusable said          // about hosts, by registry
	noticed  chan struct{} // has an element if a pull has noticed something that Examine would find
	stuck    stuck
	// unwantedSince is the time, by lease ID, since which the lease's image is unwanted. Only
	// Retain uses it, and no two calls of Retain run at the same time.
	unwantedSince map[string]time.Time
}

var _ nodeagent.Runtime = (*Runtime)(nil)

// New returns a Runtime, which is not yet connected. Watch connects it, and again after the daemon
// was away.
func New(opts Options) (*Runtime, error) {
	registries := mirror.Config{
		Roots:         filepath.SplitList(opts.RegistryConfigPath),
		Scratch:       filepath.Join(opts.ScratchPath, "hosts"),
		Upstreams:     opts.UpstreamHosts,
		RedirectHosts: opts.MirrorRedirectHosts,
	}
	if err := os.RemoveAll(registries.Scratch); err != nil {
		return nil, fmt.Errorf("remove what an earlier agent has left: %w", err)
	}
	c, err := client.New(opts.Address, client.WithDefaultNamespace(opts.Namespace))
	if err != nil {
		return nil, fmt.Errorf("make containerd client for %q: %w", opts.Address, err)
	}
	platform := platforms.DefaultSpec()
	return &Runtime{
		Options:    opts,
		client:     c,
		registries: registries,
		platform:   platform,
		matcher:    platforms.Ordered(platform),
		throttle: mirror.Throttle{
			AfterMiss: 5 * time.Second, AfterError: time.Second, AfterSilence: 30 * time.Second, AfterDistrust: 5 * time.Minute,
			Began: time.Now(), StartTimeout: opts.MirrorStartTimeout,
		},
		streams: newStreams(),
		noticed: make(chan struct{}, 1),
	}, nil
}

// Close closes the connection.
func (r *Runtime) Close() error { return r.client.Close() }

// minVersion is the first containerd that lets a mirror serve a blob as soon as it is committed,
// and whose transfer service has all functions that are used here.
var minVersion = [2]int{2, 1}

// checkVersion returns ErrRuntimeUnavailable if the daemon does not answer, and
// ErrUnsupportedRuntime if it is too old.
func (r *Runtime) checkVersion(ctx context.Context) error {
	_, err := r.version(ctx)
	return err
}

// version returns the daemon's version, also of one that is too old.
func (r *Runtime) version(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	version, err := r.client.Version(ctx)
	if err != nil {
		return "", fmt.Errorf("%w: ask for its version: %w", nodeagent.ErrRuntimeUnavailable, err)
	}
	if !atLeast(version.Version, minVersion) {
		return version.Version, fmt.Errorf("%w: containerd %s, need %d.%d or newer", nodeagent.ErrUnsupportedRuntime, version.Version, minVersion[0], minVersion[1])
	}
	return version.Version, nil
}

// atLeast reports whether a version such as "v2.4.2" or "2.1.0-rc.1+dist" is the minimum or newer.
// It accepts a version that does not parse, since custom builds have such.
func atLeast(version string, minimum [2]int) bool {
	var major, minor int
	if _, err := fmt.Sscanf(strings.TrimPrefix(version, "v"), "%d.%d", &major, &minor); err != nil {
		return true
	}
	return major > minimum[0] || major == minimum[0] && minor >= minimum[1]
}

// translate wraps an error in ErrRuntimeUnavailable if the daemon is away, unless it already wraps
// one of nodeagent's errors.
func (r *Runtime) translate(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	for _, known := range []error{
		nodeagent.ErrImageNotFound, nodeagent.ErrUnauthorized, nodeagent.ErrPlatformNotProvided, nodeagent.ErrImageInvalid, nodeagent.ErrRegistryUnavailable,
		nodeagent.ErrNotOnMirror, nodeagent.ErrInsufficientDisk, nodeagent.ErrRuntimeUnavailable,
	} {
		if errors.Is(err, known) {
			return err
		}
	}
	// containerd says "unavailable" also of a locked ingest. So the daemon is asked whether it is
	// there.
	if errdefs.IsUnavailable(err) || errdefs.IsCanceled(err) || errdefs.IsUnknown(err) {
		if down := r.checkVersion(ctx); errors.Is(down, nodeagent.ErrRuntimeUnavailable) {
			return fmt.Errorf("%w: %w", nodeagent.ErrRuntimeUnavailable, err)
		}
	}
	return err
}
