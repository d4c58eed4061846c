// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
)

// The checker reads annotations and images by itself, as docs/gate.md says what they mean: the code
// that it checks may read them wrongly.

// wish is what the annotations of a Deployment ask of the gate.
type wish struct {
	gated bool
	// timeout is how long a hold may last; 0 is for ever.
	timeout time.Duration
	// lets: the rollout is let go when the timeout is over.
	lets bool
}

func wishOf(d *appsv1.Deployment) wish {
	_, named := d.Annotations["sluice.dev/prefetch"]
	w := wish{
		gated:   named && d.Annotations["sluice.dev/gate"] != "skip",
		timeout: 10 * time.Minute,
		lets:    d.Annotations["sluice.dev/on-timeout"] != "Hold",
	}
	if timeout, err := time.ParseDuration(d.Annotations["sluice.dev/hold-timeout"]); err == nil {
		w.timeout = timeout
	}
	return w
}

// over reports whether a hold that began then may have been let go by its timeout.
func (w wish) over(began, now time.Time) bool {
	return w.lets && w.timeout > 0 && !now.Before(began.Add(w.timeout))
}

// imagesHash is what the label of a hold says of its images. The soak's Deployments have one image
// each, by its full name.
func imagesHash(d *appsv1.Deployment) string {
	var images []string
	for _, container := range d.Spec.Template.Spec.Containers {
		images = append(images, container.Image)
	}
	sum := sha256.Sum256([]byte(strings.Join(images, "\n")))
	return hex.EncodeToString(sum[:8])
}
