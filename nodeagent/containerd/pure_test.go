// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sluice-dev/sluice/internal/imageref"
	"github.com/sluice-dev/sluice/nodeagent"
)

func TestAtLeast(t *testing.T) {
	for version, want := range map[string]bool{
		"v2.4.2": true, "2.1.0": true, "v2.1.0-rc.1": true, "v3.0.0": true, "2.2.1+dist-1": true,
		"v2.0.5": false, "1.7.27": false, "v1.6.0-debian": false,
		"":             true, // a custom build
		"deadbeef.m":   true,
		"v2.10.0-beta": true,
	} {
		if got := atLeast(version, minVersion); got != want {
			t.Errorf("atLeast(%q) = %v, want %v", version, got, want)
		}
	}
}

func TestMediaType(t *testing.T) {
	const index, manifest = "application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json"
	for _, tt := range []struct {
		reason, raw, served, want string
	}{
		{"the type that it states", `{"mediaType":"` + images.MediaTypeDockerSchema2Manifest + `"}`, manifest, images.MediaTypeDockerSchema2Manifest},
		{"otherwise the type that the server states", `{"manifests":[]}`, index, index},
		{"unless that is nonsense", `{"manifests":[]}`, "application/octet-stream", index},
		{"or nothing", `{"config":{}}`, "", manifest},
		{"neither manifest nor index", `{}`, "", ""},
		{"not JSON", "\x1f\x8b", manifest, ""},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			if got := mediaType([]byte(tt.raw), tt.served); got != tt.want {
				t.Errorf("mediaType(%q, %q) = %q, want %q", tt.raw, tt.served, got, tt.want)
			}
		})
	}
}

func TestBytesOfAnEarlierTryAreNotReceivedAgain(t *testing.T) {
	for _, tt := range []struct {
		reason     string
		unfinished []content.Status
		want       int64
	}{
		{"a blob from its beginning", nil, 80},
		{"a blob from where the last try stopped", []content.Status{{Ref: "layer-a", Offset: 50}, {Ref: "layer-b", Offset: 7}}, 30},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			m := newMeter(func(nodeagent.Progress) {})
			defer m.stop()
			track := newTracker(m, tt.unfinished)
			defer track.close()
			track.onEvent(transfer.Progress{Event: "downloading", Name: "layer-a", Progress: 50, Desc: &ocispec.Descriptor{Size: 100}})
			track.onEvent(transfer.Progress{Event: "downloading", Name: "layer-a", Progress: 80, Desc: &ocispec.Descriptor{Size: 100}})
			if got := m.pulledBytes(); got != tt.want {
				t.Errorf("%d bytes, want %d", got, tt.want)
			}
		})
	}
}

func TestMeterSaysWhenNothingIsLeftToReceive(t *testing.T) {
	var last nodeagent.Progress
	m := &meter{onProgress: func(p nodeagent.Progress) { last = p }}
	end := func() {}
	for _, step := range []struct {
		after string
		do    func()
		want  bool
	}{
		{"nothing is known of the image", func() { m.addBytes(1) }, false},
		{"its size is known while a blob is on the way", func() { end = m.beginTransfer(); m.setSize(10) }, false},
		{"the last blob is there", func() { end() }, true},
		{"the pull waits for another blob", func() { end = m.beginTransfer() }, false},
	} {
		step.do()
		m.notify()
		if last.Received != step.want {
			t.Errorf("after %s: %+v", step.after, last)
		}
	}
}

func TestClassify(t *testing.T) {
	status := func(code int) error {
		return fmt.Errorf("resolve: %w", remoteerrors.ErrUnexpectedStatus{StatusCode: code})
	}
	for _, tt := range []struct {
		reason     string
		err        error
		want       error
		unanswered bool
	}{
		{"401", status(401), nodeagent.ErrUnauthorized, false},
		{"403", status(403), nodeagent.ErrUnauthorized, false},
		{"a token that is refused", fmt.Errorf("pull access denied: %w", docker.ErrInvalidAuthorization), nodeagent.ErrUnauthorized, false},
		{"404", status(404), nodeagent.ErrImageNotFound, false},
		{"not found", fmt.Errorf("app: %w", errdefs.ErrNotFound), nodeagent.ErrImageNotFound, false},
		{"429 is temporary", status(429), nodeagent.ErrRegistryUnavailable, false},
		{"503 is temporary", status(503), nodeagent.ErrRegistryUnavailable, false},
		{"no answer", errors.New("dial tcp: connection refused"), nodeagent.ErrRegistryUnavailable, true},
		{"nobody may be asked", fmt.Errorf("no resolve hosts: %w", errdefs.ErrNotFound), nodeagent.ErrRegistryUnavailable, true},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			if got := classify(tt.err); !errors.Is(got, tt.want) || errors.Is(got, errUnreachable) != tt.unanswered {
				t.Errorf("classify(%v) = %v, want %v, without an answer %v", tt.err, got, tt.want, tt.unanswered)
			}
		})
	}
}

// A registry comes back in the middle of a question about a digest.
func TestARegistryThatComesBackHasNotSaidThatItHasNoSuchImage(t *testing.T) {
	ref, err := imageref.Parse("registry.test/team/app@" + digest.FromString("app").String())
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		reason    string
		manifests http.HandlerFunc
		want      error
	}{
		{"it hung up on the manifest", func(w http.ResponseWriter, _ *http.Request) {
			connection, _, _ := w.(http.Hijacker).Hijack()
			_ = connection.Close()
		}, errUnreachable},
		{"it has no such manifest", http.NotFound, nodeagent.ErrImageNotFound},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/manifests/") {
				tt.manifests(w, r)
				return
			}
			http.NotFound(w, r)
		}))
		t.Cleanup(server.Close)
		host := docker.RegistryHost{
			Client: server.Client(), Scheme: "http", Host: strings.TrimPrefix(server.URL, "http://"), Path: "/v2",
			Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
		}
		if _, err := (&Runtime{}).ask(t.Context(), host, ref); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.reason, err, tt.want)
		}
	}
}

func TestClassifyText(t *testing.T) {
	for text, want := range map[string]error{
		"failed to resolve image: unexpected status from HEAD request to https://r/v2/app/manifests/v1: 401 Unauthorized": nodeagent.ErrUnauthorized,
		"failed to resolve image: unexpected status from HEAD request to https://r/v2/app/manifests/v1: 403 ":             nodeagent.ErrUnauthorized,
		"failed to resolve image: unexpected status from HEAD request to https://r/v2/app/manifests/v1: 503 Busy":         nodeagent.ErrRegistryUnavailable,
		"failed to resolve image: dial tcp 10.0.0.1:4013: i/o timeout":                                                    nodeagent.ErrRegistryUnavailable,
		"schema 1 image manifests are no longer supported: invalid argument":                                              nodeagent.ErrImageInvalid,
		`media type "application/vnd.docker.distribution.manifest.v1+prettyjws" is no longer supported since containerd`:  nodeagent.ErrImageInvalid,
		"application/vnd.docker.distribution.manifest.v1+prettyjws not supported":                                         nodeagent.ErrImageInvalid,
	} {
		if got := classifyText(errors.New(text)); !errors.Is(got, want) {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
	for text, want := range map[string]error{
		"failed to resolve image: r/app:v1":         nodeagent.ErrImageNotFound,
		"failed to resolve image: no resolve hosts": nodeagent.ErrRegistryUnavailable,
		"lease does not exist":                      nodeagent.ErrRegistryUnavailable,
	} {
		if got := classifyText(fmt.Errorf("%s: %w", text, errdefs.ErrNotFound)); !errors.Is(got, want) {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
}

func TestIsSchema1(t *testing.T) {
	const begin, later = `{"schemaVersion": 1`, `{"schemaVersion": 2}`
	named := digest.FromString(begin + "}")
	signed := func(length int) string {
		header := fmt.Appendf(nil, `{"formatLength": %d, "formatTail": "fQ"}`, length)
		return fmt.Sprintf(`%s, "signatures": [{"protected": %q}]}`, begin, base64.RawURLEncoding.EncodeToString(header))
	}
	for _, tt := range []struct {
		reason, raw string
		named       digest.Digest
		want        bool
	}{
		{"without signatures", begin + "}", named, true},
		{"its digest is that of what was signed", signed(len(begin)), named, true},
		{"and not that of the whole", signed(len(begin)), digest.FromString(signed(len(begin))), false},
		{"another image", begin + `, "name": "other"}`, named, false},
		{"something else was signed", signed(3), named, false},
		{"more was signed than there is", signed(1000), named, false},
		{"less than nothing was signed", signed(-1), named, false},
		{"a header that is none", begin + `, "signatures": [{"protected": "!"}]}`, named, false},
		{"schema 2", later, digest.FromString(later), false},
		{"no JSON", "manifest", digest.FromString("manifest"), false},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			if got := isSchema1([]byte(tt.raw), tt.named); got != tt.want {
				t.Errorf("isSchema1(%s) = %v, want %v", tt.raw, got, tt.want)
			}
		})
	}
}

func TestOthersPinsStayTheirs(t *testing.T) {
	theirs := images.Image{Labels: map[string]string{managedLabel: managedValue, pinnedLabel: pinnedValue}}
	ours := images.Image{Labels: recordLabels(true)}
	if fields := changedFields(theirs, ours); len(fields) != 0 {
		t.Errorf("changes %q of a record that another client has pinned", fields)
	}
	if fields := changedFields(images.Image{}, ours); len(fields) != 3 {
		t.Errorf("changes %q of an empty record, want three labels", fields)
	}
	if fields := changedFields(ours, ours); len(fields) != 0 {
		t.Errorf("changes %q of what is right", fields)
	}
}
