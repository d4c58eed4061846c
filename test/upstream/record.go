// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sluice-dev/sluice/test/distribution"
)

// Token is the kind of a request for a bearer token.
const Token distribution.Kind = "token"

// Request is the record of one request.
type Request struct {
	Time       time.Time         `json:"time"`
	Client     string            `json:"client"` // address without port: the node
	UserAgent  string            `json:"userAgent"`
	Method     string            `json:"method"`
	Kind       distribution.Kind `json:"kind"`
	Repository string            `json:"repository,omitempty"`
	Reference  string            `json:"reference,omitempty"` // tag or digest, as asked
	// Digest, MediaType and Size are those of the content that the reference
	// names, whether it was sent or not; empty if there is none.
	Digest    string `json:"digest,omitempty"`
	MediaType string `json:"mediaType,omitempty"`
	Size      int64  `json:"size,omitempty"`
	// Status is 0 until there is an answer.
	Status int `json:"status"`
	// Offset is where the answer starts in the content, from a Range.
	Offset int64 `json:"offset,omitempty"`
	// Bytes of the body that were handed to the kernel. The client may have got
	// less, by what fits into a socket's buffers.
	Bytes int64 `json:"bytes"`
	// Done reports whether the server has finished the request; Complete, whether the
	// whole answer was sent, and was no error.
	Done     bool `json:"done"`
	Complete bool `json:"complete"`
	// End is when it finished.
	End time.Time `json:"end,omitzero"`
}

// Requests are in the order of their arrival.
type Requests []Request

// begin writes the request down as it arrives.
func (s *Server) begin(r *http.Request) *Request {
	target := distribution.Parse(r.URL.Path)
	if r.URL.Path == tokenPath {
		target.Kind = Token
	}
	request := &Request{
		Time:       time.Now(),
		Client:     hostOf(r.RemoteAddr),
		UserAgent:  r.UserAgent(),
		Method:     r.Method,
		Kind:       target.Kind,
		Repository: target.Repository,
		Reference:  target.Reference,
	}
	if blob, found := s.find(target); found {
		request.Digest, request.MediaType, request.Size = blob.Digest.String(), string(blob.MediaType), blob.Size
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, request)
	return request
}

// Requests returns what was recorded since the start or the last Reset.
func (s *Server) Requests() Requests {
	s.mu.Lock()
	defer s.mu.Unlock()
	requests := make(Requests, len(s.requests))
	for i, r := range s.requests {
		requests[i] = *r
	}
	return requests
}

// Reset forgets all requests and connections so far.
func (s *Server) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = nil
	clear(s.connections)
}

// Where returns the requests that all matches accept.
func (r Requests) Where(matches ...Match) Requests {
	match := All(matches...)
	return slices.DeleteFunc(slices.Clone(r), func(one Request) bool { return !match(one) })
}

// Clients returns the addresses that the requests came from, sorted.
func (r Requests) Clients() []string {
	clients := make([]string, 0, len(r))
	for _, one := range r {
		clients = append(clients, one.Client)
	}
	slices.Sort(clients)
	return slices.Compact(clients)
}

// Tally counts the requests for one piece of content.
type Tally struct {
	Digest     string   `json:"digest"`
	MediaType  string   `json:"mediaType"`
	Repository string   `json:"repository"` // the first that it was asked of
	Size       int64    `json:"size"`
	Heads      int      `json:"heads"`
	Complete   int      `json:"complete"` // GETs that sent it from the first byte to the last
	Partial    int      `json:"partial"`  // GETs that sent a part: broken off, by Range, or still running
	Refused    int      `json:"refused"`  // answered with an error, or not at all
	Bytes      int64    `json:"bytes"`
	Clients    []string `json:"clients"` // who sent a GET that was not refused
}

// Tallies counts per content, in the order of the first request for each.
func (r Requests) Tallies() []Tally {
	var tallies []Tally
	index := map[string]int{}
	for _, one := range r {
		if one.Digest == "" {
			continue
		}
		i, seen := index[one.Digest]
		if !seen {
			i = len(tallies)
			index[one.Digest] = i
			tallies = append(tallies, Tally{Digest: one.Digest, MediaType: one.MediaType, Repository: one.Repository, Size: one.Size})
		}
		tallies[i].add(one)
	}
	return tallies
}

func (t *Tally) add(r Request) {
	switch {
	case r.Status/100 != 2:
		t.Refused++
		return
	case r.Method == http.MethodHead:
		t.Heads++
		return
	case r.Complete && r.Bytes == t.Size:
		t.Complete++
	default:
		t.Partial++
	}
	t.Bytes += r.Bytes
	if at, found := slices.BinarySearch(t.Clients, r.Client); !found {
		t.Clients = slices.Insert(t.Clients, at, r.Client)
	}
}

// role says in a word what the content is to an image.
func (t *Tally) role() string {
	switch {
	case strings.Contains(t.MediaType, "index") || strings.Contains(t.MediaType, "manifest.list"):
		return "index"
	case strings.Contains(t.MediaType, "manifest"):
		return "manifest"
	case strings.Contains(t.MediaType, "config") || strings.Contains(t.MediaType, "container.image"):
		return "config"
	default:
		return "layer"
	}
}
