// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution

import (
	"fmt"
	"maps"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/controllers/distribution/plan"
	"github.com/sluice-dev/sluice/internal/imageprefetch"
	"github.com/sluice-dev/sluice/internal/imageref"
	"github.com/sluice-dev/sluice/internal/policy"
)

// observedPrefetch is an ImagePrefetch with its images parsed.
type observedPrefetch struct {
	object *v1alpha1.ImagePrefetch
	// images are those of the spec, in its order. Two of them may name the same image, which is
	// planned once and has a status under each name.
	images []parsedImage
	// blocker is why no image is brought anywhere for the prefetch; nil if nothing is wrong.
	blocker *blocker
	// pullSecrets reports whether agents can get credentials.
	pullSecrets bool
}

// parsedImage is an image of a spec as it is known to the plan and the nodes.
type parsedImage struct {
	name   string // normalized
	digest string // empty if the name has a tag
	local  bool   // its tag means what the nodes have under the name
}

// blocker is the reason and the message of the Ready condition of a prefetch that is not planned.
type blocker struct {
	reason, message string
}

func observePrefetch(object *v1alpha1.ImagePrefetch, memo *referenceMemo, pullSecrets bool, nodeLocal policy.Repositories) observedPrefetch {
	images, err := memo.parse(object, nodeLocal)
	if err != nil {
		return observedPrefetch{object: object, blocker: &blocker{
			reason:  v1alpha1.ReasonInvalidSpec,
			message: fmt.Sprintf("spec.images: %v: write it as in a Pod, such as ghcr.io/org/app:v2", err),
		}}
	}
	return observedPrefetch{
		object: object, images: images, blocker: unservedSecrets(object, pullSecrets), pullSecrets: pullSecrets,
	}
}

// unservedSecrets blocks a prefetch with pull secrets if agents cannot get their credentials. Pulls
// without these would fail with a reason that explains less.
func unservedSecrets(object *v1alpha1.ImagePrefetch, pullSecrets bool) *blocker {
	if pullSecrets || len(object.Spec.ImagePullSecrets) == 0 {
		return nil
	}
	return &blocker{
		reason: v1alpha1.ReasonUnsupported,
		message: "spec.imagePullSecrets is not served, for the controller runs without --credentials-bind-address, and nothing is pulled: " +
			"set that, or remove imagePullSecrets if the nodes themselves have credentials for the registry, or if it asks for none",
	}
}

func (p observedPrefetch) key() string {
	return client.ObjectKeyFromObject(p.object).String()
}

// planPrefetch is the prefetch as the plan sees it.
func (p observedPrefetch) planPrefetch() plan.Prefetch {
	spec := &p.object.Spec
	view := plan.Prefetch{
		Key:          p.key(),
		Namespace:    p.object.Namespace,
		UID:          string(p.object.UID),
		CreatedAt:    p.object.CreationTimestamp.Time,
		Generation:   p.object.Generation,
		Refresh:      imageprefetch.Refresh(p.object),
		Resolved:     p.resolved(),
		NodeSelector: spec.NodeSelector,
		NodeAffinity: spec.NodeAffinity,
		Tolerations:  spec.Tolerations,
		Replicas:     spec.Replicas,
		RetryLimit:   ptr.Deref(spec.ImageDownloadRetryLimit, v1alpha1.DefaultImageDownloadRetryLimit),
		Retention:    spec.Retention,
	}
	listed := make(map[string]bool, len(p.images))
	for _, image := range p.images {
		if !listed[image.name] {
			listed[image.name] = true
			view.Images = append(view.Images, image.name)
			if image.local {
				view.NodeLocal = append(view.NodeLocal, image.name)
			}
		}
	}
	for _, secret := range spec.ImagePullSecrets {
		view.PullSecrets = append(view.PullSecrets,
			v1alpha1.PullSecretSource{Namespace: p.object.Namespace, Name: secret.Name})
	}
	if len(spec.ImagePullSecrets) == 0 && p.pullSecrets {
		view.PullSecrets = []v1alpha1.PullSecretSource{{
			Kind:      v1alpha1.PullSecretSourceServiceAccount,
			Namespace: p.object.Namespace,
			Name:      imageprefetch.ServiceAccountName(spec),
		}}
	}
	return view
}

// resolved returns the digests that the status records, by normalized name.
func (p observedPrefetch) resolved() map[string]plan.Resolved {
	recorded := make(map[string]v1alpha1.ImageStatus, len(p.object.Status.Images))
	for _, image := range p.object.Status.Images {
		recorded[image.Name] = image
	}
	resolved := make(map[string]plan.Resolved, len(p.images))
	for i, image := range p.images {
		last, ok := recorded[string(p.object.Spec.Images[i])]
		if !ok {
			last = p.recordedOtherwise(image.name)
		}
		if last.Digest == "" {
			continue
		}
		// Of two names of one image, the spec may have had one longer than the other.
		if known, ok := resolved[image.name]; ok && known.Refresh == imageprefetch.Refresh(p.object) {
			continue
		}
		resolved[image.name] = plan.Resolved{Digest: last.Digest, Refresh: last.Refresh}
	}
	return resolved
}

// recordedOtherwise returns the status of an image that the spec has written in another way before,
// such as "nginx" for "docker.io/library/nginx:latest"; empty if there is none.
func (p observedPrefetch) recordedOtherwise(name string) v1alpha1.ImageStatus {
	for _, image := range p.object.Status.Images {
		if ref, err := imageref.Parse(image.Name); err == nil && ref.String() == name {
			return image
		}
	}
	return v1alpha1.ImageStatus{}
}

// referenceMemo keeps the parsed images of each ImagePrefetch until its spec changes, because every
// pass needs those of all.
type referenceMemo struct {
	parsed map[types.UID]parsedImages
}

type parsedImages struct {
	generation int64
	images     []parsedImage
	err        error
}

func (m *referenceMemo) parse(object *v1alpha1.ImagePrefetch, nodeLocal policy.Repositories) ([]parsedImage, error) {
	if last, ok := m.parsed[object.UID]; ok && last.generation == object.Generation {
		return last.images, last.err
	}
	entry := parsedImages{generation: object.Generation}
	for _, name := range object.Spec.Images {
		reference, err := imageref.Parse(string(name))
		if err != nil {
			entry.images, entry.err = nil, err
			break
		}
		entry.images = append(entry.images, parsedImage{
			name: reference.String(), digest: reference.Digest().String(), local: nodeLocal.Contain(reference),
		})
	}
	if m.parsed == nil {
		m.parsed = map[types.UID]parsedImages{}
	}
	m.parsed[object.UID] = entry
	return entry.images, entry.err
}

// keep drops all ImagePrefetches that are not alive.
func (m *referenceMemo) keep(alive map[types.UID]bool) {
	maps.DeleteFunc(m.parsed, func(uid types.UID, _ parsedImages) bool { return !alive[uid] })
}
