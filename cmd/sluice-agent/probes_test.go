// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"sigs.k8s.io/controller-runtime/pkg/healthz"

	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/test/runtimetest"
)

func TestReadiness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		runtime := runtimetest.NewFake()
		runtime.Stop(errors.New("it has not started yet"))
		agent := nodeagent.New(nodeagent.Options{
			Runtime: runtime, MaxParallelPulls: 1, NoProgressTimeout: time.Minute, VerifyInterval: time.Hour, Log: logr.Discard(),
		})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			agent.Run(ctx)
		}()
		defer func() {
			cancel()
			<-ended
		}()
		for _, step := range []struct {
			reason string
			happen func()
			want   int
		}{
			{"neither the spec is known nor does containerd answer", func() {}, http.StatusInternalServerError},
			{"the spec is known", func() { agent.Apply(nil) }, http.StatusInternalServerError},
			{"containerd answers as well", runtime.Start, http.StatusOK},
			{"containerd is gone", func() { runtime.Stop(errors.New("gone")) }, http.StatusInternalServerError},
			{"and is back", runtime.Start, http.StatusOK},
		} {
			step.happen()
			<-time.After(2 * time.Minute) // longer than any pause between two tries to connect
			answer := httptest.NewRecorder()
			(&healthz.Handler{Checks: readiness(agent)}).ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/", nil))
			if answer.Code != step.want {
				t.Errorf("%s: %d, want %d", step.reason, answer.Code, step.want)
			}
		}
	})
}

func TestNotReadyBeforeTheSpecIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		agent := nodeagent.New(nodeagent.Options{
			Runtime: runtimetest.NewFake(), MaxParallelPulls: 1, NoProgressTimeout: time.Minute, VerifyInterval: time.Hour, Log: logr.Discard(),
		})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			agent.Run(ctx)
		}()
		synctest.Wait()
		checks := readiness(agent)
		if checks["containerd"](nil) != nil || checks["synced"](nil) == nil {
			t.Error("it is ready before it knows the node's spec")
		}
		cancel()
		<-ended
	})
}
