// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package heartbeat tells an agent that is at work from one that is gone, by its writes of the
// NodeImageSet's status. An agent owes a write when its spec changes, and every
// [v1alpha1.HeartbeatInterval] while it has images to bring. One that has nothing to do may be
// silent for as long as it likes.
package heartbeat

import (
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// Acknowledged reports whether the agent has seen the present spec.
func Acknowledged(set *v1alpha1.NodeImageSet) bool {
	return set.Status.ObservedGeneration == set.Generation
}

// Unfinished reports whether the agent says that some image of the spec is still to come.
func Unfinished(set *v1alpha1.NodeImageSet) bool {
	return slices.ContainsFunc(set.Status.Images, func(image v1alpha1.NodeImageStatus) bool { return image.State.Unfinished() })
}

// HeardAt returns when the agent of a set was last heard, or began to owe a write. The set before
// is nil at the first sight, and last is when the agent was heard before that. Changes of the spec
// alone do not make up for a missing write: otherwise a dead agent might never be noticed.
func HeardAt(before, set *v1alpha1.NodeImageSet, last, now time.Time) time.Time {
	switch {
	case before == nil || !equality.Semantic.DeepEqual(&before.Status, &set.Status):
		return now
	case Acknowledged(before) && !Acknowledged(set):
		if due := last.Add(v1alpha1.HeartbeatInterval); Unfinished(before) && due.Before(now) {
			return due
		}
		return now
	default:
		return last
	}
}

// SilentAt returns when an agent that was last heard at heardAt becomes silent, if agentTimeout is
// how late a write may be. It is zero if the agent owes none.
func SilentAt(heardAt time.Time, acknowledged, unfinished bool, agentTimeout time.Duration) time.Time {
	switch {
	case !acknowledged:
		return heardAt.Add(agentTimeout)
	case unfinished:
		return heardAt.Add(v1alpha1.HeartbeatInterval + agentTimeout)
	default:
		return time.Time{}
	}
}
