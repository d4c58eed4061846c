// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution_test

import (
	. "github.com/onsi/ginkgo/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/agenttest"
)

// The controllers are tested against agents that are not real. These answer as the real ones
// do, which keep the same contract in test/agenttest.
var _ = Describe("The agents of these tests", func() {
	agenttest.Contract(func() agenttest.Fleet { return &fleet{agents: runAgents()} })
})

// fleet has the agents do what the contract asks for.
type fleet struct {
	*agents
	versions int
}

func (f *fleet) Client() client.Client { return api }

// Start has nothing to do: every node has its agent.
func (f *fleet) Start(string) {}

func (f *fleet) Push(image string) string {
	f.versions++
	digest := digestOf(image, f.versions)
	f.change(func(a *agents) { a.tags[image] = digest })
	return digest
}

func (f *fleet) SetTrouble(trouble agenttest.Trouble) {
	f.change(func(a *agents) {
		switch trouble {
		case agenttest.NoTrouble:
			delete(a.faults, "")
		case agenttest.Unreachable:
			a.faults[""] = fault{v1alpha1.ImagePending, string(trouble), "connection refused"}
		case agenttest.Unknown:
			a.faults[""] = fault{v1alpha1.ImageFailed, string(trouble), "404"}
		}
	})
}

func (f *fleet) Lookups(image string) int { return f.heads(image) }

func (f *fleet) Pulls(digest string) int { return len(f.upstream(digest)) }
