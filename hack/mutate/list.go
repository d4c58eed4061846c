// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// list has the mutants that may survive.
type list []place

// parse reads the list, of which each entry must give a reason.
func parse(content []byte) (list, error) {
	var entries []struct {
		place  `json:",inline"`
		Reason string `json:"reason"`
	}
	if err := yaml.UnmarshalStrict(content, &entries); err != nil {
		return nil, err
	}
	var all list
	for _, entry := range entries {
		if strings.TrimSpace(entry.Reason) == "" {
			return nil, fmt.Errorf("no reason for\n%s", entry.place)
		}
		all = append(all, entry.place)
	}
	return all, nil
}

// in returns what is listed of a package.
func (l list) in(folder string) expected {
	e := make(expected)
	for _, p := range l {
		if path.Dir(p.File) == path.Clean(folder) {
			e[p]++
		}
	}
	return e
}

// expected counts the survivors to come: lines that read the same in one function count each.
type expected map[place]int

// take reports whether a survivor was expected, and expects it no longer.
func (e expected) take(p place) bool {
	if e[p] == 0 {
		return false
	}
	e[p]--
	return true
}

// left returns those that did not come.
func (e expected) left() []place {
	var all []place
	for p, n := range e {
		all = append(all, slices.Repeat([]place{p}, n)...)
	}
	slices.SortFunc(all, func(a, b place) int { return strings.Compare(a.String(), b.String()) })
	return all
}
