// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-dev/sluice/test/cluster/internal/cgroup"
	"github.com/sluice-dev/sluice/test/cluster/internal/mount"
)

// NodeOptions describe a node.
type NodeOptions struct {
	// Name of the node; node-1, node-2 and so on if empty.
	Name string
	// Zone becomes the label topology.kubernetes.io/zone, if not empty.
	Zone string
	// Labels of the Node object, besides the kubelet's own.
	Labels map[string]string
	// Snapshotter is the one that CRI uses; overlayfs if empty.
	Snapshotter string
	// Taints are in the kubelet's notation: key=value:effect.
	Taints []string
	// Disks are file systems of the node's own. The first is mounted first.
	Disks []Disk
}

// ContainerdRoot is the folder of containerd's content and snapshots on a node.
const ContainerdRoot = "/var/lib/containerd"

// Disk is an ext4 file system of a node. What is on it is seen on the node alone, and not under
// Node.Dir.
type Disk struct {
	// Path is where the node has it mounted, such as ContainerdRoot.
	Path string
	// Bytes is its size. It takes only what is written.
	Bytes int64
	// Inodes is how many there are; mkfs decides if 0.
	Inodes int64
}

// Node is a machine with containerd, and unless the cluster is without a
// control plane, a kubelet.
//
// A program on the node sees the usual paths (/run/containerd/containerd.sock,
// /etc/containerd/certs.d, /var/lib/containerd, /var/lib/kubelet); the test
// sees the same files under Dir. The paths below are the test's, and exist on
// the node as well.
type Node struct {
	Name string
	IP   string
	// Dir holds the node's files: run, etc, var/lib, var/log.
	Dir string
	// ContainerdSocket is containerd's address.
	ContainerdSocket string
	// CertsDir is containerd's registry configuration, with hosts.toml files.
	CertsDir string
	// ContentDir is containerd's content store.
	ContentDir string

	// ContainerdEnvironment is what containerd finds in its environment, from its next start on,
	// such as HTTPS_PROXY=http://10.200.0.3:3128. This process's proxies are not passed on.
	ContainerdEnvironment []string

	// Containerd, Kubelet, Mirror and KubeProxy are the node's daemons; all but
	// the first are nil when the options ask for none.
	Containerd, Kubelet, Mirror, KubeProxy *Daemon

	options NodeOptions
	cluster *Cluster
	index   int
	machine *machine
}

func (c *Cluster) newNode(index int, opts NodeOptions) *Node {
	if opts.Name == "" {
		opts.Name = fmt.Sprintf("node-%d", index+1)
	}
	if opts.Snapshotter == "" {
		opts.Snapshotter = "overlayfs"
	}
	dir := filepath.Join(c.Dir, opts.Name)
	n := &Node{
		Name:             opts.Name,
		IP:               c.claim.IP(nodeSubnet, nodeHost+byte(index)).String(),
		Dir:              dir,
		ContainerdSocket: filepath.Join(dir, "run/containerd/containerd.sock"),
		CertsDir:         filepath.Join(dir, "etc/containerd/certs.d"),
		ContentDir:       filepath.Join(dir, "var/lib/containerd/io.containerd.content.v1.content"),
		options:          opts,
		cluster:          c,
		index:            index,
	}
	n.Containerd = n.newContainerd()
	if c.ControlPlane != nil {
		n.Kubelet = n.newKubelet()
	}
	if c.options.Mirror != nil {
		n.Mirror = n.newMirror(c.options.Mirror)
	}
	if c.options.Services {
		n.KubeProxy = n.newKubeProxy()
	}
	return n
}

// cgroup is the control group of the node's processes and Pods.
func (n *Node) cgroup() string { return path.Join("/", n.cluster.claim.Name, n.Name) }

// PowerOn starts the node's machine and all its daemons, with what its disk
// holds. It returns when containerd, and the mirror, answer.
func (n *Node) PowerOn(ctx context.Context) error {
	// Neither control groups nor what is under /run survive a power failure.
	if err := cgroup.Remove(ctx, n.cgroup(), os.Getpid()); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(n.Dir, "run")); err != nil {
		return err
	}
	if err := n.writeFiles(); err != nil {
		return fmt.Errorf("write files of %s: %w", n.Name, err)
	}
	for _, disk := range n.options.Disks {
		if err := n.makeDisk(ctx, disk); err != nil {
			return err
		}
	}
	m, err := startMachine(n.cluster.bin, n.Name, n.cgroup(), n.mounts())
	if err != nil {
		return err
	}
	n.machine = m
	if err := n.connect(ctx); err != nil {
		return fmt.Errorf("connect %s: %w", n.Name, err)
	}
	if err := n.Containerd.Start(ctx); err != nil {
		return err
	}
	if err := n.importPause(ctx); err != nil {
		return err
	}
	var group errgroup.Group
	if n.Mirror != nil {
		group.Go(func() error { return n.Mirror.Start(ctx) })
	}
	if n.Kubelet != nil {
		group.Go(func() error { return n.startKubelet(ctx) })
	}
	if n.KubeProxy != nil {
		group.Go(func() error { return n.startKubeProxy(ctx) })
	}
	return group.Wait()
}

// PowerOff ends the node as a power failure does: at once, with all that runs
// on it. Its disk is kept.
func (n *Node) PowerOff() {
	daemons := []*Daemon{n.Containerd, n.Mirror, n.Kubelet, n.KubeProxy}
	for _, daemon := range daemons {
		daemon.letEnd()
	}
	n.machine.kill()
	for _, daemon := range daemons {
		daemon.forget()
	}
}

// mounts show the node's files at their usual places, and hide the host's. An
// overlay supplies places that the host does not have.
func (n *Node) mounts() []mount.Mount {
	in := func(name string) string { return filepath.Join(n.Dir, name) }
	mounts := []mount.Mount{
		mount.Overlay("/etc", in("overlay/etc"), in("overlay/etc.work")),
		mount.Bind(in("etc/containerd"), "/etc/containerd"),
		mount.Bind(in("etc/cni"), "/etc/cni"),
		mount.Bind(in("etc/kubernetes"), "/etc/kubernetes"),
		mount.Overlay("/var/lib", in("overlay/lib"), in("overlay/lib.work")),
		mount.Bind(in("var/lib/containerd"), ContainerdRoot),
		mount.Bind(in("var/lib/kubelet"), "/var/lib/kubelet"),
		mount.Bind(in("var/lib/cni"), "/var/lib/cni"),
		mount.Bind(in("var/log"), "/var/log"),
		mount.Bind(in("run"), "/run"),
		mount.Proc(),
	}
	for name := range kernelSettings {
		mounts = append(mounts, mount.Bind(in("sysctl/"+name), "/proc/sys/"+name))
	}
	for _, disk := range n.options.Disks {
		mounts = append(mounts, mount.Loop(n.diskFile(disk), disk.Path))
	}
	return mounts
}

func (n *Node) diskFile(disk Disk) string {
	return filepath.Join(n.Dir, "disks", strings.ReplaceAll(strings.Trim(disk.Path, "/"), "/", "-"))
}

// makeDisk makes the file of a disk that is mounted for the first time.
func (n *Node) makeDisk(ctx context.Context, disk Disk) error {
	name := n.diskFile(disk)
	if _, err := os.Stat(name); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	// Nothing is to be written before it is used. Of a node that loses its power the kernel still
	// unmounts it, so that it needs no journal.
	args := []string{"-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard"}
	if disk.Inodes > 0 {
		args = append(args, "-N", strconv.FormatInt(disk.Inodes, 10))
	}
	args = append(args, name, fmt.Sprintf("%dk", disk.Bytes/1024))
	if out, err := exec.CommandContext(ctx, "mkfs.ext4", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("make disk for %s: %w: %s", disk.Path, err, out)
	}
	return nil
}

// writeFiles makes all that mounts shows, and the configuration.
func (n *Node) writeFiles() error {
	for _, dir := range []string{
		"run/containerd", "run/lock",
		"etc/containerd/certs.d", "etc/cni/net.d", "etc/kubernetes",
		"var/lib/containerd", "var/lib/kubelet", "var/lib/cni", "var/log",
		"overlay/etc/containerd", "overlay/etc/cni", "overlay/etc/kubernetes", "overlay/etc.work",
		"overlay/lib/containerd", "overlay/lib/kubelet", "overlay/lib/cni", "overlay/lib.work",
	} {
		if err := os.MkdirAll(filepath.Join(n.Dir, dir), 0o755); err != nil {
			return err
		}
	}
	files := map[string]string{
		"etc/containerd/config.toml":    n.containerdConfig(),
		"etc/cni/net.d/10-ptp.conflist": n.cniConfig(),
		"overlay/etc/hosts":             n.cluster.hosts(n.Name, n.IP),
		"overlay/etc/resolv.conf":       resolvConf,
		"overlay/etc/hostname":          n.Name + "\n",
	}
	for name, value := range kernelSettings {
		files["sysctl/"+name] = value + "\n"
	}
	if err := writeFiles(n.Dir, files); err != nil {
		return err
	}
	if n.Kubelet == nil {
		return nil
	}
	return n.writeKubeletFiles()
}

func writeFiles(dir string, files map[string]string) error {
	for name, content := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Start starts a program on the node. It sees the node's files, processes and
// network, and the host's other files. What it writes goes to the log, called
// after name, unless cmd has its own outputs. It ends with the node.
func (n *Node) Start(name string, cmd *exec.Cmd) (*Process, error) {
	return startProcess(n.machine, cmd, n.log(name))
}

// Run runs a program on the node to its end and returns what it wrote on
// standard output; an error has what it wrote on standard error.
func (n *Node) Run(ctx context.Context, program string, args ...string) (string, error) {
	return n.machine.run(ctx, nil, program, args...)
}

// Ctr runs ctr on the node, in the namespace of Kubernetes.
func (n *Node) Ctr(ctx context.Context, args ...string) (string, error) {
	ctr := filepath.Join(n.cluster.bin.ContainerdDir, "ctr")
	return n.Run(ctx, ctr, append([]string{"--namespace", "k8s.io"}, args...)...)
}

// Import reads images from an archive (of images.WriteArchive, say) into the
// node's containerd, so that Pods find them.
func (n *Node) Import(ctx context.Context, archive io.Reader) error {
	return n.importImages(ctx, archive)
}

// ImportPacked is Import without unpacking, which the first Pod would have to wait for.
func (n *Node) ImportPacked(ctx context.Context, archive io.Reader) error {
	return n.importImages(ctx, archive, "--no-unpack")
}

func (n *Node) importImages(ctx context.Context, archive io.Reader, flags ...string) error {
	ctr := filepath.Join(n.cluster.bin.ContainerdDir, "ctr")
	args := append([]string{"--namespace", "k8s.io", "images", "import", "--local"}, flags...)
	_, err := n.machine.run(ctx, archive, ctr, append(args, "-")...)
	return err
}

func (n *Node) log(name string) string {
	return filepath.Join(n.cluster.logDir, n.Name+"-"+name+".log")
}
