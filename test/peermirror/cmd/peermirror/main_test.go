// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func parse(t *testing.T, args ...string) options {
	t.Helper()
	var opts options
	flags := pflag.NewFlagSet("peermirror", pflag.ContinueOnError)
	opts.register(flags)
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	return opts
}

func TestValidate(t *testing.T) {
	for _, test := range []struct {
		args  string
		wrong string // "" if nothing is
	}{
		{"", ""},
		{"--registry-addr=10.0.0.1:5000 --peers=http://10.0.0.2:5000,http://10.0.0.3:5000 --behave=spegel --seed=7", ""},
		{"--behave=well", ""},
		{"--registry-addr=10.0.0.1", "--registry-addr"},
		{"--behave=badly", "--behave"},
		{"--peers=http://10.0.0.2:5000 --peers-file=peers", "exclude"},
		{"--mirror-resolve-timeout=0s", "--mirror-resolve-timeout"},
	} {
		opts := parse(t, strings.Fields(test.args)...)
		err := opts.Validate()
		if (err == nil) != (test.wrong == "") || err != nil && !strings.Contains(err.Error(), test.wrong) {
			t.Errorf("%s: %v, want %q", test.args, err, test.wrong)
		}
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	peer := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer peer.Close()
	file := filepath.Join(t.TempDir(), "peers")
	registry, metrics := freeAddress(t), freeAddress(t)
	if err := os.WriteFile(file, []byte("http://"+registry+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, parse(t, "--behave=well", "--registry-addr="+registry, "--metrics-addr="+metrics,
			"--containerd-sock="+filepath.Join(t.TempDir(), "none.sock"), "--peers-file="+file))
	}()
	eventually(t, "http://"+registry+"/livez", 200)
	eventually(t, "http://"+metrics+"/metrics", 200)
	eventually(t, "http://"+registry+"/readyz", 500) // it is no peer of its own
	if err := os.WriteFile(file, []byte("http://"+registry+"\n"+peer.URL+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, "http://"+registry+"/readyz", 200)
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end")
	}
}

func TestRunReportsAnAddressInUse(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	err = run(t.Context(), parse(t, "--behave=well",
		"--registry-addr="+taken.Addr().String(), "--metrics-addr="+freeAddress(t),
		"--containerd-sock="+filepath.Join(t.TempDir(), "none.sock")))
	if err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("run = %v", err)
	}
}

func TestRunEndsWithoutContainerd(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := run(ctx, parse(t, "--registry-addr="+freeAddress(t),
		"--containerd-sock="+filepath.Join(t.TempDir(), "none.sock")))
	if err == nil || !strings.Contains(err.Error(), "containerd") {
		t.Errorf("run = %v", err)
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

func eventually(t *testing.T, url string, want int) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	deadline := time.After(10 * time.Second)
	for {
		got := 0
		response, err := client.Get(url)
		if err == nil {
			got = response.StatusCode
			_, _ = io.Copy(io.Discard, response.Body)
			response.Body.Close()
		}
		if got == want {
			return
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-deadline:
			t.Fatalf("GET %s = %d, %v; want %d", url, got, err, want)
		}
	}
}
