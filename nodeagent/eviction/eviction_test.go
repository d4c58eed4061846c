// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package eviction

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const header = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"

func TestRead(t *testing.T) {
	for _, tt := range []struct {
		reason, config string
		bytes, inodes  int64 // of 1,000 and 1,000,000
		imageGC        int
	}{
		{"the defaults", header, 150_000, 50, 85},
		{"JSON", `{"apiVersion":"kubelet.config.k8s.io/v1beta1","kind":"KubeletConfiguration","evictionHard":{"imagefs.available":"20%"}}`, 200_000, 0, 85},
		{"one that is set turns the others off", header + "evictionHard: {memory.available: 100Mi}", 0, 0, 85},
		{"unless they are to be merged", header + "evictionHard: {imagefs.available: 5%}\nmergeDefaultEvictionSettings: true", 100_000, 50, 85},
		{"the larger of image and node file system", header + "evictionHard: {imagefs.available: 10%, nodefs.available: 12%, nodefs.inodesFree: 7%}", 120_000, 70, 85},
		{"the soft one is met first", header + "evictionSoft: {imagefs.available: 25%, imagefs.inodesFree: '300'}", 250_000, 300, 85},
		{"a quantity", header + "evictionHard: {imagefs.available: 300k, imagefs.inodesFree: '100'}", 300_000, 100, 85},
		{"the image garbage collection", header + "imageGCHighThresholdPercent: 70", 150_000, 50, 70},
	} {
		file := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(file, []byte(tt.config), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := Read(file)
		if err != nil {
			t.Errorf("%s: %v", tt.reason, err)
			continue
		}
		if got.Bytes(1_000_000) != tt.bytes || got.Inodes(1000) != tt.inodes || got.ImageGCPercent != tt.imageGC {
			t.Errorf("%s: %d bytes, %d inodes, %d %%", tt.reason, got.Bytes(1_000_000), got.Inodes(1000), got.ImageGCPercent)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	for _, tt := range []struct{ reason, config, want string }{
		{"another file", "apiVersion: v1\nkind: Config\n", "no KubeletConfiguration"},
		{"no YAML", "\tx", "yaml"},
		{"a share of more than all", header + "evictionHard: {imagefs.available: 150%}", `imagefs.available: "150%" is not a percentage`},
		{"no quantity", header + "evictionHard: {imagefs.available: much}", `imagefs.available: "much"`},
	} {
		file := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(file, []byte(tt.config), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(file); err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", tt.reason, err)
		}
	}
	if _, err := Read(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a file that is not there is read")
	}
}

func TestNothingIsAskedForWithoutAConfiguration(t *testing.T) {
	var none Thresholds
	if none.Bytes(1000) != 0 || none.Inodes(1000) != 0 {
		t.Errorf("%d bytes, %d inodes", none.Bytes(1000), none.Inodes(1000))
	}
}
