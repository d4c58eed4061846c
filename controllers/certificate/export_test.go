// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package certificate

import "context"

// The times of a rotation.
const (
	Interval    = interval
	Settle      = settle
	ForgetAfter = forgetAfter
)

// Pass is one turn of Start.
func (k *Keeper) Pass(ctx context.Context) (settled bool, err error) { return k.pass(ctx) }
