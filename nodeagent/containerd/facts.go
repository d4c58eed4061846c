// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/nodeagent/eviction"
)

// factsTimeout is for all questions about the daemon's configuration.
const factsTimeout = 10 * time.Second

// facts are what the daemon says of its configuration. It is asked once for each connection of
// Watch: it may come back with another configuration.
type facts struct {
	mu    sync.Mutex
	known *daemonFacts // nil until the daemon has been asked
}

type daemonFacts struct {
	// snapshotter is the one that CRI unpacks images into.
	snapshotter string
	// contentDir and snapshotDir are where content and snapshots are.
	contentDir, snapshotDir string
	// evicts is what the kubelet wants to be free, and evictsErr why that is not known.
	evicts    eviction.Thresholds
	evictsErr error
	// leavesPacked reports whether the transfer service does not unpack into the snapshotter, because its
	// own configuration does not list it.
	leavesPacked bool
}

func (f *facts) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.known = nil
}

// noteLeavesPacked notes that the transfer service leaves images packed.
func (f *facts) noteLeavesPacked() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known != nil {
		f.known.leavesPacked = true
	}
}

// daemon returns the facts, and asks for them where they are not known.
func (r *Runtime) daemon(ctx context.Context) (daemonFacts, error) {
	r.facts.mu.Lock()
	defer r.facts.mu.Unlock()
	if r.facts.known != nil {
		return *r.facts.known, nil
	}
	ctx, cancel := context.WithTimeout(ctx, factsTimeout)
	defer cancel()
	var known daemonFacts
	var err error
	if known.snapshotter, known.snapshotDir, err = r.snapshotterOfCRI(ctx); err != nil {
		return daemonFacts{}, err
	}
	roots, err := r.pluginRoots(ctx, "type==io.containerd.content.v1")
	if err != nil {
		return daemonFacts{}, err
	}
	known.contentDir = roots["content"]
	if r.KubeletConfig != "" {
		known.evicts, known.evictsErr = eviction.Read(r.KubeletConfig)
	}
	r.facts.known = &known
	return known, nil
}

// snapshotterType is the type of containerd's plugins that are snapshotters.
const snapshotterType = "io.containerd.snapshotter.v1"

// snapshotterOfCRI finds out which snapshotter CRI unpacks into, and where that has its snapshots. CRI does not say it by name, but
// where the images are: in the directory of the snapshotter or, for one that names no directory,
// in one that is named after it.
func (r *Runtime) snapshotterOfCRI(ctx context.Context) (name, dir string, err error) {
	connection, err := r.connection()
	if err != nil {
		return "", "", err
	}
	answer, err := cri.NewImageServiceClient(connection).ImageFsInfo(ctx, &cri.ImageFsInfoRequest{})
	if err != nil {
		// CRI begins to answer later than the rest of the daemon.
		return "", "", fmt.Errorf("%w: ask CRI where its images are: %w", nodeagent.ErrRuntimeUnavailable, err)
	}
	if filesystems := answer.GetImageFilesystems(); len(filesystems) > 0 {
		dir = filesystems[0].GetFsId().GetMountpoint() // of the snapshotter of CRI's own configuration
	}
	roots, err := r.pluginRoots(ctx, "type=="+snapshotterType)
	if err != nil {
		return "", "", err
	}
	for id, root := range roots {
		if root == dir {
			return id, dir, nil
		}
	}
	if name, ok := strings.CutPrefix(filepath.Base(dir), snapshotterType+"."); ok {
		return name, dir, nil
	}
	return "", "", fmt.Errorf("%w: CRI keeps its images in %q, which is no snapshotter's directory", nodeagent.ErrRuntimeUnavailable, dir)
}

// connection is for the services of CRI.
func (r *Runtime) connection() (grpc.ClientConnInterface, error) {
	connection, ok := r.client.Conn().(grpc.ClientConnInterface)
	if !ok {
		return nil, fmt.Errorf("connection to containerd is a %T", r.client.Conn())
	}
	return connection, nil
}

// pluginRoots are the directories that plugins of the daemon name as theirs, by the plugin's ID.
func (r *Runtime) pluginRoots(ctx context.Context, filter string) (map[string]string, error) {
	exports, err := r.pluginExports(ctx, filter)
	if err != nil {
		return nil, err
	}
	roots := map[string]string{}
	for id, exported := range exports {
		if root := exported["root"]; root != "" {
			roots[id] = root
		}
	}
	return roots, nil
}

// pluginExports are what plugins of the daemon that run tell of themselves, by the plugin's ID.
func (r *Runtime) pluginExports(ctx context.Context, filter string) (map[string]map[string]string, error) {
	response, err := r.client.IntrospectionService().Plugins(ctx, filter)
	if err != nil {
		return nil, fmt.Errorf("ask for plugins %q: %w", filter, err)
	}
	exports := map[string]map[string]string{}
	for _, plugin := range response.Plugins {
		if plugin.InitErr == nil {
			exports[plugin.ID] = plugin.Exports
		}
	}
	return exports, nil
}
