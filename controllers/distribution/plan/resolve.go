// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// maxRequestIDs keeps a request within the 2048 characters that the API allows; whoever
// finds no room asks once these are answered.
const maxRequestIDs = 200

// newRequestID is how one prefetch asks for its tags, once per generation and refresh.
func newRequestID(uid, resolution string) string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(uid + "\x00" + resolution)) // a hash does not fail
	return fmt.Sprintf("%08x", h.Sum32())
}

func splitRequest(request string) []string {
	if request == "" {
		return nil
	}
	return strings.Split(request, ",")
}

// resolveDigest finds the digest of an image as far as it is known, who knows it, and who
// has still to ask.
func (d *planner) resolveDigest(im *image) {
	if digest := digestIn(im.name); digest != "" {
		im.digest = digest
		for _, p := range im.prefetches {
			im.resolved[p] = true
		}
		return
	}
	im.requestIDs = make(map[string]bool, len(im.prefetches))
	for _, p := range im.prefetches {
		im.requestIDs[p.requestID] = true
		im.resolved[p] = im.hasRecordedAnswer(p)
	}
	newest, answered := im.readAnswers()
	for _, p := range im.prefetches {
		im.resolved[p] = im.resolved[p] || answered[p.requestID]
		if !im.resolved[p] && len(p.targets.desired) > 0 {
			im.openRequestIDs = append(im.openRequestIDs, p.requestID)
		}
	}
	slices.Sort(im.openRequestIDs)
	im.openRequestIDs = slices.Compact(im.openRequestIDs)
	im.digest = cmp.Or(newest, im.recordedDigest())
}

// hasRecordedAnswer says that the prefetch's status has the answer to its present question.
func (im *image) hasRecordedAnswer(p *prefetch) bool {
	record := p.Resolved[im.name]
	return record.Digest != "" && record.For == p.Resolution
}

// readAnswers reads what agents answered: the newest digest, and the marks that have one.
// The one whose spec still carries the request is the last who was asked. Others
// count only for questions whose answer nobody has recorded.
func (im *image) readAnswers() (newest string, answered map[string]bool) {
	answered = make(map[string]bool)
	open := make(map[string]bool)
	for _, p := range im.prefetches {
		if !im.hasRecordedAnswer(p) {
			open[p.requestID] = true
		}
	}
	best := 0
	for _, f := range im.entries {
		status := f.entry.Status
		if status == nil || status.Digest == "" {
			continue
		}
		rank := 0
		for _, mark := range splitRequest(status.Request) {
			if !im.requestIDs[mark] {
				continue
			}
			answered[mark] = true
			if f.entry.Wanted != nil && f.entry.Wanted.Request != "" {
				rank += len(im.requestIDs) + 1
			} else if open[mark] {
				rank++
			}
		}
		if rank > best {
			newest, best = status.Digest, rank
		}
	}
	return newest, answered
}

// recordedDigest is the digest in the status of the prefetches that have been told. Should they
// disagree, as after a crash between two writes, the digest that most nodes are
// asked for stands, and else that of the first prefetch.
func (im *image) recordedDigest() string {
	var digests []string
	for _, p := range im.prefetches {
		if digest := p.Resolved[im.name].Digest; im.hasRecordedAnswer(p) && !slices.Contains(digests, digest) {
			digests = append(digests, digest)
		}
	}
	if len(digests) < 2 {
		return strings.Join(digests, "")
	}
	asked := make(map[string]int)
	for _, f := range im.entries {
		if f.entry.Wanted != nil {
			asked[f.entry.Wanted.Digest]++
		}
	}
	return slices.MaxFunc(digests, func(a, b string) int { return cmp.Compare(asked[a], asked[b]) })
}

// nextRequest is what the resolver is to be asked: the open marks, and those that it has
// been asked already as long as somebody still uses them.
func (im *image) nextRequest(before *v1alpha1.NodeImage) string {
	marks := slices.Clone(im.openRequestIDs[:min(len(im.openRequestIDs), maxRequestIDs)])
	if before != nil {
		had := splitRequest(before.Request)
		if containsAll(had, marks) {
			return before.Request // a shorter list would only make the node ask again
		}
		for _, mark := range had {
			if im.requestIDs[mark] && len(marks) < maxRequestIDs {
				marks = append(marks, mark)
			}
		}
	}
	slices.Sort(marks)
	return strings.Join(slices.Compact(marks), ",")
}

func containsAll(set, subset []string) bool {
	return !slices.ContainsFunc(subset, func(s string) bool { return !slices.Contains(set, s) })
}

// digestIn is the digest in a normalized name, if it names one.
func digestIn(name string) string {
	_, digest, _ := strings.Cut(name, "@")
	return digest
}

// byDigest is the name of the image with that digest: what the kubelet lists beside a tag.
func byDigest(name, digest string) string {
	if strings.Contains(name, "@") {
		return name
	}
	if colon := strings.LastIndexByte(name, ':'); colon > strings.LastIndexByte(name, '/') {
		name = name[:colon]
	}
	return name + "@" + digest
}
