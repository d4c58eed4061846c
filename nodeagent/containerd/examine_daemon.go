// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/defaults"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/sluice-dev/sluice/nodeagent"
)

// examineDaemon looks at the daemon, its configuration and its disk.
func (r *Runtime) examineDaemon(ctx context.Context) []nodeagent.Finding {
	const subject = "containerd"
	if _, err := os.Stat(r.Address); errors.Is(err, fs.ErrNotExist) {
		return []nodeagent.Finding{failure(subject, "has no socket %s: set agent.containerd.socket to that of the node's containerd", r.Address)}
	}
	version, err := r.version(ctx)
	if errors.Is(err, nodeagent.ErrUnsupportedRuntime) {
		return []nodeagent.Finding{failure(subject, "%s is too old: %d.%d is the first that is supported", version, minVersion[0], minVersion[1])}
	}
	if err != nil {
		return []nodeagent.Finding{failure(subject, "does not answer at %s, see that it runs: %v", r.Address, err)}
	}
	findings := []nodeagent.Finding{good(subject, "%s answers at %s", version, r.Address)}

	daemon, err := r.daemonSoon(ctx)
	var configured configuration
	if err == nil {
		configured, err = r.configuration(ctx)
	}
	if err != nil {
		return append(findings, failure("CRI", "containerd's plugin for the kubelet does not answer, see its log: %v", err))
	}
	return append(findings,
		examineTransfer(configured.transfers),
		examineSnapshotter(daemon.snapshotter, configured.snapshotters),
		examineConfigPath(configured.registryPath, r.RegistryConfigPath),
		examineDiscard(configured.discard),
		r.examineDisk(daemon))
}

// daemonSoon is daemon, but waits for CRI, which begins to answer later than the rest of the daemon.
func (r *Runtime) daemonSoon(ctx context.Context) (daemonFacts, error) {
	limited, cancel := context.WithTimeout(ctx, factsTimeout)
	defer cancel()
	for {
		daemon, err := r.daemon(ctx)
		if err == nil || sleep(limited, time.Second) != nil {
			return daemon, err
		}
	}
}

// configuration is what containerd says of its configuration. What it does not say is empty.
type configuration struct {
	// transfers reports whether the transfer service is there.
	transfers bool
	// registryPath and discard are CRI's config_path and discard_unpacked_layers.
	registryPath, discard string
	// snapshotters are those of single runtimes, by the runtime's name.
	snapshotters map[string]string
}

func (r *Runtime) configuration(ctx context.Context) (configuration, error) {
	ctx, cancel := context.WithTimeout(ctx, factsTimeout)
	defer cancel()
	services, err := r.pluginExports(ctx, "type==io.containerd.grpc.v1,id==transfer")
	if err != nil {
		return configuration{}, err
	}
	images, err := r.pluginExports(ctx, "type==io.containerd.cri.v1,id==images")
	if err != nil {
		return configuration{}, err
	}
	snapshotters, err := r.runtimeSnapshotters(ctx)
	return configuration{
		transfers:    len(services) > 0,
		registryPath: images["images"]["RegistryConfigPath"],
		discard:      images["images"]["DiscardUnpackedLayers"],
		snapshotters: snapshotters,
	}, err
}

func (r *Runtime) runtimeSnapshotters(ctx context.Context) (map[string]string, error) {
	connection, err := r.connection()
	if err != nil {
		return nil, err
	}
	status, err := cri.NewRuntimeServiceClient(connection).Status(ctx, &cri.StatusRequest{Verbose: true})
	if err != nil {
		return nil, fmt.Errorf("ask CRI for its configuration: %w", err)
	}
	config := status.GetInfo()["config"]
	if config == "" {
		return nil, nil
	}
	var verbose struct {
		Containerd struct {
			Runtimes map[string]struct {
				Snapshotter string `json:"snapshotter"`
			} `json:"runtimes"`
		} `json:"containerd"`
	}
	if err := json.Unmarshal([]byte(config), &verbose); err != nil {
		return nil, fmt.Errorf("read CRI's configuration: %w", err)
	}
	found := map[string]string{}
	for name, runtime := range verbose.Containerd.Runtimes {
		found[name] = runtime.Snapshotter
	}
	return found, nil
}

func examineTransfer(isThere bool) nodeagent.Finding {
	const subject = "transfer service"
	if isThere {
		return good(subject, "is there")
	}
	return failure(subject, "is not there, so that no seed can pull: take io.containerd.grpc.v1.transfer out of containerd's disabled_plugins")
}

// examineSnapshotter says into what images are unpacked, and what follows. The transfer service does not
// say what it is configured for. A trial would tell, but mirrors on the node would hear of its content.
func examineSnapshotter(snapshotter string, ofRuntimes map[string]string) nodeagent.Finding {
	text := snapshotter
	if snapshotter != defaults.DefaultSnapshotter {
		text += "; a seed unpacks an image only after it has come, unless unpack_config of containerd's transfer service names it"
	}
	var others []string
	for _, name := range slices.Sorted(maps.Keys(ofRuntimes)) {
		if other := ofRuntimes[name]; other != "" && other != snapshotter {
			others = append(others, fmt.Sprintf("%s (%s)", name, other))
		}
	}
	if len(others) > 0 {
		text += "; runtimes that have another one unpack when a Pod starts: " + strings.Join(others, ", ")
	}
	return good("snapshotter", "%s", text)
}

// defaultConfigPath is CRI's where the configuration names none.
const defaultConfigPath = "/etc/containerd/certs.d:/etc/docker/certs.d"

// examineConfigPath compares the folders of hosts.toml files that the daemon reads for the kubelet with
// those that the agent reads. theirs is empty where the daemon does not say.
func examineConfigPath(theirs, ours string) nodeagent.Finding {
	const subject = "config_path"
	clean := func(list string) (dirs []string) {
		for _, dir := range filepath.SplitList(list) {
			dirs = append(dirs, filepath.Clean(dir))
		}
		return dirs
	}
	switch they, we := clean(theirs), clean(ours); {
	case len(they) == 0:
		return good(subject, "%s is read here; containerd does not say what it reads for the kubelet", ours)
	case slices.Equal(they, we):
		return good(subject, "%s", ours)
	case theirs == defaultConfigPath && slices.Equal(they[:1], we):
		return good(subject, "%s; containerd would also read %s, the folder of Docker", ours, they[1])
	default:
		return warning(subject, "containerd reads %s for the kubelet and the agent %s, so that they may ask different mirrors: "+
			"set agent.containerd.certsDir and containerd's config_path to the same", theirs, ours)
	}
}

// examineDiscard looks whether the daemon throws away the layers of what the kubelet pulls. text is empty
// where the daemon does not say.
func examineDiscard(text string) nodeagent.Finding {
	const subject = "discard_unpacked_layers"
	switch text {
	case "true":
		return warning(subject, "is true, so that an image that the kubelet has pulled cannot be given to other nodes, "+
			"and its layers are fetched once more when it is prefetched: set it to false in containerd's configuration")
	case "":
		return good(subject, "containerd does not say; it should be false")
	default:
		return good(subject, "%s", text)
	}
}

// examineDisk looks whether the agent sees the file systems, and whether there is room on them for any
// image.
func (r *Runtime) examineDisk(daemon daemonFacts) nodeagent.Finding {
	const subject = "disk"
	if r.MinFreeDisk <= 0 {
		return good(subject, "is not checked, as --min-free-disk=0 says")
	}
	filesystems, err := r.lookUp(daemon)
	if err != nil {
		return failure(subject, "%v", err)
	}
	if daemon.evictsErr != nil {
		return warning(subject, "%v: name the kubelet's configuration in agent.kubeletConfig", daemon.evictsErr)
	}
	var seen []string
	for _, f := range filesystems {
		must := 100 * float64(f.line.bytes) / float64(f.total.bytes)
		if !f.room().covers(amount{}) {
			return failure(subject, "less than %.0f %% of the bytes or %.0f %% of the inodes, or just that, are free at %s, so that nothing is pulled: "+
				"free some, or lower agent.minFreeDisk", must, 100*float64(f.line.inodes)/float64(max(1, f.total.inodes)), f.dir)
		}
		seen = append(seen, fmt.Sprintf("%.0f %% at %s, of which %.0f %% must stay free", 100*float64(f.free.bytes)/float64(f.total.bytes), f.dir, must))
	}
	for _, dir := range []string{daemon.contentDir, daemon.snapshotDir} {
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			return warning(subject, "%s is not mounted here, so that no pull is kept from filling its file system: "+
				"set agent.containerd.root to containerd's root, and agent.containerd.snapshots to a snapshotter's folder elsewhere", dir)
		}
	}
	text := "free: " + strings.Join(seen, "; ")
	if daemon.evicts.ImageGCPercent > 0 {
		text += fmt.Sprintf("; the kubelet deletes unused images from %d %% use on", daemon.evicts.ImageGCPercent)
	}
	return good(subject, "%s", text)
}
