// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"cmp"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/sluice-dev/sluice/test/distribution"
)

// ServeHTTP answers one request. In this order: it is written down, waits while
// the uplink hangs or is slow, meets the faults, shows its credentials, and
// gets its content.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.running.Add(1)
	defer s.running.Done()
	if strings.HasPrefix(r.URL.Path, AdminPath) {
		s.admin(w, r)
		return
	}
	request := s.begin(r)
	out := &response{ResponseWriter: w, server: s, request: request, ctx: r.Context()}
	defer out.finish()
	if err := s.delay(r.Context()); err != nil {
		panic(http.ErrAbortHandler) // the client is gone, or the server closes
	}
	out.effect = s.strike(request, r)
	if out.effect.action == answer {
		if out.effect.status == http.StatusUnauthorized {
			out.Header().Set("WWW-Authenticate", basicChallenge)
		}
		distribution.WriteError(out, r, out.effect.status, cmp.Or(out.effect.echoed, "injected fault"))
		return
	}
	if request.Kind == Token {
		s.token(out, r)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		distribution.WriteError(out, r, http.StatusMethodNotAllowed, "the registry is read-only")
		return
	}
	if status, challenge := s.authorize(r, request.Repository); status != http.StatusOK {
		if challenge != "" {
			out.Header().Set("WWW-Authenticate", challenge)
		}
		distribution.WriteError(out, r, status, http.StatusText(status))
		return
	}
	s.serve(out, r)
}

func (s *Server) serve(out *response, r *http.Request) {
	kind := out.request.Kind
	out.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if kind == distribution.Ping {
		out.WriteHeader(http.StatusOK)
		return
	}
	blob, found := s.find(distribution.Parse(r.URL.Path))
	if !found {
		distribution.WriteError(out, r, http.StatusNotFound, "no such content")
		return
	}
	if kind != distribution.Blob {
		r.Header.Del("Range") // registries do not cut manifests
	}
	out.Header().Set("Content-Type", string(blob.MediaType))
	if kind == distribution.Blob {
		out.Header().Set("Content-Type", "application/octet-stream")
	}
	out.Header().Set("Docker-Content-Digest", blob.Digest.String())
	content := &seeker{blob: blob}
	defer content.Close()
	http.ServeContent(out, r, "", time.Time{}, content)
}

func offsetOf(contentRange string) int64 {
	var offset int64
	_, _ = fmt.Sscanf(contentRange, "bytes %d-", &offset) // no range starts at 0
	return offset
}
