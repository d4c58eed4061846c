// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Command cluster builds what test clusters are made of, and runs a cluster to
// play with.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/sluice-dev/sluice/test/cluster"
)

const usage = `Usage: cluster COMMAND [flags]

  deps     install the Debian packages that are missing (as root)
  build    build all programs that a cluster runs
  assets   build them and print the folder for KUBEBUILDER_ASSETS
  helm     build helm and print its path
  versions print what the tests run, as the table in docs/compatibility.md
  up       start a cluster and leave it running (as root)
  down     end it

Flags of up and down:
`

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

type options struct {
	nodes          int
	dir            string
	containerdOnly bool
	mirror         bool
}

func run(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	var opts options
	flags := pflag.NewFlagSet("cluster", pflag.ContinueOnError)
	flags.IntVar(&opts.nodes, "nodes", 3, "number of nodes")
	flags.StringVar(&opts.dir, "dir", ".cluster", "folder for the kubeconfig and the logs")
	flags.BoolVar(&opts.containerdOnly, "containerd-only", false, "no control plane and no kubelets")
	flags.BoolVar(&opts.mirror, "mirror", false, "run a mirror on each node: $SPEGEL, or the stand-in for it")
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage+flags.FlagUsages()) }
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return nil
		}
		return err
	}
	if flags.NArg() != 1 {
		flags.Usage()
		return errors.New("want one command")
	}
	switch command := flags.Arg(0); command {
	case "deps":
		return cluster.InstallPackages(ctx, logf)
	case "build":
		return cluster.BuildAll(ctx, logf)
	case "assets":
		binaries, err := cluster.Build(ctx, logf)
		if err == nil {
			fmt.Println(binaries.AssetsDir)
		}
		return err
	case "helm":
		path, err := cluster.Helm(ctx, logf)
		if err == nil {
			fmt.Println(path)
		}
		return err
	case "versions":
		return versions(ctx, os.Stdout)
	case "up":
		return up(ctx, opts)
	case "serve":
		return serve(ctx, opts)
	case "down":
		return cluster.Down(ctx, opts.dir)
	default:
		flags.Usage()
		return fmt.Errorf("unknown command %q", command)
	}
}

// logf writes to standard error, for standard output has the answer alone.
func logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// versions prints a table in Markdown.
func versions(ctx context.Context, out io.Writer) error {
	all, err := cluster.Versions(ctx)
	if err != nil {
		return err
	}
	fmt.Fprint(out, "| program | version | pinned in |\n|---|---|---|\n")
	for _, v := range all {
		fmt.Fprintf(out, "| %s | %s | `%s` |\n", v.Program, strings.TrimPrefix(v.Version, "v"), v.Module)
	}
	fmt.Fprintf(out, "| Spegel | %s | nowhere: run by hand; CI runs `test/peermirror` in its place |\n", strings.TrimPrefix(cluster.SpegelVersion, "v"))
	return nil
}

// up runs this program again, as the supervisor of the cluster.
func up(ctx context.Context, opts options) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return cluster.Detach(ctx, opts.dir, os.Stdout, self, "serve",
		fmt.Sprintf("--nodes=%d", opts.nodes),
		"--dir="+opts.dir,
		fmt.Sprintf("--containerd-only=%t", opts.containerdOnly),
		fmt.Sprintf("--mirror=%t", opts.mirror),
	)
}

// serve is what up runs.
func serve(ctx context.Context, opts options) (err error) {
	ctx, ready, err := cluster.Supervise(ctx, opts.dir)
	if err != nil {
		return err
	}
	dir, err := filepath.Abs(opts.dir)
	if err != nil {
		return err
	}
	clusterOptions := cluster.Options{
		Nodes:          cluster.Nodes(opts.nodes),
		ContainerdOnly: opts.containerdOnly,
		LogDir:         filepath.Join(dir, "log"),
		Logf:           logf,
	}
	if opts.mirror {
		if clusterOptions.Mirror, err = cluster.DefaultMirror(ctx, logf); err != nil {
			return err
		}
	}
	began := time.Now()
	c, err := cluster.Start(ctx, clusterOptions)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Stop()) }()
	fmt.Printf("Started %d nodes in %s\n", opts.nodes, time.Since(began).Round(100*time.Millisecond))
	for _, node := range c.Nodes() {
		fmt.Printf("%s\t%s\t%s\n", node.Name, node.IP, node.ContainerdSocket)
	}
	fmt.Printf("Gateway\t%s\n", c.GatewayIP)
	if c.ControlPlane != nil {
		fmt.Printf("export KUBECONFIG=%s PATH=%s:$PATH\n", c.Kubeconfig(), filepath.Dir(c.KubectlPath()))
	}
	ready()
	<-ctx.Done()
	return nil
}
