// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package peermirror_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// node is one node under test, with a mirror that knows the others.
type node interface {
	// url is the mirror's base.
	url() string
	// commit puts content into the node's store, with no image around it but the label of
	// its source, from the beginning.
	commit(t *testing.T, content string) digest.Digest
	// tag makes an image record.
	tag(t *testing.T, name string, target digest.Digest)
}

// environment is a kind of mirror that the suite runs on.
type environment struct {
	// start returns new nodes, peers of each other. They end with the test.
	start func(t *testing.T, n int) []node
	// patience lies between two requests for the same content: 5 s and more
	// where a request that comes sooner is missed for that alone.
	patience time.Duration
}

const (
	registryName   = "registry.example"
	repositoryName = "team/app"

	repository = "/v2/" + repositoryName
	namespace  = "?ns=" + registryName
	image      = registryName + "/" + repositoryName + ":"
	manifest   = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[],"annotations":{"of":%q}}`
)

// conformance is what Sluice relies on in a mirror.
func conformance(t *testing.T, env environment) {
	nodes := env.start(t, 3)
	holder, other := nodes[0], nodes[1]
	blobPath := func(d digest.Digest) string { return repository + "/blobs/" + d.String() + namespace }
	manifestPath := func(reference string) string { return repository + "/manifests/" + reference + namespace }

	t.Run("is a registry", func(t *testing.T) {
		t.Parallel()
		if got := ask(t, "GET", other, "/v2/"); got.status != 200 {
			t.Errorf("GET /v2/ = %d", got.status)
		}
	})
	t.Run("is alive, and ready once it knows a peer", func(t *testing.T) {
		t.Parallel()
		env.eventually(t, "GET", other, "/readyz", 200)
		if got := ask(t, "GET", other, "/livez"); got.status != 200 {
			t.Errorf("GET /livez = %d", got.status)
		}
	})
	t.Run("serves a blob of a peer before its image is complete", func(t *testing.T) {
		t.Parallel()
		content := "a layer of an image that is still being pulled"
		d := holder.commit(t, content)
		got := env.eventually(t, "GET", other, blobPath(d), 200)
		got.want(t, content, "Docker-Content-Digest: "+d.String(), "Accept-Ranges: bytes", fmt.Sprint("Content-Length: ", len(content)))
	})
	t.Run("serves a blob of its own node", func(t *testing.T) {
		t.Parallel()
		d := holder.commit(t, "a layer of the node's own")
		env.eventually(t, "GET", holder, blobPath(d), 200).want(t, "a layer of the node's own")
	})
	t.Run("answers HEAD without a body", func(t *testing.T) {
		t.Parallel()
		d := holder.commit(t, "a layer to look at")
		env.eventually(t, "HEAD", other, blobPath(d), 200).want(t, "", "Content-Length: 18")
	})
	t.Run("serves a range of a blob", func(t *testing.T) {
		t.Parallel()
		d := holder.commit(t, "abcdefghij") // a number would be JSON, of which Spegel serves objects alone
		env.eventually(t, "GET", other, blobPath(d), 206, "Range: bytes=4-").want(t, "efghij", "Content-Range: bytes 4-9/10")
	})
	t.Run("serves a manifest by digest before the tag", func(t *testing.T) {
		t.Parallel()
		content := fmt.Sprintf(manifest, "early")
		d := holder.commit(t, content)
		got := env.eventually(t, "GET", other, manifestPath(d.String()), 200)
		got.want(t, content, "Content-Type: application/vnd.oci.image.manifest.v1+json", "Docker-Content-Digest: "+d.String())
		if got := ask(t, "GET", other, manifestPath("early")); got.status != 404 {
			t.Errorf("the tag is served without an image record: %d", got.status)
		}
	})
	t.Run("serves a tag once there is an image record", func(t *testing.T) {
		t.Parallel()
		content := fmt.Sprintf(manifest, "tagged")
		d := holder.commit(t, content)
		holder.tag(t, image+"tagged", d)
		env.eventually(t, "GET", other, manifestPath("tagged"), 200).want(t, content, "Docker-Content-Digest: "+d.String())
	})
	t.Run("serves no range of a manifest", func(t *testing.T) {
		t.Parallel()
		content := fmt.Sprintf(manifest, "whole")
		d := holder.commit(t, content)
		env.eventually(t, "GET", other, manifestPath(d.String()), 200, "Range: bytes=4-").want(t, content)
	})
	t.Run("tells registries apart", func(t *testing.T) {
		t.Parallel()
		d := holder.commit(t, fmt.Sprintf(manifest, "apart"))
		holder.tag(t, image+"apart", d)
		env.eventually(t, "GET", other, manifestPath("apart"), 200)
		if got := ask(t, "GET", other, repository+"/manifests/apart?ns=elsewhere.example"); got.status != 404 {
			t.Errorf("a tag of another registry is served: %d", got.status)
		}
	})
	t.Run("needs to be told the registry", func(t *testing.T) {
		t.Parallel()
		d := holder.commit(t, "a layer of no registry")
		if got := ask(t, "GET", holder, repository+"/blobs/"+d.String()); got.status != 404 {
			t.Errorf("GET without ns = %d", got.status)
		}
	})
	t.Run("says what it misses", func(t *testing.T) {
		t.Parallel()
		absent := digest.FromString("held by nobody")
		got := ask(t, "GET", other, blobPath(absent))
		if got.status != 404 || !strings.Contains(got.body, "BLOB_UNKNOWN") {
			t.Errorf("blob: %d %s", got.status, got.body)
		}
		got = ask(t, "GET", other, manifestPath(digest.FromString("nor this").String()))
		if got.status != 404 || !strings.Contains(got.body, "MANIFEST_UNKNOWN") {
			t.Errorf("manifest: %d %s", got.status, got.body)
		}
	})
	t.Run("a miss is temporary", func(t *testing.T) {
		t.Parallel()
		const content = "a layer that comes later"
		path := blobPath(digest.FromString(content))
		if got := ask(t, "GET", other, path); got.status != 404 {
			t.Fatalf("GET = %d", got.status)
		}
		holder.commit(t, content)
		env.eventually(t, "GET", other, path, 200).want(t, content)
	})
	t.Run("answers a peer from its own node alone", func(t *testing.T) {
		t.Parallel()
		d := holder.commit(t, "a layer of one node")
		env.eventually(t, "GET", holder, blobPath(d), 200, "X-Spegel-Mirrored: true").want(t, "a layer of one node")
		if got := ask(t, "GET", other, blobPath(d), "X-Spegel-Mirrored: true"); got.status == 200 {
			t.Error("a peer's request was passed on")
		}
	})
	t.Run("serves what several have", func(t *testing.T) {
		t.Parallel()
		d := holder.commit(t, "a layer of two nodes")
		nodes[2].commit(t, "a layer of two nodes")
		env.eventually(t, "GET", other, blobPath(d), 200).want(t, "a layer of two nodes")
	})
}

type answer struct {
	status int
	header http.Header
	body   string
}

// ask sends one request. Headers are "Name: value".
func ask(t *testing.T, method string, n node, path string, headers ...string) answer {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, n.url()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		request.Header.Set(name, value)
	}
	response, err := browser.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{response.StatusCode, response.Header, string(body)}
}

var browser = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}

// eventually asks, patiently, until the answer has the status.
func (env environment) eventually(t *testing.T, method string, n node, path string, status int, headers ...string) answer {
	t.Helper()
	deadline := time.After(10*time.Second + 5*env.patience)
	for {
		got := ask(t, method, n, path, headers...)
		if got.status == status {
			return got
		}
		select {
		case <-time.After(env.patience):
		case <-deadline:
			t.Fatalf("%s %s = %d %s, want %d", method, path, got.status, got.body, status)
		}
	}
}

func (a answer) want(t *testing.T, body string, headers ...string) {
	t.Helper()
	if a.body != body {
		t.Errorf("body %q, want %q", a.body, body)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if got := a.header.Get(name); got != value {
			t.Errorf("%s = %q, want %q", name, got, value)
		}
	}
}
