// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/sluice-dev/sluice/test/apiserver"
)

// replicas is how many controllers run, as in the chart.
const replicas = 2

// stopTimeout is how long a controller may take to end when it is asked to.
const stopTimeout = 10 * time.Second

// restartPause is how long a controller that has ended is left alone.
const restartPause = time.Second

// controllers are the replicas of the controller. One that ends by itself, because it lost the lease,
// is started again, as its Deployment does. They end with this process, however it ends.
type controllers struct {
	dir, logs string
	begin     chan startRequest
	halt      chan struct{} // closed to stop them; nil while they are stopped
	kept      errgroup.Group

	mu    sync.Mutex
	run   [replicas]*controller
	past  time.Duration // what those that have ended have had of the processor
	ended int           // how many have, by themselves
}

// controller is a process.
type controller struct {
	cmd             *exec.Cmd
	health, metrics string // their URLs
	done            chan struct{}
}

type startRequest struct {
	cmd     *exec.Cmd
	started chan<- error
}

// newControllers builds the controller.
func newControllers(ctx context.Context, server *apiserver.Server, token, logs string) (*controllers, error) {
	dir, err := os.MkdirTemp("", "sluice-scale-")
	if err != nil {
		return nil, err
	}
	c := &controllers{dir: dir, logs: logs, begin: make(chan startRequest)}
	build := exec.CommandContext(ctx, "go", "build", "-o", c.path("sluice-controller"), "./cmd/sluice-controller")
	build.Dir = server.Root
	if out, err := build.CombinedOutput(); err != nil {
		return nil, errors.Join(fmt.Errorf("build the controller: %w\n%s", err, out), os.RemoveAll(dir))
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["scale"] = &clientcmdapi.Cluster{Server: server.Config.Host, CertificateAuthorityData: server.Config.CAData}
	config.AuthInfos["scale"] = &clientcmdapi.AuthInfo{Token: token}
	config.Contexts["scale"] = &clientcmdapi.Context{Cluster: "scale", AuthInfo: "scale", Namespace: namespace}
	config.CurrentContext = "scale"
	if err := clientcmd.WriteToFile(*config, c.path("kubeconfig")); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	go c.starter()
	return c, nil
}

func (c *controllers) path(name string) string { return filepath.Join(c.dir, name) }

// starter starts processes on a thread of its own: the kernel kills them when the thread that started
// them ends.
func (c *controllers) starter() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for request := range c.begin {
		request.started <- request.cmd.Start()
	}
}

// start starts the controllers, and waits until they have read the cluster.
func (c *controllers) start(ctx context.Context) error {
	c.halt = make(chan struct{})
	for i := range replicas {
		if err := c.launch(i); err != nil {
			return err
		}
		c.kept.Go(func() error { return c.keep(i, c.halt) })
	}
	for i := range replicas {
		if err := c.untilReady(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// keep starts a controller again whenever it has ended, until halt is closed. Then it ends it.
func (c *controllers) keep(i int, halt <-chan struct{}) error {
	for {
		one := c.replica(i)
		select {
		case <-one.done:
			c.gone(i, 1)
		case <-halt:
			one.signal(syscall.SIGTERM)
			select {
			case <-one.done:
			case <-time.After(stopTimeout):
				one.signal(syscall.SIGKILL)
				<-one.done
			}
			c.gone(i, 0)
			return nil
		}
		select {
		case <-halt:
			return nil
		case <-time.After(restartPause):
		}
		if err := c.launch(i); err != nil {
			return err
		}
	}
}

// launch starts a controller.
func (c *controllers) launch(i int) error {
	health, metrics, err := freeAddresses()
	if err != nil {
		return err
	}
	cmd := exec.Command(c.path("sluice-controller"), "--kubeconfig="+c.path("kubeconfig"), "--leader-elect-namespace="+namespace,
		"--metrics-bind-address="+metrics, "--health-probe-bind-address="+health)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if c.logs != "" {
		log, err := os.OpenFile(filepath.Join(c.logs, fmt.Sprintf("controller-%d.log", i+1)), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		defer func() { _ = log.Close() }()
		cmd.Stderr = log
	}
	started := make(chan error)
	c.begin <- startRequest{cmd, started}
	if err := <-started; err != nil {
		return fmt.Errorf("start a controller: %w", err)
	}
	one := &controller{cmd: cmd, health: "http://" + health + "/readyz", metrics: "http://" + metrics + "/metrics", done: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // it is killed, or has lost the lease
		close(one.done)
	}()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.run[i] = one
	return nil
}

func (c *controllers) replica(i int) *controller {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.run[i]
}

// live are the controllers that run.
func (c *controllers) live() (all []*controller) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, one := range c.run {
		if one != nil {
			all = append(all, one)
		}
	}
	return all
}

// gone takes note of a controller that has ended.
func (c *controllers) gone(i, byItself int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	state := c.run[i].cmd.ProcessState
	c.past += state.UserTime() + state.SystemTime()
	c.ended += byItself
	c.run[i] = nil
}

func (c *controller) signal(signal os.Signal) {
	_ = c.cmd.Process.Signal(signal) // the only error is that it has ended
}

// freeAddresses are for probes and metrics.
func freeAddresses() (health, metrics string, err error) {
	var listeners [2]net.Listener
	for i := range listeners {
		if listeners[i], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return "", "", err
		}
		defer func() { _ = listeners[i].Close() }()
	}
	return listeners[0].Addr().String(), listeners[1].Addr().String(), nil
}

// untilReady waits until a controller says that it is. It may be started again meanwhile.
func (c *controllers) untilReady(ctx context.Context, i int) error {
	const interval = 50 * time.Millisecond
	for {
		if one := c.replica(i); one != nil {
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, one.health, nil)
			if err != nil {
				return err
			}
			if response, err := http.DefaultClient.Do(request); err == nil {
				_ = response.Body.Close()
				if response.StatusCode == http.StatusOK {
					return nil
				}
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for a controller: %w", context.Cause(ctx))
		case <-time.After(interval):
		}
	}
}

// stop stops the controllers. They can be started again.
func (c *controllers) stop() error {
	if c.halt == nil {
		return nil
	}
	close(c.halt)
	c.halt = nil
	return c.kept.Wait()
}

// close stops them for good.
func (c *controllers) close() error {
	err := c.stop()
	close(c.begin)
	return errors.Join(err, os.RemoveAll(c.dir))
}

// killLeader kills the controller that leads: the one that has made the most passes of those that run.
func (c *controllers) killLeader(ctx context.Context) error {
	var leader *controller
	most := 0.0
	for _, one := range c.live() {
		figures, err := scrape(ctx, one.metrics)
		if err != nil {
			return err
		}
		if passes := sum(figures, "controller_runtime_reconcile_total", "controller", "distribution"); passes > most {
			leader, most = one, passes
		}
	}
	if leader == nil {
		return errors.New("no controller leads")
	}
	leader.signal(syscall.SIGKILL)
	<-leader.done
	return nil
}

// controllerUsage is what controllers have used.
type controllerUsage struct {
	cpu   time.Duration // of all, those that have ended included
	peak  float64       // the most memory of the largest since the last reset, in bytes
	ended int           // how many have, by themselves
}

func (c *controllers) usage() controllerUsage {
	c.mu.Lock()
	used := controllerUsage{cpu: c.past, ended: c.ended}
	c.mu.Unlock()
	for _, one := range c.live() {
		cpu, status, err := one.stat()
		if err != nil {
			continue // it has just ended
		}
		used.cpu += time.Duration(cpu * float64(time.Second))
		used.peak = max(used.peak, float64(status.VmHWM))
	}
	return used
}

// stat reads what it has had of the processor, in seconds, and its memory.
func (c *controller) stat() (cpu float64, status procfs.ProcStatus, err error) {
	process, err := procfs.NewProc(c.cmd.Process.Pid)
	if err != nil {
		return 0, status, err
	}
	stat, err := process.Stat()
	if err != nil {
		return 0, status, err
	}
	status, err = process.NewStatus()
	return stat.CPUTime(), status, err
}

// resetPeaks begins anew to look for the most memory that each has (clear_refs in proc(5)).
func (c *controllers) resetPeaks() error {
	var errs []error
	for _, one := range c.live() {
		errs = append(errs, os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", one.cmd.Process.Pid), []byte("5"), 0))
	}
	return errors.Join(errs...)
}
