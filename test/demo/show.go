// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	kruntime "k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// bound is how long each part may take before the show gives up.
const bound = 2 * time.Minute

// show is one run of the demo over a cluster that is up.
type show struct {
	*clusterInfo
	client client.WithWatch
	took   []string // how long each part took, for the last line
}

func newShow(info *clusterInfo) *show {
	return &show{clusterInfo: info, took: []string{fmt.Sprintf("cluster %.1fs", info.Took.Seconds())}}
}

func (s *show) run(ctx context.Context) error {
	if err := s.connect(); err != nil {
		return err
	}
	fmt.Printf("\n== What is real here, and what is not\n\n%s", s.standIns())
	fmt.Printf("\n== A cluster of %d nodes, each with its own containerd, kubelet and mirror\n\n", len(s.Nodes))
	if err := s.kubectl(ctx, "get", "nodes", "-o", "wide"); err != nil {
		return err
	}
	fmt.Print("\n== Sluice, installed by Helm beside cert-manager\n\n")
	if err := s.kubectl(ctx, "get", "pods", "-A"); err != nil {
		return err
	}
	for _, part := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"prefetch", s.prefetch},
		{"rollout", s.rollout},
		{"gate", s.gate},
		{"proof", s.prove},
	} {
		began := time.Now()
		bounded, cancel := context.WithTimeout(ctx, bound)
		err := part.run(bounded)
		cancel()
		if err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
		s.took = append(s.took, fmt.Sprintf("%s %.1fs", part.name, time.Since(began).Seconds()))
	}
	fmt.Printf("\nTook: %s\n", strings.Join(s.took, ", "))
	return nil
}

// standIns says what of the cluster is not what a user has.
func (s *show) standIns() string {
	return fmt.Sprintf(`Real are Kubernetes, etcd, containerd, runc, Helm, and cert-manager without its webhook, each
built from its source; and Sluice, in images that are built as for a release. Others stand in:

  for hosts     network namespaces of this machine, one for each node
  for Spegel    %s
  for registry  test/upstream, which records what it is asked for, and sends %d MiB/s
  for images    some pushed for this demo, of layers that do not compress
`, s.Mirror, uplink>>20)
}

func (s *show) connect() error {
	config, err := clientcmd.BuildConfigFromFlags("", s.Kubeconfig)
	if err != nil {
		return err
	}
	scheme := kruntime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return err
	}
	s.client, err = client.NewWithWatch(config, client.Options{Scheme: scheme})
	return err
}

// kubectl runs the command as a user would, and shows it with what it prints.
func (s *show) kubectl(ctx context.Context, args ...string) error {
	fmt.Printf("$ %s\n", commandLine(args...))
	cmd := exec.CommandContext(ctx, s.Kubectl, args...)
	cmd.Dir = repositoryRoot()
	cmd.Env = append(os.Environ(), "KUBECONFIG="+s.Kubeconfig)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout // warnings are part of the show
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", commandLine(args...), err)
	}
	return nil
}

// repositoryRoot is two folders above this file: the samples are there.
func repositoryRoot() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..")
}
