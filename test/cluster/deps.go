// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// debianPackages maps what must be there to the package that brings it.
var debianPackages = []struct {
	name    string
	present func() bool
}{
	{"gcc", inPath("gcc")},
	{"libc6-dev", isFile("/usr/include/stdio.h")},
	{"pkg-config", inPath("pkg-config")},
	{"libseccomp-dev", isFile("/usr/include/seccomp.h")},
	{"iproute2", inPath("ip")},
	{"util-linux", inPath("nsenter")},
	{"nftables", inPath("nft")},
	{"btrfs-progs", inPath("mkfs.btrfs")},
	{"e2fsprogs", inPath("mkfs.ext4")},
}

// errNotRoot says in one line what is wrong and what to run instead.
var errNotRoot = errors.New("a cluster needs root, for namespaces, mounts and control groups: run the command with sudo, as in `sudo make test`")

func inPath(program string) func() bool {
	return func() bool { _, err := exec.LookPath(program); return err == nil }
}

func isFile(path string) func() bool {
	return func() bool { _, err := os.Stat(path); return err == nil }
}

func missingPackages() (names []string) {
	for _, p := range debianPackages {
		if !p.present() {
			names = append(names, p.name)
		}
	}
	return names
}

func checkPackages() error {
	if missing := missingPackages(); len(missing) > 0 {
		return fmt.Errorf("missing Debian packages: run `sudo apt-get install -y --no-install-recommends %s`", strings.Join(missing, " "))
	}
	return nil
}

// InstallPackages installs the Debian packages that are missing, if any.
func InstallPackages(ctx context.Context, logf func(format string, args ...any)) error {
	missing := missingPackages()
	if len(missing) == 0 {
		return nil
	}
	if os.Geteuid() != 0 {
		return checkPackages()
	}
	logf("Installing %s", strings.Join(missing, " "))
	install := append([]string{"install", "-y", "--no-install-recommends"}, missing...)
	for _, args := range [][]string{{"update"}, install} {
		apt := exec.CommandContext(ctx, "apt-get", args...)
		apt.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := apt.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return checkPackages()
}
