// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// A kubelet finds its Pods' keys under the first group, an administrator needs
// no rules under the second.
const (
	nodesGroup  = "system:nodes"
	adminsGroup = "system:masters"
)

// ControlPlane has the daemons that are not on a node. They share the machine
// of the bridge, so that killing them leaves the network as it is.
type ControlPlane struct {
	Etcd, APIServer, ControllerManager, Scheduler *Daemon

	cluster   *Cluster
	dir       string
	server    string
	authority *authority
	client    *kubernetes.Clientset
	ready     chan struct{}
}

func (c *Cluster) newControlPlane() (*ControlPlane, error) {
	authority, err := newAuthority()
	if err != nil {
		return nil, fmt.Errorf("make certificate authority: %w", err)
	}
	p := &ControlPlane{
		cluster:   c,
		dir:       filepath.Join(c.Dir, "control-plane"),
		server:    fmt.Sprintf("https://%s", c.claim.IP(nodeSubnet, controlHost)),
		authority: authority,
		ready:     make(chan struct{}),
	}
	if err := p.writeFiles(); err != nil {
		return nil, fmt.Errorf("write files of the control plane: %w", err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", p.kubeconfig("admin"))
	if err != nil {
		return nil, err
	}
	if p.client, err = kubernetes.NewForConfig(config); err != nil {
		return nil, err
	}
	p.Etcd = p.daemon("etcd", nil, p.etcdFlags())
	p.APIServer = p.daemon("kube-apiserver", p.apiServerReady, p.apiServerFlags())
	p.ControllerManager = p.daemon("kube-controller-manager", p.controllerManagerReady, p.controllerManagerFlags())
	p.Scheduler = p.daemon("kube-scheduler", nil, p.schedulerFlags())
	return p, nil
}

func (p *ControlPlane) daemon(name string, ready readyFunc, flags []string) *Daemon {
	return &Daemon{
		name:    name,
		machine: func() *machine { return p.cluster.control },
		log:     filepath.Join(p.cluster.logDir, name+".log"),
		command: func() *exec.Cmd {
			return exec.Command(filepath.Join(p.cluster.bin.AssetsDir, name), flags...)
		},
		ready: ready,
	}
}

// start starts all daemons, and tells those who wait for the API server.
func (p *ControlPlane) start(ctx context.Context) error {
	if err := p.Etcd.Start(ctx); err != nil {
		return err
	}
	if err := p.APIServer.Start(ctx); err != nil {
		return err
	}
	close(p.ready)
	var group errgroup.Group
	group.Go(func() error { return p.ControllerManager.Start(ctx) })
	group.Go(func() error { return p.Scheduler.Start(ctx) })
	return group.Wait()
}

func (p *ControlPlane) file(name string) string { return filepath.Join(p.dir, name) }

func (p *ControlPlane) writeFiles() error {
	_, serviceAccountKey, err := newKey()
	if err != nil {
		return err
	}
	if err := writeFiles(p.dir, map[string]string{
		"ca.crt":              string(p.authority.pem),
		"service-account.key": string(serviceAccountKey),
		"audit-policy.yaml":   p.auditPolicy(),
	}); err != nil {
		return err
	}
	claim := p.cluster.claim
	if err := errors.Join(
		p.authority.writePair(p.file("kube-apiserver"), serverCertificate(
			[]string{"kubernetes.default.svc", "kubernetes.default", "kubernetes"},
			claim.IP(nodeSubnet, controlHost), claim.IP(serviceSubnet, apiServiceHost))),
		p.authority.writePair(p.file("kubelet-client"), clientCertificate("kube-apiserver", adminsGroup)),
	); err != nil {
		return err
	}
	for user, groups := range map[string][]string{
		"admin":                          {adminsGroup},
		"system:kube-controller-manager": nil,
		"system:kube-scheduler":          nil,
	} {
		if err := p.authority.writeKubeconfig(p.kubeconfig(user), p.server, user, groups...); err != nil {
			return err
		}
	}
	return nil
}

func (p *ControlPlane) auditPolicy() string {
	objects := ""
	if p.cluster.options.AuditObjects {
		objects = "{level: RequestResponse, verbs: [create, update, patch, delete], resources: [" +
			"{group: apps, resources: [deployments]}, " +
			"{group: sluice.dev, resources: [imageprefetches, imageprefetches/status, nodeimagesets, nodeimagesets/status]}]}, "
	}
	return "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [" + objects + "{level: Metadata}]\n"
}

func (p *ControlPlane) kubeconfig(user string) string { return p.file(user + ".kubeconfig") }

func (p *ControlPlane) etcdFlags() []string {
	return []string{
		"--data-dir=" + p.file("etcd"),
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380",
		"--unsafe-no-fsync", // nothing outlives the cluster
	}
}

func (p *ControlPlane) apiServerFlags() []string {
	ip := p.cluster.claim.IP(nodeSubnet, controlHost).String()
	flags := []string{
		"--etcd-servers=http://127.0.0.1:2379",
		// Pods reach it at the address of its Service too, which the control
		// plane has as its own: so it needs the Service's port.
		"--advertise-address=" + ip, "--secure-port=443",
		"--tls-cert-file=" + p.file("kube-apiserver.crt"), "--tls-private-key-file=" + p.file("kube-apiserver.key"),
		"--client-ca-file=" + p.file("ca.crt"),
		"--kubelet-client-certificate=" + p.file("kubelet-client.crt"), "--kubelet-client-key=" + p.file("kubelet-client.key"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + p.file("service-account.key"),
		"--service-account-signing-key-file=" + p.file("service-account.key"),
		"--service-cluster-ip-range=" + prefixed(p.cluster.claim.IP(serviceSubnet, 0)),
		"--kubelet-preferred-address-types=InternalIP", // the names of nodes are in no name server
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true",
		// Webhooks behind a Service are called at the address of a Pod, as
		// the control plane runs no kube-proxy.
		"--enable-aggregator-routing=true",
	}
	if p.cluster.options.Audit {
		flags = append(flags, "--audit-policy-file="+p.file("audit-policy.yaml"), "--audit-log-path="+p.cluster.AuditLog(),
			"--audit-log-maxsize=10000") // MB: one file
	}
	return flags
}

// clientFlags are those of a daemon that is a client of the API server.
func (p *ControlPlane) clientFlags(user string) []string {
	file := p.kubeconfig(user)
	return []string{
		"--kubeconfig=" + file, "--authentication-kubeconfig=" + file, "--authorization-kubeconfig=" + file,
		"--leader-elect=false", "--bind-address=127.0.0.1",
	}
}

func (p *ControlPlane) controllerManagerFlags() []string {
	return append(p.clientFlags("system:kube-controller-manager"),
		"--root-ca-file="+p.file("ca.crt"),
		"--service-account-private-key-file="+p.file("service-account.key"),
		"--use-service-account-credentials=true",
		// With the default of 20 requests a second a new namespace waits
		// for its ServiceAccount twice as long.
		"--kube-api-qps=500", "--kube-api-burst=1000",
	)
}

func (p *ControlPlane) schedulerFlags() []string {
	return p.clientFlags("system:kube-scheduler")
}

func (p *ControlPlane) apiServerReady(ctx context.Context, _ *Process) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return p.client.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
}

// controllerManagerReady waits for what Pods in the default namespace cannot be
// created without.
func (p *ControlPlane) controllerManagerReady(ctx context.Context, _ *Process) error {
	_, err := p.client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
	return err
}

// LogDir is the folder with the logs of all programs.
func (c *Cluster) LogDir() string { return c.logDir }

// AuditLog is the file with a line of JSON per request, if Options.Audit.
func (c *Cluster) AuditLog() string { return filepath.Join(c.logDir, "audit.log") }

// Kubeconfig is a file for kubectl, with all rights.
func (c *Cluster) Kubeconfig() string { return c.ControlPlane.kubeconfig("admin") }

// RESTConfig returns a client configuration with all rights.
func (c *Cluster) RESTConfig() (*rest.Config, error) {
	return clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
}

// Kubectl runs kubectl on this host and returns what it wrote on standard
// output; an error has what it wrote on standard error.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, c.KubectlPath(), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig())
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("kubectl %q: %w: %s", args, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}

// KubectlPath is where kubectl is.
func (c *Cluster) KubectlPath() string { return filepath.Join(c.bin.AssetsDir, "kubectl") }

// Start starts a program beside the control plane, as Node.Start does on a
// node. It ends with the cluster.
func (p *ControlPlane) Start(name string, cmd *exec.Cmd) (*Process, error) {
	return startProcess(p.cluster.control, cmd, filepath.Join(p.cluster.logDir, name+".log"))
}
