// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package runtimetest_test

import (
	"context"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/test/runtimetest"
)

func TestFake(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "Fake runtime")
}

var _ = Describe("Fake runtime", func() {
	runtimetest.Conformance(func(context.Context) *runtimetest.TestNode {
		fake := runtimetest.NewFake()
		fake.PerBlob = time.Millisecond // so that pulls overlap
		return &runtimetest.TestNode{
			Runtime:  fake,
			Registry: "registry.test",
			Upstream: fake.Upstream,
			Mirror:   fake.Mirror,
			Record:   fake.Record,
			Delete:   fake.Delete,
			Point:    fake.Point,
			Unlabel:  fake.Unlabel,
			Spoil: func() {
				fake.Find(nodeagent.NewFinding(nodeagent.SeverityWarning, "hosts.toml of registry.test", "is spoiled"))
			},
			Created: fake.Created,
			Hang: func() func() {
				fake.Stop(nodeagent.ErrRuntimeUnavailable)
				return fake.Start
			},
		}
	})
})
