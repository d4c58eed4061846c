// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Command pause waits for SIGTERM and exits with 0. It keeps a Pod's sandbox,
// and runs in test Pods that have nothing else to do.
package main

import (
	"context"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	<-ctx.Done()
}
