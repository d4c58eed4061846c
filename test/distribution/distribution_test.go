// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sluice-dev/sluice/test/distribution"
)

func TestParse(t *testing.T) {
	for path, want := range map[string]distribution.Target{
		"/v2/":                              {Kind: distribution.Ping},
		"/v2/app/manifests/1.0":             {Kind: distribution.Tag, Repository: "app", Reference: "1.0"},
		"/v2/a/b/c/manifests/sha256:1":      {Kind: distribution.Manifest, Repository: "a/b/c", Reference: "sha256:1"},
		"/v2/a/b/blobs/sha256:1":            {Kind: distribution.Blob, Repository: "a/b", Reference: "sha256:1"},
		"/v2/blobs/manifests/blobs/sha256:": {Kind: distribution.Blob, Repository: "blobs/manifests", Reference: "sha256:"}, // names may look like sections
		"/v2/app/tags/list":                 {Kind: distribution.Other},
		"/v2/manifests/1.0":                 {Kind: distribution.Other}, // no repository
		"/v2/app/manifests/":                {Kind: distribution.Other}, // no reference
		"/v2":                               {Kind: distribution.Other},
		"/":                                 {Kind: distribution.Other},
	} {
		if got := distribution.Parse(path); got != want {
			t.Errorf("Parse(%q) = %+v, want %+v", path, got, want)
		}
	}
}

func TestWriteError(t *testing.T) {
	const blob, tag = "/v2/app/blobs/sha256:1", "/v2/app/manifests/1.0"
	for _, test := range []struct {
		method, path string
		status       int
		want         string
	}{
		{"GET", blob, 404, "BLOB_UNKNOWN"},
		{"GET", tag, 404, "MANIFEST_UNKNOWN"},
		{"GET", tag, 401, "UNAUTHORIZED"},
		{"GET", blob, 403, "DENIED"},
		{"GET", blob, 429, "TOOMANYREQUESTS"},
		{"GET", blob, 500, "UNKNOWN"},
		{"HEAD", blob, 404, ""}, // a HEAD has no body, but its length
	} {
		w := httptest.NewRecorder()
		distribution.WriteError(w, httptest.NewRequest(test.method, test.path, http.NoBody), test.status, "why")
		body := w.Body.String()
		if w.Code != test.status || w.Header().Get("Content-Length") == "0" {
			t.Errorf("%s %s: %d, length %s", test.method, test.path, w.Code, w.Header().Get("Content-Length"))
		}
		if (body == "") != (test.want == "") || !strings.Contains(body, test.want) {
			t.Errorf("%s %s: body %q, want %s", test.method, test.path, body, test.want)
		}
	}
}
