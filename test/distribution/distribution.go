// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package distribution has what test registries share: the paths of the pull
// half of the OCI distribution API, and its error bodies.
package distribution

import (
	"encoding/json"
	"net/http"
	"path"
	"strconv"
	"strings"
)

// Kind is what a request asks for.
type Kind string

// Kinds of requests.
const (
	Ping     Kind = "ping"     // is this a registry?
	Tag      Kind = "tag"      // a manifest or index by tag
	Manifest Kind = "manifest" // a manifest or index by digest
	Blob     Kind = "blob"     // a config or a layer
	Other    Kind = "other"    // nothing that can be pulled
)

// Target is what a path names.
type Target struct {
	Kind       Kind
	Repository string
	Reference  string // tag or digest
}

// Parse reads a URL's path.
func Parse(urlPath string) Target {
	rest, isV2 := strings.CutPrefix(urlPath, "/v2/")
	if !isV2 {
		return Target{Kind: Other}
	}
	if rest == "" {
		return Target{Kind: Ping}
	}
	dir, reference := path.Split(rest)
	repository, section := path.Split(strings.TrimSuffix(dir, "/"))
	target := Target{Repository: strings.TrimSuffix(repository, "/"), Reference: reference}
	switch {
	case target.Repository == "" || reference == "":
		return Target{Kind: Other}
	case section == "blobs":
		target.Kind = Blob
	case section == "manifests" && strings.Contains(reference, ":"):
		target.Kind = Manifest
	case section == "manifests":
		target.Kind = Tag
	default:
		return Target{Kind: Other}
	}
	return target
}

// WriteError answers with the status, and the error code of the specification
// that goes with it.
func WriteError(w http.ResponseWriter, r *http.Request, status int, message string) {
	body, err := json.Marshal(map[string]any{"errors": []map[string]string{
		{"code": code(status, Parse(r.URL.Path).Kind), "message": message},
	}})
	if err != nil {
		panic(err) // strings always marshal
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body)
	}
}

func code(status int, kind Kind) string {
	switch {
	case status == http.StatusUnauthorized:
		return "UNAUTHORIZED"
	case status == http.StatusForbidden:
		return "DENIED"
	case status == http.StatusTooManyRequests:
		return "TOOMANYREQUESTS"
	case status == http.StatusNotFound && kind == Blob:
		return "BLOB_UNKNOWN"
	case status == http.StatusNotFound:
		return "MANIFEST_UNKNOWN"
	default:
		return "UNKNOWN"
	}
}
