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

// maxRequestIDs keeps the request IDs of an entry within the 2048 characters that the API allows.
// Prefetches beyond it ask once the others have their answer.
const maxRequestIDs = 200

// newRequestID is the mark by which one prefetch recognizes the answers about its tags. It changes
// with the prefetch's generation and refresh, so that an image that is listed again is asked for
// again; what the prefetch has recorded an answer for is not (hasRecordedAnswer).
func newRequestID(uid string, generation int64, refresh string) string {
	h := fnv.New32a()
	_, _ = fmt.Fprintf(h, "%s\x00%d\x00%s", uid, generation, refresh) // a hash does not fail
	return fmt.Sprintf("%08x", h.Sum32())
}

// resolveDigests finds, for each image, the digest as far as it is known, the prefetches that know
// it, and the request IDs of those that have yet to ask.
func (pl *planner) resolveDigests() {
	for _, im := range pl.images {
		im.asked = make(map[*node]bool)
		if asking := im.resolveDigest(); len(asking) > 0 {
			pl.readNodes(im, asking)
		}
	}
}

// resolveDigest leaves over the prefetches that go by what the nodes have.
func (im *image) resolveDigest() (asking []*prefetch) {
	if digest := digestIn(im.name); digest != "" {
		im.digest = digest
		for _, pf := range im.prefetches {
			im.resolved[pf] = true
		}
		return nil
	}
	im.requestIDs = make(map[string]bool, len(im.prefetches))
	for _, pf := range im.prefetches {
		im.requestIDs[pf.requestID] = true
		im.resolved[pf] = im.hasRecordedAnswer(pf)
	}
	newest, answered := im.readAnswers()
	for _, pf := range im.prefetches {
		im.resolved[pf] = im.resolved[pf] || answered[pf.requestID]
		switch {
		case im.resolved[pf] || len(pf.targets.desired) == 0:
		case pf.goesByNodes(im.name):
			asking = append(asking, pf)
		default:
			im.openRequestIDs = append(im.openRequestIDs, pf.requestID)
		}
	}
	slices.Sort(im.openRequestIDs)
	im.openRequestIDs = slices.Compact(im.openRequestIDs)
	im.digest = cmp.Or(newest, im.recordedDigest())
	return asking
}

// hasRecordedAnswer reports whether the prefetch's status has the answer for its present refresh.
// Without a refresh any answer counts: a manifest that is applied again may drop the annotation. No
// other change of its spec makes it ask again: in an outage of the registry that would make the
// outage worse. The status forgets an image that the spec no longer lists.
func (im *image) hasRecordedAnswer(pf *prefetch) bool {
	record := pf.Resolved[im.name]
	return record.Digest != "" && (pf.Refresh == "" || record.Refresh == pf.Refresh)
}

// readAnswers reads what agents answered: the newest digest, and the request IDs that are answered.
// The agent whose spec still has request IDs is the last that was asked. The answers of others
// count only for the request IDs of prefetches that have not recorded one.
func (im *image) readAnswers() (newest string, answered map[string]bool) {
	answered = make(map[string]bool)
	unrecorded := make(map[string]bool)
	for _, pf := range im.prefetches {
		if !im.hasRecordedAnswer(pf) {
			unrecorded[pf.requestID] = true
		}
	}
	best := 0
	for _, e := range im.entries {
		if e.Status == nil || e.Status.Digest == "" {
			continue
		}
		rank := 0
		for _, id := range splitRequestIDs(e.Status.Request) {
			if !im.requestIDs[id] {
				continue
			}
			answered[id] = true
			if e.Wanted != nil && e.Wanted.Request != "" {
				rank += len(im.requestIDs) + 1
			} else if unrecorded[id] {
				rank++
			}
		}
		if rank > best {
			newest, best = e.Status.Digest, rank
		}
	}
	return newest, answered
}

// recordedDigest is the digest in the status of the prefetches that have recorded the answer. If
// they disagree, as after a crash between two writes, it is the digest that most specs ask for, or
// that of the first prefetch.
func (im *image) recordedDigest() string {
	var digests []string
	for _, pf := range im.prefetches {
		if digest := pf.Resolved[im.name].Digest; im.hasRecordedAnswer(pf) && !slices.Contains(digests, digest) {
			digests = append(digests, digest)
		}
	}
	if len(digests) < 2 {
		return strings.Join(digests, "")
	}
	specs := make(map[string]int)
	for _, e := range im.entries {
		if e.Wanted != nil {
			specs[e.Wanted.Digest]++
		}
	}
	return slices.MaxFunc(digests, func(a, b string) int { return cmp.Compare(specs[a], specs[b]) })
}

// nextRequestIDs are those for the resolver, given its entry: the open ones, and those that the
// entry has already, as long as some prefetch uses them.
func (im *image) nextRequestIDs(before *v1alpha1.NodeImage) string {
	ids := slices.Clone(im.openRequestIDs[:min(len(im.openRequestIDs), maxRequestIDs)])
	if before != nil {
		had := splitRequestIDs(before.Request)
		if containsAll(had, ids) {
			return before.Request // a shorter list would only make the node ask again
		}
		for _, id := range had {
			if im.requestIDs[id] && len(ids) < maxRequestIDs {
				ids = append(ids, id)
			}
		}
	}
	slices.Sort(ids)
	return strings.Join(slices.Compact(ids), ",")
}

func splitRequestIDs(joined string) []string {
	if joined == "" {
		return nil
	}
	return strings.Split(joined, ",")
}

func containsAll(set, subset []string) bool {
	return !slices.ContainsFunc(subset, func(s string) bool { return !slices.Contains(set, s) })
}

// digestIn is the digest in a normalized name, or empty.
func digestIn(name string) string {
	_, digest, _ := strings.Cut(name, "@")
	return digest
}

// byDigest is the name of the image with that digest, which the kubelet lists beside a tag.
func byDigest(name, digest string) string {
	if strings.Contains(name, "@") {
		return name
	}
	if colon := strings.LastIndexByte(name, ':'); colon > strings.LastIndexByte(name, '/') {
		name = name[:colon]
	}
	return name + "@" + digest
}
