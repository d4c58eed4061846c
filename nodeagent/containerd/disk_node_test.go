// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/go-logr/logr"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"

	"github.com/sluice-dev/sluice/internal/imageref"
	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/nodeagent/containerd"
	"github.com/sluice-dev/sluice/test/cluster"
)

// diskArgument makes the test's own binary go through steps on a node, and look at a disk meanwhile.
const diskArgument = "disk-on-node"

// diskRequest is what one agent is to do.
type diskRequest struct {
	MinFreeDisk float64
	// KubeletConfig is the kubelet's configuration, if there is one.
	KubeletConfig string
	// Disk is where the file system is mounted that is looked at.
	Disk  string
	Steps []diskStep
}

// diskStep is what happens at a time. What is empty does not.
type diskStep struct {
	// Spec is what the node is to have from now on.
	Spec []helperRequest
	// Pulls begin at the same time.
	Pulls []helperRequest
	// Leave takes all of the disk but so many bytes.
	Leave int64
	// WatchUntil watches the daemon until so many bytes are free.
	WatchUntil int64
}

// diskReport is how a step went.
type diskReport struct {
	// Errors are those of the pulls; empty for a success.
	Errors []string
	// Before, Lowest and After are what was free, and Lowest the least of it while the step went on.
	Before, Lowest, After space
	// Size is that of the disk.
	Size space
}

// line is a share of the disk.
func (r diskReport) line(share float64) int64 { return int64(share * float64(r.Size.Bytes)) }

type space struct{ Bytes, Inodes int64 }

func freeOn(dir string) space {
	free, _ := look(dir)
	return free
}

func look(dir string) (free, size space) {
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return free, size
	}
	return space{Bytes: int64(stat.Bavail) * stat.Bsize, Inodes: int64(stat.Ffree)},
		space{Bytes: int64(stat.Blocks) * stat.Bsize, Inodes: int64(stat.Files)}
}

// diskOnNode runs on the node. It prints the reports.
func diskOnNode(argument string) int {
	var req diskRequest
	err := json.Unmarshal([]byte(argument), &req)
	if err == nil {
		err = runSteps(req)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func runSteps(req diskRequest) error {
	kubeletConfig := ""
	if req.KubeletConfig != "" {
		kubeletConfig = "/run/kubelet.yaml"
		if err := os.WriteFile(kubeletConfig, []byte(req.KubeletConfig), 0o600); err != nil {
			return err
		}
	}
	runtime, err := containerd.New(containerd.Options{
		Address: "/run/containerd/containerd.sock", Namespace: namespace, RegistryConfigPath: "/etc/containerd/certs.d", ScratchPath: "/run/sluice",
		MinFreeDisk: req.MinFreeDisk, KubeletConfig: kubeletConfig, NoProgressTimeout: time.Minute, UserAgent: "sluice-agent/test", Log: logr.Discard(),
	})
	if err != nil {
		return err
	}
	defer func() { _ = runtime.Close() }()
	var reports []diskReport
	for _, step := range req.Steps {
		report := diskReport{Before: freeOn(req.Disk), Errors: make([]string, len(step.Pulls))}
		lowest := sampleLowest(req.Disk)
		if err := runStep(runtime, req.Disk, step, report.Errors); err != nil {
			return err
		}
		report.Lowest = lowest()
		report.After, report.Size = look(req.Disk)
		reports = append(reports, report)
	}
	return json.NewEncoder(os.Stdout).Encode(reports)
}

func runStep(runtime *containerd.Runtime, disk string, step diskStep, failures []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if step.Leave > 0 {
		file, err := os.Create(disk + "/filler")
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }()
		if err := unix.Fallocate(int(file.Fd()), 0, 0, freeOn(disk).Bytes-step.Leave); err != nil {
			return err
		}
	}
	if step.Spec != nil {
		var retained []nodeagent.Retained
		for _, image := range step.Spec {
			ref, err := imageref.Parse(image.Image)
			if err != nil {
				return err
			}
			retained = append(retained, nodeagent.Retained{Ref: ref, Digest: image.Digest})
		}
		if err := runtime.Retain(ctx, retained); err != nil {
			return err
		}
	}
	if step.WatchUntil > 0 {
		watching, done := context.WithTimeout(ctx, 30*time.Second)
		defer done()
		go func() {
			for freeOn(disk).Bytes < step.WatchUntil && watching.Err() == nil {
				<-time.After(50 * time.Millisecond)
			}
			done()
		}()
		_ = runtime.Watch(watching, func() {}, func(nodeagent.Change) {}, func([]nodeagent.Finding) {})
	}
	var all sync.WaitGroup
	for i, pull := range step.Pulls {
		ref, err := imageref.Parse(pull.Image)
		if err != nil {
			return err
		}
		limited, done := context.WithTimeoutCause(ctx, pull.Timeout, nodeagent.ErrNoProgress)
		defer done()
		all.Go(func() {
			_, err := runtime.Pull(limited, nodeagent.PullRequest{Ref: ref, Digest: pull.Digest, Policy: pull.Policy}, func(nodeagent.Progress) {})
			if err != nil {
				failures[i] = err.Error()
			}
		})
	}
	all.Wait()
	return nil
}

// sampleLowest looks at what is free until it is asked for the least.
func sampleLowest(dir string) (lowest func() space) {
	least, quit, ended := freeOn(dir), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-quit:
				return
			case <-ticker.C:
				now := freeOn(dir)
				least.Bytes, least.Inodes = min(least.Bytes, now.Bytes), min(least.Inodes, now.Inodes)
			}
		}
	}()
	return func() space {
		close(quit)
		<-ended
		return least
	}
}

// onDisk has an agent on a node go through steps.
func onDisk(ctx context.Context, n *cluster.Node, req diskRequest) []diskReport {
	GinkgoHelper()
	for _, step := range req.Steps {
		for i := range step.Pulls {
			if step.Pulls[i].Timeout == 0 {
				step.Pulls[i].Timeout = time.Minute
			}
		}
	}
	argument, err := json.Marshal(req)
	Expect(err).NotTo(HaveOccurred())
	output, err := n.Run(ctx, os.Args[0], diskArgument, string(argument))
	Expect(err).NotTo(HaveOccurred())
	var reports []diskReport
	Expect(json.Unmarshal([]byte(output), &reports)).To(Succeed(), output)
	GinkgoWriter.Printf("reports: %s", output)
	return reports
}
