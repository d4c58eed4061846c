// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/figures"
)

// scenario is what is measured.
type scenario struct {
	name, about string
	run         func(context.Context, *rig, *figures.Results) error
}

// Nodes keep what they got in the cases before, so the order is part of what is measured.
var cases = []scenario{
	{"fill", "20 images to nodes that have none", func(ctx context.Context, r *rig, results *figures.Results) error {
		return r.measure(ctx, results, "fill_20", func(ctx context.Context) error {
			return r.give(ctx, "fill", tags("fill", 20)...)
		})
	}},
	{"more", "one more image to nodes that hold 20", func(ctx context.Context, r *rig, results *figures.Results) error {
		return r.oneMore(ctx, results, 20)
	}},
	{"failing", "one more image, which comes on 95 % of the nodes", func(ctx context.Context, r *rig, results *figures.Results) error {
		if err := r.hold(ctx, results, 20); err != nil {
			return err
		}
		return r.measure(ctx, results, "failing", func(ctx context.Context) error {
			return r.bring(ctx, "failing", v1alpha1.ImagePrefetchSpec{
				FailureTolerance: ptr.To(intstr.FromString("10%")), ImageDownloadRetryLimit: ptr.To[int32](0),
			}, tags(failing, 1)...)
		})
	}},
	{"restart", "one more image, and the leader is killed when half of the nodes have it", func(ctx context.Context, r *rig, results *figures.Results) error {
		if err := r.hold(ctx, results, 20); err != nil {
			return err
		}
		return r.measure(ctx, results, "restart", func(ctx context.Context) error { return r.bringDespiteRestart(ctx) })
	}},
	{"shared", "200 ImagePrefetches of 20 images that the nodes hold", func(ctx context.Context, r *rig, results *figures.Results) error {
		if err := r.hold(ctx, results, 20); err != nil {
			return err
		}
		return r.measure(ctx, results, "shared_200", func(ctx context.Context) error { return r.bringMany(ctx, 200) })
	}},
	{"join", "a node joins the others", func(ctx context.Context, r *rig, results *figures.Results) error {
		if err := r.hold(ctx, results, 20); err != nil {
			return err
		}
		return r.measure(ctx, results, "join", func(ctx context.Context) error { return r.join(ctx) })
	}},
	{"more-on-100", "one more image to nodes that hold 100", func(ctx context.Context, r *rig, results *figures.Results) error {
		return r.oneMore(ctx, results, 100)
	}},
}

// background is what goes on in all cases, and is left out of what they cost.
var background = []scenario{
	{"idle", "heartbeats alone", func(ctx context.Context, r *rig, results *figures.Results) error {
		return r.measureIdle(ctx, results)
	}},
	{"probes", "the probe's distributions beside them", func(ctx context.Context, r *rig, results *figures.Results) error {
		return r.measureProbes(ctx, results)
	}},
}

// database is what all cases have left in etcd.
var database = scenario{"database", "the size of etcd's database at the end", func(ctx context.Context, r *rig, results *figures.Results) error {
	usage, err := r.usage(ctx)
	results.Add("etcd_database", usage.database/mebi, "MiB")
	return err
}}

// tags are names of images that share nothing.
func tags(kind string, count int) (images []v1alpha1.ImageReference) {
	for i := range count {
		images = append(images, v1alpha1.ImageReference(fmt.Sprintf("%s/%s/app-%03d:v1.2.3", registry, kind, i)))
	}
	return images
}

// oneMore measures one more image on nodes that hold so many.
func (r *rig) oneMore(ctx context.Context, results *figures.Results, held int) error {
	if err := r.hold(ctx, results, held); err != nil {
		return err
	}
	name := fmt.Sprintf("more-on-%d", held)
	return r.measure(ctx, results, fmt.Sprintf("more_on_%d", held), func(ctx context.Context) error {
		return r.give(ctx, name, tags(name, 1)...)
	})
}
