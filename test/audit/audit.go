// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package audit counts what a program costs the API server. The API server's own audit log is the
// source, not what the program says.
package audit

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

// Write is one request to change an object. It may have failed: a conflict costs as much.
type Write struct {
	Time time.Time
	User string
	Verb string
	// Resource is "resource" or "resource/subresource".
	Resource  string
	Namespace string
	Name      string
	Status    int
	// Object is what became of the object, if the log tells that of its kind.
	Object json.RawMessage
}

// Writes are in the order of the log.
type Writes []Write

// Match picks writes.
type Match func(Write) bool

// event is what we read of a line of the log, audit.k8s.io/v1.
type event struct {
	Stage string `json:"stage"`
	Verb  string `json:"verb"`
	User  struct {
		Username string `json:"username"`
	} `json:"user"`
	ObjectRef struct {
		Resource    string `json:"resource"`
		Subresource string `json:"subresource"`
		Namespace   string `json:"namespace"`
		Name        string `json:"name"`
	} `json:"objectRef"`
	ResponseStatus struct {
		Code int `json:"code"`
	} `json:"responseStatus"`
	ResponseObject json.RawMessage `json:"responseObject"`
	ReceivedAt     time.Time       `json:"requestReceivedTimestamp"`
}

// Read returns the writes in a log. A last line that is not written to its end yet is
// left out.
func Read(file string) (Writes, error) {
	log, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	return read(log)
}

func read(log io.Reader) (Writes, error) {
	var writes Writes
	for lines := bufio.NewReader(log); ; {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return writes, nil
		}
		if err != nil {
			return nil, err
		}
		var e event
		if err := json.Unmarshal(bytes.TrimSpace(line), &e); err != nil {
			return nil, fmt.Errorf("read audit log: %w", err)
		}
		if e.Stage == "ResponseComplete" && changing(e.Verb) {
			writes = append(writes, e.write())
		}
	}
}

func changing(verb string) bool {
	switch verb {
	case "create", "update", "patch", "delete", "deletecollection":
		return true
	}
	return false
}

func (e *event) write() Write {
	w := Write{
		Time: e.ReceivedAt, User: e.User.Username, Verb: e.Verb,
		Resource: e.ObjectRef.Resource, Namespace: e.ObjectRef.Namespace, Name: e.ObjectRef.Name,
		Status: e.ResponseStatus.Code, Object: e.ResponseObject,
	}
	if e.ObjectRef.Subresource != "" {
		w.Resource += "/" + e.ObjectRef.Subresource
	}
	return w
}

// Where returns the writes that all matches accept.
func (w Writes) Where(matches ...Match) Writes {
	return slices.DeleteFunc(slices.Clone(w), func(one Write) bool {
		return slices.ContainsFunc(matches, func(match Match) bool { return !match(one) })
	})
}

// By picks what the service accounts of a namespace wrote.
func By(namespace string) Match {
	return func(w Write) bool { return strings.HasPrefix(w.User, "system:serviceaccount:"+namespace+":") }
}

// After picks what was received after a time.
func After(t time.Time) Match {
	return func(w Write) bool { return w.Time.After(t) }
}

// Distributing picks the writes that the distribution of images causes. Leases are renewed in any
// case, and reviews store nothing.
func Distributing(w Write) bool {
	switch w.Resource {
	case "leases", "tokenreviews", "subjectaccessreviews":
		return false
	}
	return true
}

// Report counts the writes by account, verb and resource, one line each.
func (w Writes) Report() string {
	counts := map[string]int{}
	for _, one := range w {
		_, user, found := strings.Cut(one.User, "system:serviceaccount:")
		if !found {
			user = one.User
		}
		counts[fmt.Sprintf("%s %s by %s", one.Verb, one.Resource, user)]++
	}
	var report strings.Builder
	for _, what := range slices.Sorted(maps.Keys(counts)) {
		fmt.Fprintf(&report, "%4d %s\n", counts[what], what)
	}
	return report.String()
}
