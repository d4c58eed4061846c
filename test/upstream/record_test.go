// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sluice-dev/sluice/test/distribution"
	"github.com/sluice-dev/sluice/test/upstream"
)

func TestRequestsAreRecorded(t *testing.T) {
	f := start(t, upstream.Options{})
	digest, _ := f.image.Digest()
	raw, _ := f.image.RawManifest()
	size, _ := must(t, f.image)[0].Size()
	f.client.Transport = agent{f.client.Transport, "containerd/2.4.2"}
	for _, ask := range [][]string{
		{"HEAD", f.manifest()},
		{"GET", "/v2/team/app/manifests/" + digest.String()},
		{"GET", f.blob(), "Range: bytes=1000-"},
		{"GET", "/v2/team/app/blobs/sha256:none"},
		{"GET", "/v2/"},
		{"GET", "/favicon.ico"},
		{"GET", "/token"},
	} {
		response, err := f.do(ask[0], ask[1], ask[2:]...)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, response.Body); err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
	}
	const oci = "application/vnd.oci.image."
	want := upstream.Requests{
		{
			Method: "HEAD", Kind: distribution.Tag, Repository: "team/app", Reference: "1.0",
			Digest: digest.String(), MediaType: oci + "manifest.v1+json", Size: int64(len(raw)),
			Status: 200, Complete: true,
		},
		{
			Method: "GET", Kind: distribution.Manifest, Repository: "team/app", Reference: digest.String(),
			Digest: digest.String(), MediaType: oci + "manifest.v1+json", Size: int64(len(raw)),
			Status: 200, Bytes: int64(len(raw)), Complete: true,
		},
		{
			Method: "GET", Kind: distribution.Blob, Repository: "team/app", Reference: f.layer,
			Digest: f.layer, MediaType: oci + "layer.v1.tar+gzip", Size: size,
			Status: 206, Offset: 1000, Bytes: size - 1000, Complete: true,
		},
		{Method: "GET", Kind: distribution.Blob, Repository: "team/app", Reference: "sha256:none", Status: 404},
		{Method: "GET", Kind: distribution.Ping, Status: 200, Complete: true},
		{Method: "GET", Kind: distribution.Other, Status: 404},
		{Method: "GET", Kind: upstream.Token, Status: 200, Complete: true},
	}
	for i := range want {
		want[i].Client, want[i].UserAgent, want[i].Done = "127.0.0.1", "containerd/2.4.2", true
		if want[i].Digest == "" {
			want[i].Bytes = f.settled()[i].Bytes // an error's text, or a token
		}
	}
	got := f.settled()
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(upstream.Request{}, "Time", "End")); diff != "" {
		t.Errorf("recorded (-want +got):\n%s", diff)
	}
	if !slices.IsSortedFunc(got, func(a, b upstream.Request) int { return a.Time.Compare(b.Time) }) {
		t.Error("records are not in the order of arrival")
	}
	f.Reset()
	if n := len(f.Requests()); n != 0 {
		t.Errorf("%d records after a reset", n)
	}
}

func TestTallies(t *testing.T) {
	const config, layer = "sha256:c", "sha256:l"
	get := func(client, digest string, status int, bytes int64, complete bool) upstream.Request {
		return upstream.Request{Client: client, Method: "GET", Digest: digest, Size: 100, Status: status, Bytes: bytes, Complete: complete, Done: true}
	}
	head := get("10.0.0.3", layer, 200, 0, true)
	head.Method = "HEAD"
	got := upstream.Requests{
		head,
		get("10.0.0.2", layer, 200, 40, false), // broken off
		get("10.0.0.2", layer, 206, 60, true),  // and resumed
		get("10.0.0.2", config, 200, 100, true),
		get("10.0.0.1", layer, 200, 100, true),
		get("10.0.0.4", layer, 404, 0, false),
		get("10.0.0.4", layer, 0, 0, false), // never answered
		get("10.0.0.4", "", 404, 0, false),  // names nothing
	}.Tallies()
	want := []upstream.Tally{
		{Digest: layer, Size: 100, Heads: 1, Complete: 1, Partial: 2, Refused: 2, Bytes: 200, Clients: []string{"10.0.0.1", "10.0.0.2"}},
		{Digest: config, Size: 100, Complete: 1, Bytes: 100, Clients: []string{"10.0.0.2"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("tallies (-want +got):\n%s", diff)
	}
}

func TestReport(t *testing.T) {
	requests := upstream.Requests{
		{
			Client: "10.0.0.1", Method: "GET", Digest: "sha256:0123456789abcdef", MediaType: "application/vnd.oci.image.layer.v1.tar+gzip",
			Size: 3 << 20, Status: 200, Bytes: 3 << 20, Complete: true,
		},
		{Client: "10.0.0.2", Method: "GET", Digest: "sha256:0123456789abcdef", Size: 3 << 20, Status: 200, Bytes: 1536, Done: true},
		{Client: "10.0.0.2", Method: "HEAD", Digest: "sha256:fedcba9876543210", MediaType: "application/vnd.oci.image.index.v1+json", Size: 512, Status: 200},
	}
	var out strings.Builder
	if err := requests.Report(&out, map[string]string{"10.0.0.1": "node-1"}); err != nil {
		t.Fatal(err)
	}
	want := strings.TrimLeft(`
CONTENT  DIGEST        SIZE     FETCHED  IN PART  BYTES SENT  BY
layer    0123456789ab  3.0 MiB  1        1        3.0 MiB     node-1 10.0.0.2
index    fedcba987654  512 B    0        0        0 B         
3.0 MiB sent for 3.0 MiB of content, in 3 requests by 2 clients
`, "\n")
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
}

// Whoever connects is counted, also when no request comes of it: that is how a
// test sees a client that tried TLS on a plain port.
func TestConnectionsAreCounted(t *testing.T) {
	f := start(t, upstream.Options{})
	conn, err := net.Dial("tcp", f.Host())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("\x16\x03\x01\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(conn); err != nil { // until the server has had enough
		t.Fatal(err)
	}
	conn.Close()
	if n := f.Connections()["127.0.0.1"]; n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
	if n := len(f.Requests()); n != 0 {
		t.Errorf("%d requests, want none", n)
	}
}

func TestAdmin(t *testing.T) {
	f := start(t, upstream.Options{})
	f.wantStatus(200, f.blob())
	f.Inject(upstream.Any, 0, upstream.Answer(500))
	f.Protect("", &upstream.Auth{})
	want := f.settled()
	got, err := upstream.Read(t.Context(), f.client, f.URL())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateApproxTime(0)); diff != "" {
		t.Errorf("over HTTP (-want +got):\n%s", diff)
	}
	if _, body, _ := f.get(upstream.AdminPath + "report"); !strings.Contains(string(body), f.layer[7:19]) {
		t.Errorf("report = %s", body)
	}
	response, err := f.do(http.MethodPost, upstream.AdminPath+"reset")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if n := len(f.Requests()); n != 0 {
		t.Errorf("%d records after a reset", n)
	}
	f.wantStatus(404, upstream.AdminPath+"other")
}

type agent struct {
	http.RoundTripper
	name string
}

func (a agent) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("User-Agent", a.name)
	return a.RoundTripper.RoundTrip(r)
}
