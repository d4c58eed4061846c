// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package peermirror

import (
	"context"
	"io"
	"iter"
	"net/http"
	"net/url"
	"time"
)

// search finds content at the peers, by asking all of them at once.
type search struct {
	peers     Peers
	timeout   time.Duration
	transport *http.Transport
}

// holders yields the peers that have what the request asks for, as they
// answer, until all have answered or the timeout is over.
func (s *search) holders(r *http.Request) iter.Seq[string] {
	probe := r.Clone(r.Context())
	probe.Method = http.MethodHead
	probe.Header.Del("Range")
	return s.ask(probe)
}

// collect returns at most so many peers that have what the request asks for:
// those that answer soon after the first.
func (s *search) collect(r *http.Request, most int) []string {
	const soon = 100 * time.Millisecond
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	var found []string
	for peer := range s.holders(r.WithContext(ctx)) {
		found = append(found, peer)
		if len(found) == most {
			break
		}
		if len(found) == 1 {
			defer time.AfterFunc(soon, cancel).Stop()
		}
	}
	return found
}

// reachable reports whether any peer is alive.
func (s *search) reachable(r *http.Request) bool {
	probe := r.Clone(r.Context())
	probe.Method = http.MethodGet
	probe.URL = &url.URL{Path: "/livez"}
	for range s.ask(probe) {
		return true
	}
	return false
}

// ask sends the probe to all peers at once and yields those that answer 200.
func (s *search) ask(probe *http.Request) iter.Seq[string] {
	return func(yield func(string) bool) {
		peers, err := s.peers()
		if err != nil {
			return // a mirror that cannot read its peers has none, as /readyz says
		}
		ctx, cancel := context.WithTimeout(probe.Context(), s.timeout)
		defer cancel()
		answers := make(chan string, len(peers)) // so that none waits to be heard
		for _, peer := range peers {
			go func() {
				response, err := s.send(ctx, probe, peer)
				if err != nil {
					answers <- ""
					return
				}
				response.Body.Close()
				if response.StatusCode != http.StatusOK {
					peer = ""
				}
				answers <- peer
			}()
		}
		for range peers {
			if peer := <-answers; peer != "" && !yield(peer) {
				return
			}
		}
	}
}

// send repeats a request to a peer.
func (s *search) send(ctx context.Context, r *http.Request, peer string) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, r.Method, peer+r.URL.RequestURI(), nil)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"Accept", "Range", "User-Agent"} {
		request.Header[name] = r.Header[name]
	}
	request.Header.Set(MirroredHeader, "true")
	return s.transport.RoundTrip(request)
}

// forward answers with what the peer answers. It reports false, and has
// written nothing, if the peer does not have it after all.
func (s *search) forward(w http.ResponseWriter, r *http.Request, peer string) bool {
	response, err := s.send(r.Context(), r, peer)
	if err != nil {
		return false
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK && response.StatusCode != http.StatusPartialContent {
		return false
	}
	for _, name := range []string{"Accept-Ranges", "Content-Length", "Content-Range", "Content-Type", "Docker-Content-Digest"} {
		if values := response.Header[name]; values != nil {
			w.Header()[name] = values
		}
	}
	w.WriteHeader(response.StatusCode)
	if _, err := io.Copy(w, response.Body); err != nil {
		panic(http.ErrAbortHandler) // the client must not take a part for the whole
	}
	return true
}
