// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/test/cluster"
)

// superviseVariable makes this test program the supervisor of that folder.
const superviseVariable = "SLUICE_TEST_CLUSTER_SUPERVISE"

// failVariable makes the supervisor fail before it is ready.
const failVariable = "SLUICE_TEST_CLUSTER_SUPERVISE_FAIL"

func supervise(dir string) error {
	ctx, ready, err := cluster.Supervise(context.Background(), dir)
	if err != nil {
		return err
	}
	if os.Getenv(failVariable) != "" {
		return errors.New("no luck")
	}
	fmt.Println("up")
	ready()
	<-ctx.Done()
	return nil
}

func detach(t *testing.T, dir string) (string, error) {
	t.Helper()
	t.Setenv(superviseVariable, dir)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out bytes.Buffer
	err := cluster.Detach(ctx, dir, &out, "/proc/self/exe")
	return out.String(), err
}

func TestSupervisorStaysUntilDown(t *testing.T) {
	dir := t.TempDir()
	out, err := detach(t, dir)
	if err != nil || out != "up\n" {
		t.Fatalf("Detach wrote %q and returned %v", out, err)
	}
	t.Cleanup(func() { _ = cluster.Down(context.Background(), dir) })
	if out, err := detach(t, dir); err == nil || !strings.Contains(out, "up already") {
		t.Errorf("second Detach wrote %q and returned %v, want a refusal", out, err)
	}
	if err := cluster.Down(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if out, err := detach(t, dir); err != nil {
		t.Errorf("Detach after Down wrote %q and returned %v", out, err)
	}
}

func TestSupervisorThatFailsIsReported(t *testing.T) {
	t.Setenv(failVariable, "1")
	if out, err := detach(t, t.TempDir()); err == nil || !strings.Contains(out, "no luck") {
		t.Errorf("Detach wrote %q and returned %v, want the failure", out, err)
	}
}

func TestDownWithoutSupervisor(t *testing.T) {
	if err := cluster.Down(t.Context(), t.TempDir()); err != nil {
		t.Error(err)
	}
}
