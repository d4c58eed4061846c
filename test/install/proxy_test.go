// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package install_test

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

// startProxy starts a proxy at the gateway, whose URL it returns. It leads to one host, which is at the
// address, and forbids everything else.
func startProxy(host, address string) string {
	GinkgoHelper()
	listener, err := net.Listen("tcp", net.JoinHostPort(site.Cluster.GatewayIP, "0"))
	Expect(err).NotTo(HaveOccurred())
	proxy := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect || r.Host != host {
			http.Error(w, "it leads to "+host+" alone", http.StatusForbidden)
			return
		}
		server, err := net.Dial("tcp", address)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer func() { _ = server.Close() }()
		client, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer func() { _ = client.Close() }()
		tunnel(client, server)
	}))
	Expect(proxy.Listener.Close()).To(Succeed())
	proxy.Listener = listener
	proxy.Start()
	DeferCleanup(proxy.Close)
	return proxy.URL
}

// tunnel returns when either side has ended.
func tunnel(client, server net.Conn) {
	if _, err := io.WriteString(client, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	ended := make(chan struct{}, 2)
	for _, way := range []struct{ to, from net.Conn }{{client, server}, {server, client}} {
		go func() {
			_, _ = io.Copy(way.to, way.from)
			ended <- struct{}{}
		}()
	}
	<-ended
}
