// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Command peermirror runs the mirror of one node, a stand-in for "spegel
// registry" with flags modelled on it. See the package peermirror.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/sluice-dev/sluice/test/peermirror"
)

func main() {
	var opts options
	opts.register(pflag.CommandLine)
	pflag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := run(ctx, opts)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "peermirror:", err)
		os.Exit(1)
	}
}

type options struct {
	registryAddr   string
	metricsAddr    string
	socket         string
	namespace      string
	peers          []string
	peersFile      string
	behave         string
	seed           uint64
	resolveTimeout time.Duration
}

func (o *options) register(flags *pflag.FlagSet) {
	flags.StringVar(&o.registryAddr, "registry-addr", ":5000", "address that the node's containerd and the peers ask")
	flags.StringVar(&o.metricsAddr, "metrics-addr", "", "address that serves /metrics; none if empty")
	flags.StringVar(&o.socket, "containerd-sock", "/run/containerd/containerd.sock", "socket of the node's containerd")
	flags.StringVar(&o.namespace, "containerd-namespace", "k8s.io", "containerd namespace to serve")
	flags.StringSliceVar(&o.peers, "peers", nil, "mirrors of the other nodes, as http://ip:port,...; the own address is left out")
	flags.StringVar(&o.peersFile, "peers-file", "", "file with one mirror a line instead of --peers, read again for each search")
	flags.StringVar(&o.behave, "behave", "spegel", "as spegel does, or well: find whatever a peer holds, and outlive containerd")
	flags.Uint64Var(&o.seed, "seed", 1, "with --behave=spegel, decides which requests are missed")
	flags.DurationVar(&o.resolveTimeout, "mirror-resolve-timeout", 2*time.Second, "bound on the search for a peer")
}

// Validate says what is wrong with the flags, before anything is started.
func (o *options) Validate() error {
	var errs []error
	if _, _, err := net.SplitHostPort(o.registryAddr); err != nil {
		errs = append(errs, fmt.Errorf("--registry-addr: %w", err))
	}
	if o.behave != "well" && o.behave != "spegel" {
		errs = append(errs, fmt.Errorf("--behave=%s: must be well or spegel", o.behave))
	}
	if o.peersFile != "" && len(o.peers) > 0 {
		errs = append(errs, errors.New("--peers and --peers-file exclude each other"))
	}
	if o.resolveTimeout <= 0 {
		errs = append(errs, errors.New("--mirror-resolve-timeout must be positive"))
	}
	return errors.Join(errs...)
}

func run(ctx context.Context, opts options) error {
	if err := opts.Validate(); err != nil {
		return err
	}
	asSpegel := opts.behave == "spegel"
	store, err := peermirror.NewContainerd(opts.socket, opts.namespace, asSpegel)
	if err != nil {
		return err
	}
	defer store.Close()
	peers := peermirror.FixedPeers(opts.peers...)
	if opts.peersFile != "" {
		peers = peermirror.PeersFile(opts.peersFile)
	}
	registry := prometheus.NewRegistry()
	mirrorOptions := peermirror.Options{
		Store:          store,
		Peers:          peers.Without("http://" + opts.registryAddr),
		ResolveTimeout: opts.resolveTimeout,
		Registerer:     registry,
	}
	if asSpegel {
		mirrorOptions.Manners = peermirror.Spegel(opts.seed, opts.registryAddr)
	}
	mirror := peermirror.New(mirrorOptions)
	defer mirror.Close()

	servers, ctx := errgroup.WithContext(ctx)
	servers.Go(func() error { return serve(ctx, opts.registryAddr, mirror) })
	if asSpegel {
		servers.Go(func() error { return store.Track(ctx) })
	}
	if opts.metricsAddr != "" {
		mux := http.NewServeMux()
		mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
		servers.Go(func() error { return serve(ctx, opts.metricsAddr, mux) })
	}
	return servers.Wait()
}

// serve runs a server until the context ends, and then cuts its connections: a
// mirror that goes away does so at once.
func serve(ctx context.Context, address string, handler http.Handler) error {
	server := &http.Server{Addr: address, Handler: handler, ReadHeaderTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
