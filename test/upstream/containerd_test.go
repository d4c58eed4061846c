// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/upstream"
)

// What containerd makes of the registry, and of its faults.
func TestContainerdPulls(t *testing.T) {
	c, err := cluster.Start(t.Context(), cluster.Options{Nodes: cluster.Nodes(1), ContainerdOnly: true, Logf: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	node := c.Nodes()[0]
	ann := map[string]string{"ann": "secret"}
	for i, test := range []struct {
		name    string
		opts    upstream.Options
		prepare func(*upstream.Server)
		user    string
		wrong   string // what the error says; "" if the pull succeeds
	}{
		{name: "over HTTP"},
		{name: "over HTTPS", opts: upstream.Options{TLS: true}},
		{name: "with a client certificate", opts: upstream.Options{ClientTLS: true}},
		{name: "with basic credentials", user: "ann:secret",
			prepare: func(s *upstream.Server) { s.Protect("", &upstream.Auth{Users: ann}) }},
		{name: "with a bearer token", user: "ann:secret",
			prepare: func(s *upstream.Server) { s.Protect("", &upstream.Auth{Scheme: upstream.Bearer, Users: ann}) }},
		{name: "with a wrong password", user: "ann:guess", wrong: "401",
			prepare: func(s *upstream.Server) { s.Protect("", &upstream.Auth{Scheme: upstream.Bearer, Users: ann}) }},
		{name: "an image that is gone", wrong: "not found",
			prepare: func(s *upstream.Server) { s.Inject(upstream.Manifests, 0, upstream.Answer(404)) }},
		{name: "forbidden", wrong: "403",
			prepare: func(s *upstream.Server) { s.Inject(upstream.Manifests, 0, upstream.Answer(403)) }},
		{name: "too many requests, for ever", wrong: "429",
			prepare: func(s *upstream.Server) { s.Inject(upstream.Blobs, 0, upstream.Answer(429)) }},
		{name: "one error, which it tries again",
			prepare: func(s *upstream.Server) { s.Inject(upstream.Blobs, 1, upstream.Answer(500)) }},
		{name: "reset in the middle of a layer", wrong: "reset by peer",
			prepare: func(s *upstream.Server) { s.Inject(upstream.Blobs, 1, upstream.ResetAfter(images.MiB)) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			server, err := upstream.New(test.opts)
			if err != nil {
				t.Fatal(err)
			}
			if err := server.Start(fmt.Sprintf("%s:%d", c.GatewayIP, 5000+i)); err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			image, err := images.Image(images.Options{Layers: []v1.Layer{images.Layer(test.name, 2*images.MiB)}})
			if err != nil {
				t.Fatal(err)
			}
			if err := server.Push("team/app:1", image); err != nil {
				t.Fatal(err)
			}
			if test.prepare != nil {
				test.prepare(server)
			}
			hosts := "server = '" + server.URL() + "'\n"
			files := map[string][]byte{}
			if test.opts.TLS || test.opts.ClientTLS {
				hosts += "ca = 'ca.pem'\n"
				files["ca.pem"] = server.CAPEM()
			}
			if test.opts.ClientTLS {
				hosts += "client = [['client.pem', 'client.key']]\n"
				files["client.pem"], files["client.key"] = clientPEM(t, server)
			}
			if err := node.WriteHostsTOML(server.Host(), hosts); err != nil {
				t.Fatal(err)
			}
			for name, content := range files {
				if err := os.WriteFile(filepath.Join(node.CertsDir, server.Host(), name), content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			args := []string{"images", "pull", "--hosts-dir=/etc/containerd/certs.d"}
			if test.user != "" {
				args = append(args, "--user="+test.user)
			}
			_, err = node.Ctr(t.Context(), append(args, server.Host()+"/team/app:1")...)
			if (err == nil) != (test.wrong == "") || err != nil && !strings.Contains(err.Error(), test.wrong) {
				t.Errorf("pull = %v, want %q", err, test.wrong)
			}
			for _, r := range server.Requests() {
				if r.Client != node.IP || !strings.HasPrefix(r.UserAgent, "containerd/") {
					t.Errorf("recorded as asked by %s of %s, want the node's containerd", r.UserAgent, r.Client)
				}
			}
		})
	}
}
