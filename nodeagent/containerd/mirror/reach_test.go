// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

func TestWhichMirrorsAnswer(t *testing.T) {
	denying := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }))
	t.Cleanup(denying.Close)
	hangingUp := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		connection, _, _ := w.(http.Hijacker).Hijack()
		_ = connection.(*net.TCPConn).SetLinger(0)
		_ = connection.Close()
	}))
	t.Cleanup(hangingUp.Close)
	released := make(chan struct{})
	silent := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-released }))
	t.Cleanup(silent.Close)
	t.Cleanup(func() { close(released) })
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(secure.Close)
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()

	for _, tt := range []struct{ reason, url, want string }{
		{"it asks who is there", denying.URL, ""},
		{"it hangs up", hangingUp.URL, "read: connection reset by peer"},
		{"it answers nothing", silent.URL, errSilent.Error()},
		{"nobody listens", closed.URL, "connect: connection refused"},
		{"its certificate is a stranger's", secure.URL, "certificate signed by unknown authority"},
		{"its name is unknown", "http://mirror.invalid:1", "mirror.invalid cannot be looked up"},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			t.Parallel()
			scheme, host, _ := strings.Cut(tt.url, "://")
			c := &Client{
				Hosts:    []docker.RegistryHost{{Client: &http.Client{Transport: &http.Transport{}}, Scheme: scheme, Host: host, Path: "/v2"}},
				Throttle: &Throttle{},
			}
			err := c.Reach(t.Context())[0]
			c.Hosts[0].Client.CloseIdleConnections()
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "->") {
				t.Errorf("%v has the port of the connection in it, which is another each time", err)
			}
		})
	}
	starting := &Client{
		Hosts:    []docker.RegistryHost{{Client: http.DefaultClient, Scheme: "http", Host: strings.TrimPrefix(closed.URL, "http://")}},
		Throttle: &Throttle{Began: time.Now(), StartTimeout: time.Hour},
	}
	if err := starting.Reach(t.Context())[0]; !errors.Is(err, ErrStarting) {
		t.Errorf("a mirror that may not be up yet: %v", err)
	}
}
