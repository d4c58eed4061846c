// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/imageprefetch"
	"github.com/sluice-dev/sluice/internal/imageref"
)

// resolve finds the digests that count for each image of a template. Where the prefetch that the
// workload names lists a tag, its digest alone does: another may have an older one, from before a
// refresh.
func resolve(images TemplateImages, named *v1alpha1.ImagePrefetch, prefetches []*v1alpha1.ImagePrefetch) []wantedImage {
	wanted := make([]wantedImage, 0, len(images))
	for _, name := range images {
		image := wantedImage{name: name}
		ref, err := imageref.Parse(name)
		switch {
		case err != nil: // the kubelet will say so; no node has it
		case ref.Digest() != "":
			image.repository, image.byDigest = ref.Repository(), true
			image.digests = []string{ref.Digest().String()}
		default:
			image.repository = ref.Repository()
			deciding := prefetches
			if named != nil && listsTag(named, ref) {
				deciding = []*v1alpha1.ImagePrefetch{named}
			}
			for _, prefetch := range deciding {
				if digest := resolvedBy(prefetch, ref); digest != "" && !slices.Contains(image.digests, digest) {
					image.digests = append(image.digests, digest)
				}
			}
		}
		if named != nil {
			image.failed = failedOn(named, name)
		}
		wanted = append(wanted, image)
	}
	return wanted
}

// failedOn are the nodes on which a prefetch says that an image has failed, or that nothing can be
// brought there.
func failedOn(prefetch *v1alpha1.ImagePrefetch, name string) map[string]bool {
	nodes := make(map[string]bool, len(prefetch.Status.Failures))
	for i := range prefetch.Status.Failures {
		failure := &prefetch.Status.Failures[i]
		ref, err := imageref.Parse(failure.Image)
		if failure.Reason == v1alpha1.ReasonTooManyImages || err == nil && (TemplateImages{name}).needs(ref, prefetch) {
			nodes[failure.Node] = true
		}
	}
	return nodes
}

// TagsOfOthers are the tags of a template, normalized, that other ImagePrefetches of the namespace
// than the one that the workload names may have resolved. The named one is nil if there is none.
func TagsOfOthers(pod *corev1.PodSpec, named *v1alpha1.ImagePrefetch) []string {
	var tags []string
	for _, name := range ImagesOf(pod) {
		ref, err := imageref.Parse(name)
		if err == nil && ref.Digest() == "" && (named == nil || !listsTag(named, ref)) {
			tags = append(tags, ref.String())
		}
	}
	return tags
}

// TagsListedBy are the tags that a prefetch lists, normalized.
func TagsListedBy(prefetch *v1alpha1.ImagePrefetch) []string {
	var tags []string
	for _, written := range prefetch.Spec.Images {
		if ref, err := imageref.Parse(string(written)); err == nil && ref.Digest() == "" {
			tags = append(tags, ref.String())
		}
	}
	return tags
}

// resolvedBy is the digest that a prefetch has resolved a tag to, for its present entry and
// refresh; empty if it does not list the tag, or has no such answer.
func resolvedBy(prefetch *v1alpha1.ImagePrefetch, tag imageref.Reference) string {
	if !prefetch.DeletionTimestamp.IsZero() {
		return ""
	}
	last := tag.Path()[strings.LastIndexByte(tag.Path(), '/')+1:]
	for i := range prefetch.Status.Images {
		status := &prefetch.Status.Images[i]
		if !strings.Contains(status.Name, last) { // parsing thousands of names takes milliseconds
			continue
		}
		ref, err := imageref.Parse(status.Name)
		if err == nil && ref == tag && resolved(prefetch, status) && lists(prefetch, status.Name) {
			return status.Digest
		}
	}
	return ""
}

// resolved reports whether the digest in a status answers what the spec asks now.
func resolved(prefetch *v1alpha1.ImagePrefetch, status *v1alpha1.ImageStatus) bool {
	refresh := imageprefetch.Refresh(prefetch)
	return status.Digest != "" && (refresh == "" || status.Refresh == refresh)
}

// listsTag reports whether a prefetch lists a tag, however it is written.
func listsTag(prefetch *v1alpha1.ImagePrefetch, tag imageref.Reference) bool {
	return slices.ContainsFunc(prefetch.Spec.Images, func(written v1alpha1.ImageReference) bool {
		ref, err := imageref.Parse(string(written))
		return err == nil && ref == tag
	})
}

func lists(prefetch *v1alpha1.ImagePrefetch, written string) bool {
	return slices.Contains(prefetch.Spec.Images, v1alpha1.ImageReference(written))
}

// notCovered are the images that a prefetch does not bring, as a message names them. A tag
// in its list covers the digest that it was resolved to, in the same repository: the nodes
// have that name as well. A digest covers no tag.
func notCovered(images TemplateImages, prefetch *v1alpha1.ImagePrefetch) []string {
	listed := make(map[imageref.Reference]bool, len(prefetch.Spec.Images))
	for _, written := range prefetch.Spec.Images {
		if ref, err := imageref.Parse(string(written)); err == nil {
			listed[ref] = true
		}
	}
	digests := resolvedDigests(prefetch)
	var missing []string
	for _, name := range images {
		ref, err := imageref.Parse(name)
		if err == nil && (listed[ref] || slices.Contains(digests[ref.Repository()], ref.Digest().String())) {
			continue
		}
		if err == nil && ref.Digest() != "" && len(digests[ref.Repository()]) > 0 {
			name = fmt.Sprintf("%s (its tag means %s)", name, list(digests[ref.Repository()]))
		}
		missing = append(missing, name)
	}
	return missing
}

// resolvedDigests are the digests that the tags of a prefetch mean now, by repository.
func resolvedDigests(prefetch *v1alpha1.ImagePrefetch) map[string][]string {
	digests := make(map[string][]string)
	for i := range prefetch.Status.Images {
		status := &prefetch.Status.Images[i]
		ref, err := imageref.Parse(status.Name)
		if err == nil && ref.Tag() != "" && resolved(prefetch, status) && lists(prefetch, status.Name) {
			digests[ref.Repository()] = append(digests[ref.Repository()], status.Digest)
		}
	}
	return digests
}

// unresolvedBy are the tags among the images whose digest a prefetch does not know yet, or
// is asking for again.
func unresolvedBy(images TemplateImages, prefetch *v1alpha1.ImagePrefetch) []string {
	var unresolved []string
	for _, name := range images {
		if ref, err := imageref.Parse(name); err == nil && ref.Tag() != "" && resolvedBy(prefetch, ref) == "" {
			unresolved = append(unresolved, name)
		}
	}
	return unresolved
}

// needs reports whether what a prefetch lists as ref is one of the images.
func (t TemplateImages) needs(ref imageref.Reference, prefetch *v1alpha1.ImagePrefetch) bool {
	if slices.Contains(t, ref.String()) {
		return true
	}
	digest := resolvedBy(prefetch, ref)
	return digest != "" && slices.Contains(t, ref.Repository()+"@"+digest)
}
