// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Binaries says where the programs are that a cluster runs.
type Binaries struct {
	// AssetsDir holds etcd, the programs of Kubernetes and the CNI plugins.
	// It serves as KUBEBUILDER_ASSETS of envtest.
	AssetsDir string
	// ContainerdDir holds containerd, its shim and ctr.
	ContainerdDir string
	// RuncDir holds runc.
	RuncDir string
	// ownDir holds what this repository contributes: init, janitor and pause.
	ownDir string
}

// set is some programs that one invocation of the Go command builds.
type set struct {
	name string
	// dir is where to build, relative to this package's source.
	dir string
	// packages are built into one folder. A key of rename is the name that
	// the Go command gives to a program, its value the usual one.
	packages []string
	rename   map[string]string
	tags     string
	gcflags  string
	ldflags  string
	cgo      bool
	// sources are files and folders that decide what is built, relative to dir.
	sources []string
}

// quick leaves out debugging data and inlining, which halves the time that the
// large programs take. Ours share the build cache with other builds instead.
const quick = "all=-dwarf=false -l"

var (
	moduleFiles = []string{"go.mod", "go.sum"}

	kubernetesSet = set{
		name:    "kubernetes",
		gcflags: quick,
		dir:     "binaries/kubernetes",
		packages: []string{
			"go.etcd.io/etcd/server/v3",
			"k8s.io/kubernetes/cmd/kube-apiserver",
			"k8s.io/kubernetes/cmd/kube-controller-manager",
			"k8s.io/kubernetes/cmd/kube-scheduler",
			"k8s.io/kubernetes/cmd/kubelet",
			"k8s.io/kubernetes/cmd/kubectl",
			"github.com/containernetworking/plugins/plugins/ipam/host-local",
			"github.com/containernetworking/plugins/plugins/main/loopback",
			"github.com/containernetworking/plugins/plugins/main/ptp",
		},
		rename: map[string]string{"server": "etcd"},
		tags:   "notest,grpcnotrace",
		// Clients look at the version, and Kubernetes has it from its own
		// build scripts.
		ldflags: "-X k8s.io/component-base/version.gitVersion=v1.36.3" +
			" -X k8s.io/component-base/version.gitMajor=1" +
			" -X k8s.io/component-base/version.gitMinor=36" +
			" -X k8s.io/client-go/pkg/version.gitVersion=v1.36.3" +
			" -X k8s.io/client-go/pkg/version.gitMajor=1" +
			" -X k8s.io/client-go/pkg/version.gitMinor=36",
		sources: moduleFiles,
	}
	containerdSet = set{
		name:    "containerd",
		gcflags: quick,
		dir:     "binaries/containerd",
		packages: []string{
			"github.com/containerd/containerd/v2/cmd/containerd",
			"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
			"github.com/containerd/containerd/v2/cmd/ctr",
		},
		// With cgo there is a snapshotter for btrfs; the two tags keep names looked up as without.
		tags: "no_devmapper,no_zfs,netgo,osusergo",
		cgo:  true,
		// The user agent tells who pulled: the daemon, or the agent under
		// test, which links the same library.
		ldflags: "-X github.com/containerd/containerd/v2/version.Version=v2.4.2",
		sources: moduleFiles,
	}
	runcSet = set{
		name:     "runc",
		gcflags:  quick,
		dir:      "binaries/runc",
		packages: []string{"github.com/opencontainers/runc"},
		tags:     "seccomp",
		cgo:      true,
		sources:  moduleFiles,
	}
	helmSet = set{
		name:     "helm",
		gcflags:  quick,
		dir:      "binaries/helm",
		packages: []string{"helm.sh/helm/v3/cmd/helm"},
		ldflags:  "-X helm.sh/helm/v3/internal/version.version=v3.22.0",
		sources:  moduleFiles,
	}
	certManagerSet = set{
		name:     "certmanager",
		gcflags:  quick,
		dir:      "binaries/certmanager",
		packages: []string{"./controller", "./cainjector"},
		sources:  append([]string{"controller", "cainjector"}, moduleFiles...),
	}
	registrySet = set{
		name:     "registry",
		gcflags:  quick,
		dir:      "binaries/registry",
		packages: []string{"github.com/distribution/distribution/v3/cmd/registry"},
		sources:  moduleFiles,
	}
	// Debian's mkfs.erofs may be older than containerd wants it.
	erofsSet = set{
		name:     "erofs",
		dir:      "binaries/erofs",
		packages: []string{"./mkfs.erofs"},
		sources:  append([]string{"mkfs.erofs"}, moduleFiles...),
	}
	mirrorSet = set{
		name:     "mirror",
		dir:      ".",
		packages: []string{"../peermirror/cmd/peermirror"},
		sources:  []string{"../../go.mod", "../distribution", "../peermirror"},
	}
	ownSet = set{
		name:     "own",
		dir:      ".",
		packages: []string{"./internal/init", "./internal/janitor", "../images/cmd/pause"},
		sources:  []string{"../../go.mod", "internal", "../images/cmd/pause"},
	}
)

// Build makes every program that a cluster runs, from the modules under
// binaries, and returns where they are. They are kept in the user's cache
// folder under a hash of all that decides their content, so that only the
// first call takes time: minutes then, milliseconds afterwards.
func Build(ctx context.Context, logf func(format string, args ...any)) (Binaries, error) {
	if err := checkPackages(); err != nil {
		return Binaries{}, err
	}
	var bin Binaries
	var group errgroup.Group
	for dir, set := range map[*string]set{
		&bin.AssetsDir:     kubernetesSet,
		&bin.ContainerdDir: containerdSet,
		&bin.RuncDir:       runcSet,
		&bin.ownDir:        ownSet,
	} {
		group.Go(func() (err error) {
			*dir, err = set.build(ctx, logf)
			return err
		})
	}
	return bin, group.Wait()
}

// BuildAll builds what Build does, and what only some clusters want.
func BuildAll(ctx context.Context, logf func(format string, args ...any)) error {
	if _, err := Build(ctx, logf); err != nil {
		return err
	}
	for _, set := range []set{mirrorSet, proxySet, helmSet, certManagerSet, registrySet, erofsSet} {
		if _, err := set.build(ctx, logf); err != nil {
			return err
		}
	}
	return nil
}

// Helm builds helm, which no cluster needs to start, and returns its path.
func Helm(ctx context.Context, logf func(format string, args ...any)) (string, error) {
	dir, err := helmSet.build(ctx, logf)
	return filepath.Join(dir, "helm"), err
}

// Registry builds the registry of the CNCF's project Distribution, and returns
// its path. It serves what is pushed to it, or is a pull-through cache.
func Registry(ctx context.Context, logf func(format string, args ...any)) (string, error) {
	dir, err := registrySet.build(ctx, logf)
	return filepath.Join(dir, "registry"), err
}

// MkfsErofs builds what makes file systems of type erofs, and returns its path.
// A containerd that finds it in its PATH has a snapshotter and a differ for erofs.
func MkfsErofs(ctx context.Context, logf func(format string, args ...any)) (string, error) {
	dir, err := erofsSet.build(ctx, logf)
	return filepath.Join(dir, "mkfs.erofs"), err
}

// CertManager builds the controller and the cainjector of cert-manager, and
// returns the folder that they are in.
func CertManager(ctx context.Context, logf func(format string, args ...any)) (string, error) {
	return certManagerSet.build(ctx, logf)
}

func (s set) build(ctx context.Context, logf func(string, ...any)) (string, error) {
	source, err := sourceDir()
	if err != nil {
		return "", err
	}
	key, err := s.key(filepath.Join(source, s.dir))
	if err != nil {
		return "", fmt.Errorf("hash sources of %s: %w", s.name, err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find folder for built programs: %w", err)
	}
	root := filepath.Join(cache, "sluice", "binaries")
	out := filepath.Join(root, s.name+"-"+key)
	if _, err := os.Stat(out); err == nil {
		return out, nil
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", err
	}
	unlock, err := lock(ctx, filepath.Join(root, s.name+".lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(out); err == nil {
		return out, nil // another process built it meanwhile
	}
	began := time.Now()
	logf("Building %s (kept for the next time)", s.name)
	if err := s.compile(ctx, filepath.Join(source, s.dir), out); err != nil {
		return "", fmt.Errorf("build %s: %w", s.name, err)
	}
	logf("Built %s in %s", s.name, time.Since(began).Round(time.Second))
	return out, nil
}

// compile builds beside the output and renames, so that out is there with all
// its programs or not at all.
func (s set) compile(ctx context.Context, dir, out string) error {
	building, err := os.MkdirTemp(filepath.Dir(out), s.name+"-building-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(building) }()
	if err := os.Chmod(building, 0o755); err != nil {
		return err
	}
	build := exec.CommandContext(ctx, "go", s.arguments(building)...)
	build.Dir = dir
	build.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=", "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+runtime.GOARCH)
	if s.cgo {
		build.Env = append(build.Env, "CGO_ENABLED=1")
	}
	if output, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, output)
	}
	for from, to := range s.rename {
		if err := os.Rename(filepath.Join(building, from), filepath.Join(building, to)); err != nil {
			return err
		}
	}
	return os.Rename(building, out)
}

func (s set) arguments(out string) []string {
	args := []string{
		"build", "-mod=readonly", "-buildvcs=false", "-tags", s.tags,
		"-gcflags=" + s.gcflags, "-ldflags", "-s -w " + s.ldflags,
		"-o", out + string(filepath.Separator),
	}
	return append(args, s.packages...)
}

func (s set) key(dir string) (string, error) {
	hash := sha256.New()
	_, _ = fmt.Fprintln(hash, runtime.Version(), runtime.GOARCH, s.cgo, s.arguments(""), s.rename)
	for _, source := range s.sources {
		err := filepath.WalkDir(filepath.Join(dir, source), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || strings.HasSuffix(path, "_test.go") {
				return err
			}
			content, err := os.ReadFile(path)
			_, _ = fmt.Fprintf(hash, "%s %d\n%s", entry.Name(), len(content), content)
			return err
		})
		if err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%x", hash.Sum(nil)[:8]), nil
}

// sourceDir is this package's folder. Its modules cannot be embedded, because
// embedding stops where another module begins.
func sourceDir() (string, error) {
	_, file, _, _ := runtime.Caller(0)
	dir := filepath.Dir(file)
	if _, err := os.Stat(filepath.Join(dir, "binaries")); err != nil {
		return "", fmt.Errorf("find the source of test/cluster (was this built with -trimpath?): %w", err)
	}
	return dir, nil
}

// lock takes the lock that the file stands for, waiting for other processes.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	const interval = 100 * time.Millisecond
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = file.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			_ = file.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			_ = file.Close()
			return nil, fmt.Errorf("wait for another build to end (%s): %w", path, ctx.Err())
		case <-time.After(interval):
		}
	}
}
