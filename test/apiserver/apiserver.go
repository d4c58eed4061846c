// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package apiserver runs a real API server, with an etcd and the CRDs of this
// repository, for the tests of code that speaks to one.
//
// The programs are those of test/cluster. They end with the test's process, however
// that ends.
package apiserver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

// assetsVariable names the folder with the programs, as for every user of envtest.
const assetsVariable = "KUBEBUILDER_ASSETS"

// stopTimeout is how long a program may take to end: an API server with thousands of watches, or on a
// busy machine, takes longer than the 20 s that envtest gives it.
const stopTimeout = 2 * time.Minute

// Server is a running API server.
type Server struct {
	// Config is that of an administrator.
	Config *rest.Config
	// Root is the top folder of this repository.
	Root string

	environment *envtest.Environment
	wrappers    string
	stop        chan chan error
}

// Start starts an API server. Nodes can be created without a taint, because nothing
// there would ever take it away. Its etcd does not wait for the disk.
func Start() (*Server, error) { return start(false) }

// StartDurable does the same with an etcd that waits for the disk, as in a cluster.
func StartDurable() (*Server, error) { return start(true) }

func start(durable bool) (*Server, error) {
	assets, err := findAssets()
	if err != nil {
		return nil, err
	}
	s := &Server{stop: make(chan chan error)}
	if s.Root, err = findRoot(); err != nil {
		return nil, err
	}
	if s.wrappers, err = os.MkdirTemp("", "sluice-apiserver-"); err != nil {
		return nil, err
	}
	s.environment = &envtest.Environment{
		CRDDirectoryPaths:       []string{filepath.Join(s.Root, "config", "crd")},
		ErrorIfCRDPathMissing:   true,
		ControlPlaneStopTimeout: stopTimeout,
	}
	server := s.environment.ControlPlane.GetAPIServer()
	server.Configure().Append("disable-admission-plugins", "TaintNodesByCondition")
	s.environment.ControlPlane.Etcd = &envtest.Etcd{}
	if durable {
		s.environment.ControlPlane.Etcd.Configure().Disable("unsafe-no-fsync")
	}
	for name, path := range map[string]*string{
		"kube-apiserver": &server.Path,
		"etcd":           &s.environment.ControlPlane.Etcd.Path,
	} {
		if *path, err = s.mortal(filepath.Join(assets, name)); err != nil {
			return nil, errors.Join(err, os.RemoveAll(s.wrappers))
		}
	}
	began := make(chan error)
	go s.live(began)
	if err := <-began; err != nil {
		return nil, fmt.Errorf("start the API server: %w", err)
	}
	return s, nil
}

// Kubeconfig is a file for an administrator's client.
func (s *Server) Kubeconfig() []byte { return s.environment.KubeConfig }

// EtcdURL is where its etcd answers.
func (s *Server) EtcdURL() string { return s.environment.ControlPlane.Etcd.URL.String() }

// Processes finds the processes of the API server and of etcd. There must be no other such server in
// this process.
func (s *Server) Processes() (apiServer, etcd procfs.Proc, err error) {
	all, err := procfs.AllProcs()
	if err != nil {
		return procfs.Proc{}, procfs.Proc{}, err
	}
	found := map[string][]procfs.Proc{}
	for _, process := range all {
		if stat, err := process.Stat(); err == nil && stat.PPID == os.Getpid() { // others come and go
			found[stat.Comm] = append(found[stat.Comm], process)
		}
	}
	apiServers, etcds := found["kube-apiserver"], found["etcd"]
	if len(apiServers) != 1 || len(etcds) != 1 {
		return procfs.Proc{}, procfs.Proc{}, fmt.Errorf("want one API server and one etcd among the children of this process, found %d and %d",
			len(apiServers), len(etcds))
	}
	return apiServers[0], etcds[0], nil
}

// Stop ends the API server and removes what it kept.
func (s *Server) Stop() error {
	stopped := make(chan error)
	s.stop <- stopped
	return <-stopped
}

// live starts the programs and stops them, on a thread of its own: the kernel kills
// them when the thread that started them ends, not when the process does.
func (s *Server) live(began chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	config, err := s.environment.Start()
	s.Config = config
	if err != nil {
		err = errors.Join(err, s.end())
	}
	began <- err
	if err == nil {
		stopped := <-s.stop
		stopped <- s.end()
	}
}

func (s *Server) end() error {
	return errors.Join(s.environment.Stop(), os.RemoveAll(s.wrappers))
}

// mortal wraps a program so that the kernel kills it with its parent.
func (s *Server) mortal(program string) (string, error) {
	path := filepath.Join(s.wrappers, filepath.Base(program))
	script := fmt.Sprintf("#!/bin/sh\nexec setpriv --pdeathsig KILL -- '%s' \"$@\"\n", program)
	return path, os.WriteFile(path, []byte(script), 0o755)
}

func findAssets() (string, error) {
	assets := os.Getenv(assetsVariable)
	for _, program := range []string{"kube-apiserver", "etcd"} {
		if _, err := os.Stat(filepath.Join(assets, program)); assets == "" || err != nil {
			return "", fmt.Errorf(`%s=%q does not hold %s: run "make test", or set it to what "go run ./test/cluster/cmd/cluster assets" prints`,
				assetsVariable, assets, program)
		}
	}
	return assets, nil
}

// findRoot is the folder with go.mod, seen from where go test runs a package's tests.
func findRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == "/" || strings.TrimSpace(dir) == "" {
			return "", errors.New("find the top of the repository: no go.mod above the working folder")
		}
		dir = filepath.Dir(dir)
	}
}

// TokenKey is the private key, PKCS #8 in PEM, that signs the tokens of service
// accounts: for tokens that the API would not issue, such as one that has expired.
func (s *Server) TokenKey() ([]byte, error) {
	return os.ReadFile(filepath.Join(s.environment.ControlPlane.GetAPIServer().CertDir, "sa-signer.key"))
}
