// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import "github.com/sluice-dev/sluice/api/v1alpha1"

// Progressed says that an image has got on between two sights of its entry: something
// else is asked, the registry has answered, or bytes have come. That an agent has given
// up a try and begun the next is none: the registry or the mirror may hang each time.
func Progressed(before, after Entry) bool {
	was, is := before.Status, after.Status
	switch {
	case !sameEntry(before.Wanted, after.Wanted):
		return true
	case was == nil || is == nil:
		return was != is
	case was.Attempts == 0 && is.Attempts > 0, (was.State == v1alpha1.ImagePresent) != (is.State == v1alpha1.ImagePresent):
		return true // it had waited for a slot on its node; or it came, or was deleted
	}
	return was.Digest != is.Digest || was.Request != is.Request || is.PulledBytes > was.PulledBytes || is.SizeBytes > was.SizeBytes
}
